//! Constants that the agent sets before loading: the verifier drops the branches they switch off.

use aya_ebpf::Global;
use proxy_common::layout::config::Settings;

macro_rules! constants {
    ($($name:ident: $type:ty = $default:expr;)*) => { $(
        #[unsafe(no_mangle)]
        pub(crate) static $name: Global<$type> = Global::new($default);
    )* };
}

constants! {
    SNAT_FIRST: u16 = 1_024;
    SNAT_LAST: u16 = 29_999;
    IDLE: u32 = 10_000;
    SNAT_SOURCES_V4_COUNT: u32 = 0;
    SNAT_SOURCES_V6_COUNT: u32 = 0;
    EXTERNAL_CLUSTER_IPS: u8 = 0;
    RESET_REMOVED_TCP: u8 = 0;
    REJECT_WITH_RESET: u8 = 0;
    SOCKETS_OF_NODE_ONLY: u8 = 0;
    LOCALHOST_NODEPORTS: u8 = 1;
    NODE_NETNS: u64 = 0;
    HAS_SET_RETVAL: u8 = 0;
    HAS_SK_STORAGE: u8 = 0;
    HAS_CSUM_IPV6: u8 = 0;
    HAS_FIB_SRC: u8 = 0;
    HAS_CURRENT: u8 = 0;
}

/// About a second in jiffies.
#[inline(always)]
pub(crate) fn second() -> u32 {
    IDLE.load() >> 3
}

/// Those of a family, of which so many source addresses were given.
#[inline(always)]
pub(crate) fn settings(snat_sources: u32) -> Settings {
    Settings {
        snat_first: SNAT_FIRST.load(),
        snat_last: SNAT_LAST.load(),
        idle: IDLE.load(),
        snat_sources,
        external_cluster_ips: EXTERNAL_CLUSTER_IPS.load() != 0,
        reset_removed_tcp: RESET_REMOVED_TCP.load() != 0,
    }
}
