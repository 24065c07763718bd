//! Log records, in the variant of the object that `--kernel-log` loads; nothing otherwise.

use aya_ebpf::programs::TcContext;
use proxy_common::layout::flow::Tuple;

use crate::maps::FamilyMaps;
#[cfg(feature = "kernel-log")]
use crate::scratch::draft;

macro_rules! record {
    ($level:ident, $ctx:expr, $($arg:tt)*) => {
        #[cfg(feature = "kernel-log")]
        aya_log_ebpf::$level!($ctx, $($arg)*);
        #[cfg(not(feature = "kernel-log"))]
        let _ = $ctx;
    };
}
pub(crate) use record;

/// An address in a form that can be logged.
#[cfg(feature = "kernel-log")]
pub(crate) trait Loggable {
    /// The type that aya formats.
    type Ip: aya_log_ebpf::macro_support::Argument + aya_log_ebpf::macro_support::IpFormatter;
    /// Converts the address.
    fn ip(&self) -> Self::Ip;
}

#[cfg(feature = "kernel-log")]
impl Loggable for u32 {
    type Ip = core::net::Ipv4Addr;

    #[inline(always)]
    fn ip(&self) -> Self::Ip {
        core::net::Ipv4Addr::from_bits(u32::from_be(*self))
    }
}

#[cfg(feature = "kernel-log")]
impl Loggable for [u32; 4] {
    type Ip = core::net::Ipv6Addr;

    #[inline(always)]
    fn ip(&self) -> Self::Ip {
        let word = |i: usize| (u32::from_be(self[i]) as u128) << (96 - 32 * i);
        core::net::Ipv6Addr::from_bits(word(0) | word(1) | word(2) | word(3))
    }
}

/// A family whose addresses can be logged, with the log compiled in.
#[cfg(feature = "kernel-log")]
pub(crate) trait Logged: proxy_common::Family<Addr: Loggable> {}
#[cfg(feature = "kernel-log")]
impl<F: proxy_common::Family<Addr: Loggable>> Logged for F {}

/// Any family, without the log.
#[cfg(not(feature = "kernel-log"))]
pub(crate) trait Logged: proxy_common::Family {}
#[cfg(not(feature = "kernel-log"))]
impl<F: proxy_common::Family> Logged for F {}

/// The log record for a packet. The CPU's [`FamilyMaps::draft`] stores the tuples; the decision no longer uses
/// it.
pub(crate) enum LogEvent {
    Nothing,
    #[cfg(feature = "kernel-log")]
    Dropped,
    #[cfg(feature = "kernel-log")]
    Translated,
}

#[cfg(not(feature = "kernel-log"))]
impl LogEvent {
    #[inline(always)]
    pub(crate) fn of(_: u8) -> Self {
        Self::Nothing
    }

    #[inline(always)]
    pub(crate) fn bits(&self) -> u8 {
        0
    }

    #[inline(always)]
    pub(crate) fn dropped<F: FamilyMaps>(_: &Tuple<F>) -> Self {
        Self::Nothing
    }

    #[inline(always)]
    pub(crate) fn translated<F: FamilyMaps>(_: &Tuple<F>, _: &Tuple<F>) -> Self {
        Self::Nothing
    }

    #[inline(always)]
    pub(crate) fn log<F: FamilyMaps>(self, _: &TcContext) {}
}

#[cfg(feature = "kernel-log")]
impl LogEvent {
    /// The event from its [`Self::bits`].
    #[inline(always)]
    pub(crate) fn of(bits: u8) -> Self {
        match bits {
            1 => Self::Dropped,
            2 => Self::Translated,
            _ => Self::Nothing,
        }
    }

    /// The event as a number.
    #[inline(always)]
    pub(crate) fn bits(&self) -> u8 {
        match self {
            Self::Nothing => 0,
            Self::Dropped => 1,
            Self::Translated => 2,
        }
    }

    #[inline(always)]
    pub(crate) fn dropped<F: FamilyMaps>(from: &Tuple<F>) -> Self {
        let Some(draft) = draft::<F>() else { return Self::Nothing };
        draft.key.tuple = *from;
        Self::Dropped
    }

    #[inline(always)]
    pub(crate) fn translated<F: FamilyMaps>(from: &Tuple<F>, to: &Tuple<F>) -> Self {
        let Some(draft) = draft::<F>() else { return Self::Nothing };
        draft.key.tuple = *from;
        draft.flow.tuple = *to;
        Self::Translated
    }

    #[inline(always)]
    pub(crate) fn log<F: FamilyMaps + Logged>(self, ctx: &TcContext) {
        let Some(draft) = draft::<F>() else { return };
        let (from, to) = (&draft.key.tuple, &draft.flow.tuple);
        match self {
            Self::Nothing => {}
            Self::Dropped => aya_log_ebpf::warn!(
                ctx,
                "dropped: {:i}:{} to {:i}:{}",
                from.src.ip(),
                u16::from_be(from.sport),
                from.dst.ip(),
                u16::from_be(from.dport)
            ),
            Self::Translated => aya_log_ebpf::debug!(
                ctx,
                "{:i}:{} to {:i}:{} becomes {:i}:{} to {:i}:{}",
                from.src.ip(),
                u16::from_be(from.sport),
                from.dst.ip(),
                u16::from_be(from.dport),
                to.src.ip(),
                u16::from_be(to.sport),
                to.dst.ip(),
                u16::from_be(to.dport)
            ),
        }
    }
}
