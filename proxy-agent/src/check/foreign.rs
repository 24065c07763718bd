//! Programs of others at the hooks that the agent uses: which are there, in which order they run, and whether they are those of
//! another service proxy.

use std::collections::{BTreeMap, BTreeSet};

use super::finding::Finding;

const PROGRAMS: &str = "foreign programs";
const PROXIES: &str = "other eBPF proxies";

/// A hook with programs of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hook {
    /// Like `connect4 of the cgroup root` or `ingress of eth0`.
    pub(super) at: String,
    pub(super) kind: Kind,
    /// Names of all programs, ours included, in the order they run.
    pub(super) programs: Vec<Program>,
}

/// The kind of hook, which decides whether a program of ours can be attached beside others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Cgroup {
        has_room: bool,
    },
    Tc,
    /// One program only.
    Xdp {
        is_wanted: bool,
        is_required: bool,
    },
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) name: String,
    pub(super) is_ours: bool,
}

impl Hook {
    fn others(&self) -> impl Iterator<Item = &str> {
        self.programs.iter().filter(|program| !program.is_ours).map(|program| program.name.as_str())
    }

    fn order(&self) -> String {
        let name = |program: &Program| {
            if program.is_ours { "ours".to_owned() } else { format!("`{}`", program.name) }
        };
        self.programs.iter().map(name).collect::<Vec<_>>().join(", ")
    }
}

/// The programs of a kernel's list of ids, with names; the pinned links identify ours.
pub(super) fn named(ids: &[u32], names: &BTreeMap<u32, String>, own: &BTreeSet<u32>) -> Vec<Program> {
    let program = |id: &u32| Program {
        name: names.get(id).filter(|name| !name.is_empty()).cloned().unwrap_or_else(|| format!("id {id}")),
        is_ours: own.contains(id),
    };
    ids.iter().map(program).collect()
}

pub(super) fn assess(hooks: &Result<Vec<Hook>, String>) -> Finding {
    /// A node may have hundreds of pods with the same programs.
    const NAMED: usize = 4;
    let hooks = match hooks {
        Ok(hooks) => hooks,
        Err(why) => return Finding::unknown(PROGRAMS, why),
    };
    let foreign: Vec<&Hook> = hooks.iter().filter(|hook| hook.others().next().is_some()).collect();
    if foreign.is_empty() {
        return Finding::pass(PROGRAMS, "none at the hooks that the agent uses");
    }
    // Mostly the same programs are at several hooks.
    let mut by_order: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for hook in &foreign {
        by_order.entry(hook.order()).or_default().push(&hook.at);
    }
    let seen: Vec<String> = by_order
        .iter()
        .map(|(order, at)| {
            let more = at.len().saturating_sub(NAMED);
            let names = at.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("at {names}{more}, in this order: {order}")
        })
        .collect();
    let seen = seen.join("; ");
    if let Some(full) = foreign.iter().find(|hook| hook.kind == Kind::Cgroup { has_room: false }) {
        let advice = format!(
            "the one at {} was attached without BPF_F_ALLOW_MULTI, which blocks ours: find its owner with `bpftool cgroup \
             tree` and remove it",
            full.at
        );
        return Finding::fail(PROGRAMS, seen, advice);
    }
    let blocked = |required| {
        foreign.iter().find(move |hook| {
            matches!(hook.kind, Kind::Xdp { is_wanted: true, is_required } if is_required == required)
        })
    };
    if let Some(hook) = blocked(true) {
        let advice = format!("{} takes one program: remove that one, or use --xdp auto or off", hook.at);
        return Finding::fail(PROGRAMS, seen, advice);
    }
    let advice = "programs at tc of ours run before those that are attached already, at cgroups after them. The \
        agent does not see packets that others translate or drop before ours; see docs/operations.md, Troubleshooting";
    Finding::warn(PROGRAMS, seen, advice)
}

/// Names that programs of other service proxies begin with.
const OTHER_PROXIES: [(&str, &str); 4] =
    [("cil_sock", "Cilium"), ("sock4_", "Cilium"), ("sock6_", "Cilium"), ("cali", "Calico")];

/// Those that translate service addresses in socket hooks, or at all.
pub(super) fn assess_proxies(hooks: &Result<Vec<Hook>, String>) -> Finding {
    let hooks = match hooks {
        Ok(hooks) => hooks,
        Err(why) => return Finding::unknown(PROXIES, why),
    };
    let owner =
        |name: &str| OTHER_PROXIES.iter().find(|(start, _)| name.starts_with(start)).map(|(_, who)| *who);
    let in_sockets = hooks.iter().filter(|hook| matches!(hook.kind, Kind::Cgroup { .. }));
    let found = in_sockets.flat_map(|hook| hook.others().map(move |name| (hook, name)));
    let found = found.into_iter().find_map(|(hook, name)| Some((hook, name, owner(name)?)));
    match found {
        None => Finding::pass(PROXIES, "no programs of Cilium or Calico at the socket hooks"),
        Some((hook, name, owner)) => Finding::warn(
            PROXIES,
            format!("`{name}` of {owner} at {}", hook.at),
            match owner {
                "Cilium" => {
                    "switch its service proxy off: kubeProxyReplacement=false, socketLB.enabled=false"
                }
                _ => {
                    "switch its service proxy off: bpfConnectTimeLoadBalancing=Disabled, or leave its eBPF data plane"
                }
            },
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::State;

    const CGROUP: Kind = Kind::Cgroup { has_room: true };

    fn hook(at: &str, kind: Kind, programs: &[&str]) -> Hook {
        let program = |name: &&str| Program { name: (*name).to_owned(), is_ours: *name == "ours" };
        Hook { at: at.to_owned(), kind, programs: programs.iter().map(program).collect() }
    }

    #[test]
    fn others_and_the_order() {
        let xdp = |is_wanted, is_required| Kind::Xdp { is_wanted, is_required };
        for (hooks, expected, part) in [
            (vec![], State::Pass, "none"),
            (vec![hook("ingress of eth0", Kind::Tc, &["ours"])], State::Pass, "none"),
            (
                vec![hook("ingress of eth0", Kind::Tc, &["ours", "cil_from_netdev"])],
                State::Warn,
                "ours, `cil_from_netdev`",
            ),
            (vec![hook("connect4", CGROUP, &["x"])], State::Warn, "`x`"),
            (vec![hook("connect4", Kind::Cgroup { has_room: false }, &["x"])], State::Fail, "`x`"),
            (vec![hook("XDP of eth0", xdp(true, true), &["x"])], State::Fail, "XDP of eth0"),
            (vec![hook("XDP of eth0", xdp(true, false), &["x"])], State::Warn, "XDP of eth0"),
            (vec![hook("XDP of eth0", xdp(true, true), &["ours"])], State::Pass, "none"),
        ] {
            let finding = assess(&Ok(hooks));
            assert_eq!(finding.state, expected, "{finding:?}");
            assert!(finding.seen.contains(part), "{finding:?}");
        }
        assert_eq!(assess(&Err("no permission".into())).state, State::Unknown);
        let same = assess(&Ok(vec![hook("connect4", CGROUP, &["x"]), hook("connect6", CGROUP, &["x"])]));
        assert_eq!(same.seen, "at connect4, connect6, in this order: `x`");
        let names: Vec<String> = (0..100).map(|number| format!("egress of veth{number:02}")).collect();
        let many = assess(&Ok(names.iter().map(|name| hook(name, Kind::Tc, &["x"])).collect()));
        assert!(many.seen.contains("veth03 and 96 more, in this order: `x`"), "{}", many.seen);
    }

    #[test]
    fn service_proxies_by_their_programs() {
        for (hook, expected) in [
            (hook("connect4", CGROUP, &["cil_sock4_conne"]), State::Warn),
            (hook("connect4", CGROUP, &["calico_connect_"]), State::Warn),
            (hook("connect4", CGROUP, &["sd_fw_egress"]), State::Pass),
            (hook("connect4", CGROUP, &["ours"]), State::Pass),
            (hook("ingress of eth0", Kind::Tc, &["cil_from_netdev"]), State::Pass),
        ] {
            assert_eq!(assess_proxies(&Ok(vec![hook.clone()])).state, expected, "{hook:?}");
        }
    }

    #[test]
    fn programs_without_a_name_have_their_id() {
        let names = [(1, "a".to_owned()), (2, String::new())].into();
        let programs = named(&[2, 1, 3], &names, &[1].into());
        let shown: Vec<(&str, bool)> =
            programs.iter().map(|program| (program.name.as_str(), program.is_ours)).collect();
        assert_eq!(shown, [("id 2", false), ("a", true), ("id 3", false)]);
    }
}
