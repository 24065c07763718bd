//! `docs/conformance.md`, written from the tables.

use std::fmt::Write as _;

use super::{E2E, Proof, Proven, Rule, Topic, rules};

const HEAD: &str = "\
# Conformance

What a Service proxy must do, rule by rule, and how each rule is shown to hold. The reference is kube-proxy 1.36 with its
nftables backend. This file is written from the tables in `tests/conformance` by
`cargo xtask codegen`.

- **core**: objects through the agent's own conversion and planner into tables in memory, every connection decided by the code that
  runs in the kernel (`unit/rules.rs`: `every_rule_holds_in_the_core`), IPv4 and IPv6, sockets and packets.
- **traffic**: the same rows as real TCP, UDP and ICMP in a cluster of three nodes with real agents (`traffic/conformance.rs`:
  `every_rule_holds_by_sockets`, `every_rule_holds_by_packets`).
- Else the tests that show it are named.
";

/// The document.
pub fn document() -> String {
    let mut text = HEAD.to_owned();
    let rules = rules();
    let count = |wanted: fn(&Rule) -> bool| rules.iter().filter(|rule| wanted(rule)).count();
    let _ = writeln!(
        text,
        "\n{} rules: {} in both runs, {} in the core and by other tests, {} by other tests, {} not supported; {} deviations, each \
         with its reason.",
        rules.len(),
        count(|rule| matches!(rule.proof, Proof::Steps(_) | Proof::StepsOfIpv4(_))),
        count(|rule| matches!(rule.proof, Proof::CoreSteps(..))),
        count(|rule| matches!(rule.proof, Proof::Tests(_))),
        count(|rule| matches!(rule.proof, Proof::Absent)),
        count(|rule| rule.deviation.is_some()),
    );
    for topic in Topic::ALL {
        let _ = writeln!(text, "\n## {}\n\n| Rule | | Shown by |\n|---|---|---|", topic.title());
        for rule in rules.iter().filter(|rule| rule.topic == topic) {
            let _ = writeln!(text, "| `{}` | {} | {} |", rule.id, text_of(rule), shown(rule));
        }
    }
    text += "\n## Upstream's end-to-end tests\n\nKubernetes' own tests in `test/e2e/network` that concern Services, those of \
             Conformance (C) first.\n\n| Test | | Shown by |\n|---|---|---|\n";
    for test in E2E {
        let mark = if test.conformance { "C" } else { "" };
        let _ = writeln!(text, "| {}: {} | {mark} | {} |", test.file, test.name, proven(test.proven));
    }
    text
}

fn text_of(rule: &Rule) -> String {
    match rule.deviation {
        Some(reason) => format!("{} **Deviation:** {reason}", rule.text),
        None => rule.text.to_owned(),
    }
}

fn shown(rule: &Rule) -> String {
    match rule.proof {
        Proof::Steps(_) => "core, traffic".to_owned(),
        Proof::StepsOfIpv4(_) => "core, traffic (IPv4)".to_owned(),
        Proof::CoreSteps(_, tests) => format!("core, {}", code(tests)),
        Proof::Tests(tests) => code(tests),
        Proof::Absent => "not supported".to_owned(),
    }
}

fn proven(proven: Proven) -> String {
    match proven {
        Proven::Rules(rules) => format!("rule {}", code(rules)),
        Proven::Tests(tests) => code(tests),
        Proven::NotOurs(why) => format!("Not ours. {why}"),
        Proven::No(why) => format!("Not covered. {why}"),
    }
}

fn code(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
