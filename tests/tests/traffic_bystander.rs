//! Traffic that is no Service's, on nodes as CNIs leave them: with the agent it fares as without. Needs root.
//!
//! Each test builds a cluster in one set-up, runs the battery of conversations without an agent, then again while the agent of node-1
//! runs, and compares. See `tests/src/bystander` for both.

use std::time::Duration;

use anyhow::{Result, ensure};
use proxy_tests::{
    bystander::{Battery, Fixture, Setup, equal, steady},
    cluster::{Masquerade, Protocol},
    traffic::{Entry, SINGLE, WEB},
};

/// The battery without and with the agent. Whatever has a masquerade rule must get everything through without.
fn same_with_agent(setup: Setup) -> Result<()> {
    let fixture = Fixture::new(setup)?;
    let before = Battery::run(&fixture, 0)?;
    let failed: Vec<_> = before.iter().filter(|outcome| outcome.succeeded != outcome.tried).collect();
    // The policy blocks what goes from node-1 to pods of node-2, or is an answer to them.
    ensure!(setup == Setup::BlockPolicy || failed.is_empty(), "without an agent: {failed:#?}");
    let mut agent = fixture.start_agent(&[])?;
    let with = Battery::run(&fixture, 1)?;
    agent.terminate()?;
    // The programs stay when the agent has ended.
    let after = Battery::run(&fixture, 2)?;
    // What is written once is read in both rounds, whatever the round's port.
    let shown = |outcomes: Vec<_>| -> Vec<_> {
        let port = |text: &str| ["9000", "9001", "9002"].iter().fold(text.to_owned(), |text, port| text.replace(port, "PORT"));
        outcomes.into_iter().map(|mut outcome: proxy_tests::bystander::Outcome| {
            outcome.what = port(&outcome.what);
            outcome
        }).collect()
    };
    let (before, with, after) = (shown(before), shown(with), shown(after));
    equal(&before, &with)?;
    equal(&before, &after)
}

#[test]
fn with_masquerade() {
    same_with_agent(Setup::Masquerade(Masquerade::Plain)).unwrap();
}

#[test]
fn with_masquerade_random() {
    same_with_agent(Setup::Masquerade(Masquerade::Random)).unwrap();
}

#[test]
fn with_masquerade_fully_random() {
    same_with_agent(Setup::Masquerade(Masquerade::FullyRandom)).unwrap();
}

#[test]
fn with_host_ports() {
    same_with_agent(Setup::HostPorts).unwrap();
}

#[test]
fn with_another_service_proxy() {
    same_with_agent(Setup::OtherProxy).unwrap();
}

#[test]
fn with_an_ipsec_policy_that_blocks() {
    same_with_agent(Setup::BlockPolicy).unwrap();
}
