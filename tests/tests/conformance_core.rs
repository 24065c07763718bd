//! The conformance table on the pure core, and the document written from it.

mod conformance;

use proxy_tests::conformance::{rules, sites};

#[test]
fn every_rule_holds_in_the_core() {
    let failures: Vec<_> = sites()
        .iter()
        .flat_map(|(rule, site)| {
            let family = if site.ipv4 { "IPv4" } else { "IPv6" };
            let failures = conformance::failures(rule, site);
            failures.into_iter().map(move |failure| format!("{} ({family}): {failure}", rule.id))
        })
        .collect();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(rules().len() > 50, "where is the table?");
}
