//! Ten thousand connections of a pod to outside: kernel NAT gives them ports of every kind, and none is a Service's. Needs root.
//!
//! Set-up: two nodes with masquerade of one kind, an agent on the first; ten thousand connections of `pod-1a` to a
//! server outside.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use proxy_bystander::{Fixture, OUTSIDE_PORTS, Setup, all_ok};
use proxy_harness::cluster::{Masquerade, Protocol};

const MANY: u64 = 10_000;

fn none_fails(masquerade: Masquerade) -> Result<()> {
    let fixture = Fixture::new(Setup::Masquerade(masquerade))?;
    let cluster = &fixture.scenario.cluster;
    let pod = cluster.pod("pod-1a")?;
    let _agent = fixture.start_agent(&[])?;
    for ipv4 in [true, false] {
        let ip = if ipv4 { cluster.client.v4.into() } else { cluster.client.v6.into() };
        for protocol in [Protocol::Tcp, Protocol::ConnectedUdp] {
            let to = SocketAddr::new(ip, OUTSIDE_PORTS[0]);
            let call = pod.call(to).protocol(protocol).timeout(Duration::from_millis(1500));
            let report = call.many(MANY, 16)?;
            println!("{masquerade:?}, {to}, {protocol:?}: {report:?}");
            all_ok(&report, MANY).with_context(|| format!("{to}, {protocol:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn with_masquerade() -> Result<()> {
    none_fails(Masquerade::Plain)
}

#[test]
fn with_masquerade_random() -> Result<()> {
    none_fails(Masquerade::Random)
}

#[test]
fn with_masquerade_fully_random() -> Result<()> {
    none_fails(Masquerade::FullyRandom)
}
