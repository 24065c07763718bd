//! The conformance table on the pure core.

use std::{collections::BTreeSet, fs, io, path::Path};

use crate::conformance;
use proxy_conformance::{E2E, Proven, cases, rules};

const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

#[test]
fn every_rule_holds_in_the_core() {
    let failures: Vec<_> = cases()
        .iter()
        .flat_map(|(rule, case)| {
            let family = if case.ipv4 { "IPv4" } else { "IPv6" };
            let failures = conformance::failures(rule, case);
            failures.into_iter().map(move |failure| format!("{} ({family}): {failure}", rule.id))
        })
        .collect();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn ports_of_a_service_do_not_share_a_clients_endpoint() {
    let found = conformance::endpoints_with_affinity().unwrap();
    assert!(found.iter().flatten().all(|endpoints| endpoints.len() == 1), "{found:?}");
    assert!(found.iter().any(|[tcp, udp]| tcp != udp), "{found:?}");
    assert!(found.iter().any(|[tcp, _]| *tcp != found[0][0]), "clients do not either: {found:?}");
}

/// All `.rs` files below a folder, as one text.
fn sources(dir: &Path) -> io::Result<String> {
    let mut text = String::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            text += &sources(&path)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text += &fs::read_to_string(path)?;
        }
    }
    Ok(text)
}

#[test]
fn named_tests_exist() {
    let rules = rules();
    let ids: BTreeSet<_> = rules.iter().map(|rule| rule.id).collect();
    assert_eq!(ids.len(), rules.len(), "two rules have one id");

    let of_e2e = |proven| match proven {
        Proven::Tests(tests) => tests,
        _ => &[],
    };
    let tests =
        rules.iter().flat_map(|rule| rule.tests()).chain(E2E.iter().flat_map(|test| of_e2e(test.proven)));
    let packages =
        [("proxy-agent", "proxy-agent"), ("proxy-common", "proxy-common"), ("proxy-tests", "tests")];
    let texts = packages.map(|(package, dir)| (package, sources(&Path::new(WORKSPACE).join(dir)).unwrap()));
    for test in tests {
        let (package, function) = test.split_once(": ").unwrap();
        let (_, text) = texts.iter().find(|(name, _)| *name == package).unwrap();
        let is_there = ["(", "<"].iter().any(|end| text.contains(&format!("fn {function}{end}")));
        assert!(is_there, "test {test} does not exist");
    }
    for test in E2E {
        if let Proven::Rules(named) = test.proven {
            named.iter().for_each(|id| assert!(ids.contains(id), "{}: rule {id} does not exist", test.name));
        }
    }
}
