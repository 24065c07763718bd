//! The conformance table as real traffic, by each way in which pods can be served.
//!
//! Set-up: three nodes with two routed pods each, an agent per node, `--pod-datapath socket` in one test and `tc` in
//! the other; the objects of all rules are there at once, each under its own addresses.

#[test]
fn every_rule_holds_by_sockets() {
    proxy_conformance::run("socket").unwrap_or_else(|error| panic!("{error:#}"));
}

#[test]
fn every_rule_holds_by_packets() {
    proxy_conformance::run("tc").unwrap_or_else(|error| panic!("{error:#}"));
}
