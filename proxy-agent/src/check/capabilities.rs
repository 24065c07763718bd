//! The capabilities of this process: those that the agent would have.

use super::finding::Finding;

const NAME: &str = "capabilities";

/// From `linux/capability.h`.
const NET_ADMIN: u32 = 12;
const SYS_PTRACE: u32 = 19;
const SYS_ADMIN: u32 = 21;
const BPF: u32 = 39;

/// The effective set, from `/proc/self/status`.
pub(super) fn parse(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

pub(super) fn assess(effective: Option<u64>) -> Finding {
    let Some(effective) = effective else {
        return Finding::unknown(NAME, "/proc/self/status does not show the effective set");
    };
    let has = |capability: u32| effective & (1 << capability) != 0;
    let mut missing = Vec::new();
    for (is_there, name) in [
        (has(NET_ADMIN), "CAP_NET_ADMIN"),
        (has(SYS_ADMIN), "CAP_SYS_ADMIN"),
        // The older one includes the newer.
        (has(BPF) || has(SYS_ADMIN), "CAP_BPF"),
    ] {
        if !is_there {
            missing.push(name);
        }
    }
    if !missing.is_empty() {
        let finding = Finding::fail(
            NAME,
            format!("missing: {}", missing.join(", ")),
            "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN; in Kubernetes the capabilities of \
             deploy/base/daemonset.yaml",
        );
        let has_bpf = has(BPF) || has(SYS_ADMIN);
        return if has_bpf { finding } else { finding.that_ends_the_agent() };
    }
    if !has(SYS_PTRACE) {
        return Finding::warn(
            NAME,
            "missing: CAP_SYS_PTRACE",
            "add it: without it the network namespaces of other users' pods are not entered, and their UDP sockets \
             keep sending to \
             endpoints that are gone",
        );
    }
    Finding::pass(NAME, "CAP_BPF or CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_SYS_PTRACE")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::{State, ends_agent};

    #[test]
    fn sets() {
        let set = |bits: &[u32]| bits.iter().map(|bit| 1u64 << bit).sum::<u64>();
        for (effective, expected) in [
            (set(&[]), State::Fail),
            (set(&[BPF, NET_ADMIN]), State::Fail),
            (set(&[SYS_ADMIN, SYS_PTRACE]), State::Fail),
            (set(&[SYS_ADMIN, NET_ADMIN]), State::Warn),
            (set(&[SYS_ADMIN, NET_ADMIN, SYS_PTRACE]), State::Pass),
            (u64::MAX, State::Pass),
        ] {
            assert_eq!(assess(Some(effective)).state, expected, "{effective:x}");
        }
        assert!(ends_agent(&[assess(Some(set(&[NET_ADMIN])))]) && !ends_agent(&[assess(Some(set(&[BPF])))]));
        assert_eq!(assess(None).state, State::Unknown);
        assert_eq!(parse("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
        assert_eq!(parse("Name:\tx\n"), None);
    }
}
