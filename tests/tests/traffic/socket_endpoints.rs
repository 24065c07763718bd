//! Connected UDP sockets: their records, and that they leave endpoints that are gone.
//!
//! Set-up: two nodes with two routed pods each, pods served by sockets, an agent per node; a load runs over one
//! connected UDP socket while endpoints change.

use std::{env, time::Duration};

use anyhow::{Context as _, Result, ensure};
use proxy_agent::datapath::{maps::MapFamily, pins::Pins};
use proxy_common::{V4, V6};
use proxy_harness::{
    cluster::{Agent, Cluster, Host, Load, Protocol, until},
    traffic::{Entry, HOST_NETWORK, SINGLE, Scenario, TARGET_PORT, WEB},
};

const SOON: Duration = Duration::from_secs(10);

fn start() -> Result<Scenario> {
    Scenario::start(Cluster::builder().nodes(2), "socket", &["-v"])
}

fn entries<F: MapFamily>(pins: &Pins) -> Result<usize> {
    Ok(F::sockets(pins)?.keys()?.len())
}

#[test]
fn connected_sockets_leave_nothing_behind() -> Result<()> {
    let scenario = start()?;
    let pod = scenario.cluster.pod("pod-1a")?;
    let pins = Pins::new(&scenario.cluster.nodes[0].bpffs);
    let mut kept = Vec::new();
    for is_v4 in [true, false] {
        let call = pod.call(scenario.target(Entry::ClusterIp, WEB, is_v4)?).protocol(Protocol::ConnectedUdp);
        call.servers(50)?;
        kept.push(call.clone().keep_alive().load()?);
        if is_v4 {
            kept.push(call.v4_mapped().keep_alive().load()?);
        }
    }
    kept.iter().try_for_each(|load| load.wait_for(1))?;
    ensure!((entries::<V4>(&pins)?, entries::<V6>(&pins)?) == (0, 0), "entries of connected sockets");
    // Sockets that are not connected keep theirs as well, as long as they live.
    pod.call(scenario.target(Entry::ClusterIp, WEB, true)?).protocol(Protocol::Udp).once()?;
    ensure!((entries::<V4>(&pins)?, entries::<V6>(&pins)?) == (0, 0), "entries of unconnected sockets");
    // All but the first two.
    let all = [WEB, SINGLE, HOST_NETWORK].map(|service| scenario.target(Entry::ClusterIp, service, true));
    let socket = pod.park(&all.into_iter().collect::<Result<Vec<_>>>()?)?;
    ensure!(entries::<V4>(&pins)? == 2);
    let listed = scenario.agents.first().context("an agent")?.debug(&["sockets"])?;
    for service in ["default/web:", "default/single:", "default/host-network:"] {
        ensure!(listed.matches(service).count() == 1, "{service} in {listed}");
    }
    socket.receive().map(drop)
}

/// Waits until the load has its answers from this endpoint.
fn served_by(load: &Load, host: &Host) -> Result<()> {
    until(SOON, &format!("answers from {}", host.name), || {
        let report = load.report()?;
        Ok(report.last_server.is_some_and(|server| server.ip() == host.v4).then_some(()))
    })
    .with_context(|| format!("{:?}", load.report()))
}

/// Each pod has its own network namespace. The pod of the removed endpoint would still answer.
#[test]
fn connected_sockets_leave_an_endpoint_that_is_gone() -> Result<()> {
    let mut scenario = start()?;
    let backends: Vec<Host> = scenario.backends(WEB)?.into_iter().cloned().collect();
    scenario.apply(WEB, &[&backends[0]])?;
    let pod = scenario.cluster.pod("pod-1a")?;
    let vip = scenario.target(Entry::ClusterIp, WEB, true)?;
    let call = pod.call(vip).protocol(Protocol::ConnectedUdp).keep_alive().every(Duration::from_millis(10));
    until(SOON, "one endpoint", || {
        Ok(call.servers(20)?.iter().all(|server| *server == backends[0].name).then_some(()))
    })?;
    let through_service = call.load()?;
    // One that asked for the endpoint itself, with the same address at its end.
    let direct = pod
        .call((backends[0].v4, TARGET_PORT).into())
        .protocol(Protocol::ConnectedUdp)
        .keep_alive()
        .every(Duration::from_millis(10))
        .load();
    served_by(&through_service, &backends[0])?;
    scenario.apply(WEB, &[&backends[1]])?;
    served_by(&through_service, &backends[1])?;

    scenario.agents.iter_mut().try_for_each(Agent::kill)?;
    scenario.apply(WEB, &[&backends[2]])?;
    through_service.wait_for(20)?;
    served_by(&through_service, &backends[1]).context("no agent runs, yet the change took effect")?;
    scenario.agents.iter_mut().try_for_each(Agent::start)?;
    served_by(&through_service, &backends[2]).context("after a restart")?;

    let report = direct?.stop()?;
    ensure!(report.failed == 0 && report.ok > 0, "{report:?}");
    // An error for each endpoint that it lost; never a silence.
    let report = through_service.stop()?;
    // In a busy machine with an emulated processor a third one was seen, twice in a dozen runs; why is not known.
    let most = if env::var_os("PROXY_TESTS_EMULATED").is_some() { 3 } else { 2 };
    ensure!(
        (2..=most).contains(&report.failed),
        "{report:?}, the agent's log:\n{}",
        scenario.agents[0].log()
    );
    Ok(())
}
