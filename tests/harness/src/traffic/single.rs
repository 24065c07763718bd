//! One endpoint of `SINGLE` after the other, as seen by clients and the node itself.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{SINGLE, Scenario};
use crate::cluster::{Agent, Failures, Host, Protocol, until};

const SOON: Duration = Duration::from_secs(10);

/// The endpoints one after the other, so that each answers: local to node-1, then remote.
pub const ENDPOINTS: [&str; 2] = ["pod-1b", "pod-2a"];

/// The addresses answer at the port, TCP and UDP, with each endpoint of `SINGLE`.
pub fn served(
    scenario: &Scenario,
    client: &Host,
    addresses: &[&str],
    port: u16,
    failures: &mut Failures,
) -> Result<()> {
    for endpoint in ENDPOINTS {
        scenario.apply(SINGLE, &[scenario.cluster.pod(endpoint)?])?;
        for address in addresses {
            let to = SocketAddr::new(address.parse()?, port);
            for protocol in Protocol::ALL {
                failures.case(format!("{} -> {to}, {protocol:?}, to {endpoint}", client.name), || {
                    answers(client, to, protocol, endpoint)
                });
            }
        }
    }
    Ok(())
}

/// Soon this endpoint answers, and then every time, from the address that the client used.
pub fn answers(client: &Host, to: SocketAddr, protocol: Protocol, endpoint: &str) -> Result<()> {
    let call = client.call(to).protocol(protocol);
    until(SOON, "the endpoint", || {
        let reply = call.clone().timeout(Duration::from_millis(500)).once()?;
        Ok(reply.answer.filter(|answer| answer.server == endpoint))
    })?;
    for reply in call.times(10)? {
        let answer = reply.answer.with_context(|| format!("{:?}", reply.error))?;
        ensure!(answer.server == endpoint, "{} answers", answer.server);
        ensure!(reply.peer == Some(to), "the client sees {:?} as its peer", reply.peer);
    }
    Ok(())
}

/// Reports the failures, with the agents' logs and counters.
pub fn conclude(failures: Failures, agents: &[Agent]) -> Result<()> {
    let verdict = failures.verdict();
    if verdict.is_err() {
        for agent in agents {
            eprintln!("{}\n{}", agent.log(), agent.debug(&["counters"]).unwrap_or_default());
        }
    }
    verdict
}

/// The same, and checks that a firewall which drops packets that conntrack marks INVALID had none to drop.
pub fn conclude_with_conntrack(scenario: &Scenario, mut failures: Failures) -> Result<()> {
    failures.case("nothing is INVALID to conntrack", || {
        for node in &scenario.cluster.nodes {
            let dropped = node.invalid_packets()?;
            ensure!(dropped == 0, "{dropped} packets on {}", node.host.name);
        }
        Ok(())
    });
    conclude(failures, &scenario.agents)
}
