//! The conformance table as real traffic, by each way in which pods can be served.

use proxy_tests::conformance;

#[test]
fn every_rule_holds_by_sockets() {
    conformance::run("socket").unwrap_or_else(|error| panic!("{error:#}"));
}

#[test]
fn every_rule_holds_by_packets() {
    conformance::run("tc").unwrap_or_else(|error| panic!("{error:#}"));
}
