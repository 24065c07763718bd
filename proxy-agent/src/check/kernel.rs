//! The kernel's release, and which of the features that the agent uses it has.

use super::{
    finding::Finding,
    trial::{Failure, Refused, Trial},
};
use crate::datapath::{Features, locked_memory::LockedMemory};

const KERNEL: &str = "kernel";
const MEMLOCK: &str = "RLIMIT_MEMLOCK";
const FEATURES: &str = "kernel features";
const PROGRAMS: &str = "programs";

/// The oldest release that is supported.
const OLDEST: (u32, u32) = (5, 10);

/// The first two numbers of a release.
pub(super) fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-', '+']).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

pub(super) fn assess(release: &str) -> Finding {
    match parse(release) {
        None => Finding::unknown(KERNEL, format!("the release `{release}` has no version number")),
        Some(version) if version < OLDEST => Finding::fail(
            KERNEL,
            format!("Linux {release}"),
            format!("upgrade to Linux {}.{} or newer", OLDEST.0, OLDEST.1),
        ),
        Some(_) => Finding::pass(KERNEL, format!("Linux {release}")),
    }
}

/// `memory`: after it was raised as far as the agent would.
pub(super) fn locked_memory(memory: LockedMemory) -> Finding {
    /// More than the maps take with default sizes, in bytes.
    const ENOUGH: u64 = 1 << 30;
    match memory {
        LockedMemory::NotCounted => {
            Finding::skipped(MEMLOCK, "from Linux 5.11 on maps do not count as locked memory")
        }
        LockedMemory::Unlimited => Finding::pass(MEMLOCK, "unlimited, as the agent makes it"),
        LockedMemory::Limited(limit) if limit >= ENOUGH => {
            Finding::pass(MEMLOCK, format!("limit {limit} bytes"))
        }
        LockedMemory::Limited(limit) => Finding::fail(
            MEMLOCK,
            format!(
                "limit {limit} bytes, which this process cannot raise; before Linux 5.11 maps count as locked memory"
            ),
            "grant CAP_SYS_RESOURCE (deploy/base/daemonset.yaml), with which the agent raises it; or start it without a limit: \
             LimitMEMLOCK=infinity for the container runtime",
        ),
    }
}

pub(super) fn features(trial: &Result<Trial, Failure>) -> Finding {
    match trial {
        Ok(trial) => Finding::pass(FEATURES, describe(trial.features)),
        Err(why) => Finding::unknown(FEATURES, format!("not tried: {why}")),
    }
}

fn describe(features: Features) -> String {
    let Features { set_retval, sk_storage, csum_ipv6, fib_src, tcx } = features;
    let all = [
        (tcx, "TCX links (6.6)"),
        (set_retval, "bpf_set_retval (5.18)"),
        (sk_storage, "socket storage in socket hooks"),
        (fib_src, "source addresses from the FIB (6.7)"),
        (csum_ipv6, "IPv6 checksum updates (6.16)"),
    ];
    let names = |wanted: bool| {
        let named = all.iter().filter(|(has, _)| *has == wanted).map(|(_, name)| *name);
        named.collect::<Vec<_>>().join(", ")
    };
    match (names(true), names(false)) {
        (all, none) if none.is_empty() => all,
        (none, all) if none.is_empty() => {
            format!("none of the optional ones: {all}; the agent works without")
        }
        (there, missing) => format!("{there}; the agent works without {missing}"),
    }
}

/// Whether the verifier takes the programs.
pub(super) fn programs(trial: &Result<Trial, Failure>, version: Option<(u32, u32)>) -> Finding {
    let trial = match trial {
        Ok(trial) => trial,
        Err(Failure::Impossible(why)) => return Finding::unknown(PROGRAMS, format!("not tried: {why}")),
        Err(Failure::Refused(why)) => {
            return Finding::fail(
                PROGRAMS,
                format!("the kernel does not take them: {why}"),
                "see `capabilities`, `kernel` and `RLIMIT_MEMLOCK`; in a container run privileged",
            )
            .that_ends_the_agent();
        }
    };
    // Packets in several buffers.
    let is_expected =
        |refused: &Refused| refused.program == "uplink_xdp_frags" && version.is_some_and(|it| it < (5, 18));
    let refused: Vec<&Refused> = trial.refused.iter().filter(|refused| !is_expected(refused)).collect();
    if refused.is_empty() {
        return Finding::pass(PROGRAMS, format!("the kernel takes all {}", trial.loaded));
    }
    let names: Vec<String> =
        refused.iter().map(|refused| format!("{} ({})", refused.program, refused.why)).collect();
    let finding = Finding::fail(
        PROGRAMS,
        format!("the kernel refuses {}", names.join(", ")),
        "the verifier of this kernel differs from those that are tested (docs/kernels.md): report it with the kernel's release",
    );
    // Without those of sockets it does not start; without those of interfaces it serves what it can.
    let is_of_interface = |name: &str| ["uplink_", "pod_"].iter().any(|prefix| name.starts_with(prefix));
    if refused.iter().all(|refused| is_of_interface(&refused.program)) {
        finding
    } else {
        finding.that_ends_the_agent()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::{State, ends_agent};

    #[test]
    fn releases() {
        for (release, expected) in [
            ("5.10.0-30-amd64", State::Pass),
            ("5.9.16", State::Fail),
            ("4.19.0+", State::Fail),
            ("6.18.3", State::Pass),
            ("6.1-rc3", State::Pass),
            ("unknown", State::Unknown),
        ] {
            assert_eq!(assess(release).state, expected, "{release}");
        }
    }

    #[test]
    fn locked_memory_counts_on_old_kernels() {
        for (memory, expected) in [
            (LockedMemory::NotCounted, State::Skipped),
            (LockedMemory::Unlimited, State::Pass),
            (LockedMemory::Limited(65_536), State::Fail),
            (LockedMemory::Limited(8 << 30), State::Pass),
        ] {
            assert_eq!(locked_memory(memory).state, expected, "{memory:?}");
        }
    }

    fn trial(refused: &[&str]) -> Result<Trial, Failure> {
        let features =
            Features { set_retval: true, sk_storage: false, csum_ipv6: false, fib_src: false, tcx: true };
        let refused =
            refused.iter().map(|name| Refused { program: (*name).to_owned(), why: "because".to_owned() });
        Ok(Trial { features, loaded: 3, refused: refused.collect(), connections: Ok(Vec::new()) })
    }

    #[test]
    fn features_that_are_missing_are_named_and_no_fault() {
        let finding = features(&trial(&[]));
        assert_eq!(finding.state, State::Pass);
        let (there, missing) = finding.seen.split_once("; the agent works without").unwrap();
        assert!(there.contains("TCX") && missing.contains("socket storage"), "{there} | {missing}");
        assert_eq!(features(&Err(Failure::Refused("no permission".into()))).state, State::Unknown);
    }

    #[test]
    fn refused_programs() {
        for (refused, version, expected) in [
            (&[][..], (6, 1), State::Pass),
            (&["uplink_xdp_frags"], (5, 10), State::Pass),
            (&["uplink_xdp_frags"], (6, 1), State::Fail),
            (&["pod_ingress"], (5, 10), State::Fail),
        ] {
            assert_eq!(programs(&trial(refused), Some(version)).state, expected, "{refused:?}");
        }
        for (refused, expected) in [(&["uplink_ingress"][..], false), (&["uplink_ingress", "connect4"], true)]
        {
            assert_eq!(ends_agent(&[programs(&trial(refused), None)]), expected, "{refused:?}");
        }
        for (failure, expected) in [
            (Failure::Refused("no".into()), State::Fail),
            (Failure::Impossible("no mount namespace".into()), State::Unknown),
        ] {
            assert_eq!(programs(&Err(failure), None).state, expected);
        }
    }
}
