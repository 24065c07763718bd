//! Far more services than the maps have room for at first: they grow while they are used. Needs root.
//!
//! Set-up: two nodes with two routed pods each, `--pod-datapath both`; a load runs while manifests bring hundreds of
//! Services, and agents are killed while maps grow.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    ops::Range,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use proxy_harness::{
    cluster::{Cluster, Endpoint, Host, Service, ServicePort, until},
    traffic::{Entry, Loads, Scenario, TARGET_PORT},
};

/// Enough for an agent that is not optimised, on a busy machine.
const SOON: Duration = Duration::from_secs(120);
/// Ports of each service: with all their endpoints more than new maps have room for.
const PORTS: u16 = 100;
const SERVICES: u8 = 44;
const ENDPOINTS: u64 = 4;
/// Maps that must grow by it.
const MAPS: [&str; 2] = ["service_names", "backends_v4"];

fn vip(service: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 97, 0, service)
}

/// Services of many ports, as one file.
fn apply(cluster: &Cluster, file: &str, services: Range<u8>) -> Result<()> {
    let port = |port: u16| ServicePort {
        name: format!("p{port}"),
        protocol: "TCP",
        port,
        target_port: TARGET_PORT,
        node_port: None,
    };
    let service = |number: u8| Service {
        ports: (1..=PORTS).map(port).collect(),
        ..Service::new(&format!("many-{number}"), &[vip(number).into()])
    };
    let services: Vec<Service> = services.map(service).collect();
    let pods = ["pod-1a", "pod-1b", "pod-2a", "pod-2b"].map(|name| cluster.pod(name).map(Endpoint::from));
    cluster.manifests.apply_all(file, &services, &pods.into_iter().collect::<Result<Vec<_>>>()?)
}

fn metrics(host: &Host) -> Result<String> {
    Ok(host.netns.get("127.0.0.1:10249", "/metrics")?.body)
}

fn value(text: &str, metric: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
    line.with_context(|| format!("no {metric}"))?.trim().parse().with_context(|| metric.to_owned())
}

/// This many of these services are served, with all their endpoints.
fn synced(scenario: &Scenario, services: u8) -> Result<()> {
    let host = &scenario.cluster.node(0)?.host;
    let ports = u64::from(services) * u64::from(PORTS);
    until(SOON, &format!("{ports} service ports"), || {
        let text = metrics(host).unwrap_or_default();
        // The scenario's services come on top.
        let is =
            |metric, count| value(&text, metric).is_ok_and(|value| (count..count + 100).contains(&value));
        let synced = is("proxy_agent_service_ports", ports) && is("proxy_agent_backends", ENDPOINTS * ports);
        Ok(synced.then_some(()))
    })
    .with_context(|| scenario.agents[0].log())
}

/// Connects to each port of these services once from a pod, whose packets are translated at its interface. Not from the one with the
/// loads: one of so many connections may have the source port and the endpoint of a connection that sockets serve (docs/limits.md).
fn answer(scenario: &Scenario, services: Range<u8>) -> Result<()> {
    scenario.cluster.pod("pod-1b")?.netns.run(|| {
        for address in services.flat_map(|service| (1..=PORTS).map(move |port| (vip(service), port))) {
            TcpStream::connect_timeout(&SocketAddr::from(address), Duration::from_secs(2))
                .with_context(|| format!("{address:?}"))?;
        }
        Ok(())
    })
}

/// The capacities of the pinned maps, in entries.
fn capacities(scenario: &Scenario) -> Result<BTreeMap<&'static str, u64>> {
    let text = metrics(&scenario.cluster.node(0)?.host)?;
    let capacity = |map| Ok((map, value(&text, &format!("proxy_agent_map_capacity{{map=\"{map}\"}}"))?));
    MAPS.into_iter().map(capacity).collect()
}

/// Kills the agent when larger maps are there (`is_there`), while it loads programs for them; or when they have just taken the place of
/// the smaller ones, while it gives links those programs.
fn kill_while_growing(scenario: &mut Scenario, is_there: bool) -> Result<()> {
    let larger = scenario.cluster.node(0)?.bpffs.join("maps-larger");
    let wait = |wanted: bool| {
        let deadline = Instant::now() + SOON;
        while larger.exists() != wanted {
            ensure!(Instant::now() < deadline, "maps do not grow");
            std::thread::yield_now();
        }
        Ok(())
    };
    wait(true)?;
    if !is_there {
        wait(false)?;
    }
    scenario.agents[0].kill()
}

#[test]
fn maps_grow_while_they_are_used() -> Result<()> {
    let mut scenario = Scenario::start(Cluster::builder().nodes(2), "both", &[])?;
    let small = capacities(&scenario)?;
    // By packets and, where the pod's sockets are served, by sockets.
    let loads = {
        let cluster = &scenario.cluster;
        let (pod, node) = (cluster.pod("pod-1a")?, &cluster.node(0)?.host);
        let ways = [(pod, Entry::ClusterIp), (node, Entry::ClusterIp), (&cluster.client, Entry::NodePort(0))];
        // The agent, which is not optimised here, takes all processors to write 13,000 ports.
        Loads::patient(&scenario, &ways, Duration::from_secs(10))?
    };
    loads.wait_for(20)?;

    // Killed while it grows, the next agent starts well, and nothing is lost.
    let mut before = small;
    for (round, is_there) in [(1, true), (2, false)] {
        let new = (round - 1) * SERVICES..round * SERVICES;
        apply(&scenario.cluster, &format!("many-{round}.yaml"), new.clone())?;
        kill_while_growing(&mut scenario, is_there)?;
        loads.wait_for(20)?;
        scenario.agents[0].start()?;
        synced(&scenario, round * SERVICES)?;
        answer(&scenario, new)?;
        let large = capacities(&scenario)?;
        ensure!(MAPS.iter().all(|map| large[map] >= 2 * before[map]), "{before:?} {large:?}");
        before = large;
    }
    // Without being killed; a restart keeps the entries that fit.
    apply(&scenario.cluster, "many-3.yaml", 2 * SERVICES..3 * SERVICES)?;
    synced(&scenario, 3 * SERVICES)?;
    answer(&scenario, 2 * SERVICES..3 * SERVICES)?;
    let text = metrics(&scenario.cluster.node(0)?.host)?;
    ensure!(value(&text, "proxy_agent_service_failures")? == 0, "{text}");
    ensure!(value(&text, "proxy_agent_map_growths_total")? > 0, "{text}");
    let large = capacities(&scenario)?;
    scenario.agents[0].kill()?;
    loads.wait_for(20)?;
    scenario.agents[0].start()?;
    ensure!(capacities(&scenario)? == large, "{large:?} {:?}", capacities(&scenario)?);
    answer(&scenario, 0..1)?;
    // New maps of a release with other layouts have room for all ids, and grow where services need more.
    scenario.agents[0].terminate()?;
    scenario.agents[0].set_other_layouts("services");
    scenario.agents[0].start()?;
    synced(&scenario, 3 * SERVICES)?;
    answer(&scenario, 0..1)?;
    loads.none_failed()
}
