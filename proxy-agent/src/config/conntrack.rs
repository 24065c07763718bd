//! kube-proxy's settings of connection tracking: the size and the timeouts of the flow map here, and the kernel's own.

use std::time::Duration;

use proxy_common::layout::config::Timeouts;

use super::{
    Notice,
    file::{Conntrack, KubeProxyConfiguration},
    machine::Machine,
};
use crate::{cli::RunArgs, net::conntrack_sysctls::ConntrackSysctls};

/// Memory for a flow map entry of both families together, about, and how much of it may go there.
const ENTRY_BYTES: u64 = 250;
const DEFAULT_SHARE: u64 = 176;
const LARGEST_SHARE: u64 = 50;
const FEWEST: u32 = 1 << 16;
const DEFAULT_MOST: u32 = 1 << 20;
/// kube-proxy's bound for the kernel's table, and its defaults, in flows.
const MOST_FLOWS: u32 = 1 << 20;
const PER_CORE: u32 = 32_768;
const MIN: u32 = 131_072;

/// The given value; or kube-proxy's size of the kernel's table, within the limits of memory; or a small share of memory.
pub(super) fn max_flows(
    args: &RunArgs,
    file: &KubeProxyConfiguration,
    machine: &Machine,
    notices: &mut Vec<Notice>,
) -> u32 {
    if let Some(entries) = args.max_flows {
        return entries;
    }
    let share = |share| u32::try_from(machine.memory / share / ENTRY_BYTES).unwrap_or(u32::MAX);
    let conntrack = Conntrack {
        max_per_core: args.conntrack_max_per_core.or(file.conntrack.max_per_core),
        min: args.conntrack_min.or(file.conntrack.min),
        ..Conntrack::default()
    };
    let per_core = conntrack.max_per_core.unwrap_or(PER_CORE);
    if (conntrack.max_per_core.is_none() && conntrack.min.is_none()) || per_core == 0 {
        return share(DEFAULT_SHARE).clamp(FEWEST, DEFAULT_MOST);
    }
    let flows = per_core.saturating_mul(machine.cpus).max(conntrack.min.unwrap_or(MIN)).min(MOST_FLOWS);
    let (wanted, most) = (flows * 2, share(LARGEST_SHARE).max(FEWEST));
    if wanted > most {
        notices.push(Notice::warning(format!(
            "conntrack: {flows} flows would take more than a {LARGEST_SHARE}th of the memory; using {} (--max-flows \
             overrides this)",
            most / 2
        )));
    }
    wanted.clamp(FEWEST, most)
}

/// The given values; zero keeps the default, as with kube-proxy.
pub(super) fn timeouts(args: &RunArgs, file: &Conntrack, notices: &mut Vec<Notice>) -> Timeouts {
    /// Well below 49 days, after which the 32-bit jiffies in flow entries wrap.
    const LONGEST: Duration = Duration::from_secs(20 * 24 * 3600);
    /// Flows are stamped at intervals of up to 2.6 s.
    const SHORTEST: Duration = Duration::from_secs(5);
    let mut seconds = |flag: Option<Duration>, file: Option<Duration>, name: &str, default: u32| {
        let Some(given) = flag.or(file).filter(|given| !given.is_zero()) else { return default };
        let used = given.clamp(SHORTEST, LONGEST);
        if used != given {
            let text = format!(
                "conntrack.{name} is {given:?}: {used:?} is used instead, it is the nearest possible"
            );
            notices.push(Notice::warning(text));
        }
        u32::try_from(used.as_secs()).unwrap_or(u32::MAX)
    };
    let default = Timeouts::DEFAULT;
    Timeouts {
        tcp_established: seconds(
            args.conntrack_tcp_timeout_established,
            file.tcp_established_timeout,
            "tcpEstablishedTimeout",
            default.tcp_established,
        ),
        tcp_half_closed: seconds(
            args.conntrack_tcp_timeout_close_wait,
            file.tcp_close_wait_timeout,
            "tcpCloseWaitTimeout",
            default.tcp_half_closed,
        ),
        datagram_new: seconds(
            args.conntrack_udp_timeout,
            file.udp_timeout,
            "udpTimeout",
            default.datagram_new,
        ),
        datagram_answered: seconds(
            args.conntrack_udp_timeout_stream,
            file.udp_stream_timeout,
            "udpStreamTimeout",
            default.datagram_answered,
        ),
        ..default
    }
}

/// The settings that kube-proxy would write to the kernel. Zero leaves a setting unchanged, as in kube-proxy.
pub(super) fn sysctls(args: &RunArgs, file: &Conntrack, machine: &Machine) -> ConntrackSysctls {
    const TCP_ESTABLISHED: Duration = Duration::from_secs(24 * 3600);
    const TCP_CLOSE_WAIT: Duration = Duration::from_secs(3600);
    let per_core = args.conntrack_max_per_core.or(file.max_per_core).unwrap_or(PER_CORE);
    let min = args.conntrack_min.or(file.min).unwrap_or(MIN);
    let max = (per_core > 0).then(|| per_core.saturating_mul(machine.cpus).max(min));
    let seconds = |flag: Option<Duration>, file: Option<Duration>, default: Duration| {
        let seconds = u32::try_from(flag.or(file).unwrap_or(default).as_secs()).unwrap_or(u32::MAX);
        // The kernel's are signed.
        (seconds > 0).then_some(seconds.min(i32::MAX as u32))
    };
    ConntrackSysctls {
        max: max.map(|max| max.min(i32::MAX as u32)),
        tcp_established: seconds(
            args.conntrack_tcp_timeout_established,
            file.tcp_established_timeout,
            TCP_ESTABLISHED,
        ),
        tcp_close_wait: seconds(
            args.conntrack_tcp_timeout_close_wait,
            file.tcp_close_wait_timeout,
            TCP_CLOSE_WAIT,
        ),
        tcp_be_liberal: args.conntrack_tcp_be_liberal.or(file.tcp_be_liberal).unwrap_or_default(),
        udp: seconds(args.conntrack_udp_timeout, file.udp_timeout, Duration::ZERO),
        udp_stream: seconds(args.conntrack_udp_timeout_stream, file.udp_stream_timeout, Duration::ZERO),
    }
}
