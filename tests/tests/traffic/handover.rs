//! Two agents on one node: one serves, the other waits, and takes over without a failed request. Needs root.
//!
//! Set-up: two nodes with two routed pods each, pods served by sockets. Loads run from a pod and from outside while
//! further agents start on the first node.

use std::{
    fs,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use proxy_harness::{
    cluster::{Cluster, Endpoint, Host, Netns, Service, until},
    rounds,
    traffic::{Entry, Loads, SERVICE_PORT, Scenario, TARGET_PORT, WEB, cluster_ip, node_port},
};

/// Enough for a verifier on a busy machine.
const SOON: Duration = Duration::from_secs(60);
const HEALTHZ: &str = "127.0.0.1:10256";

fn is_ready(netns: &Netns, address: &str) -> bool {
    netns.get(address, "/healthz").is_ok_and(|answer| answer.status == 200)
}

/// The view of a load balancer that asks often: every status but 200.
fn ask_often(netns: &Netns, end: &AtomicBool) -> (usize, Vec<String>) {
    let (mut asked, mut failures) = (0, Vec::new());
    while !end.load(Ordering::Relaxed) {
        asked += 1;
        match netns.get(HEALTHZ, "/healthz") {
            Ok(answer) if answer.status == 200 => {}
            other => failures.push(format!("{other:?}")),
        }
        thread::sleep(Duration::from_millis(5));
    }
    (asked, failures)
}

fn loads(scenario: &Scenario) -> Result<Loads> {
    let cluster = &scenario.cluster;
    let ways = [(cluster.pod("pod-1a")?, Entry::ClusterIp), (&cluster.client, Entry::NodePort(0))];
    Loads::start(scenario, &ways)
}

/// Services that change all the time, each with one endpoint.
const CHANGING: std::ops::Range<u8> = 40..52;

fn change(cluster: &Cluster, service: u8, to: &Host) -> Result<()> {
    let ips = [cluster_ip(service, true), cluster_ip(service, false)];
    let object = Service::new(&format!("changing-{service}"), &ips).tcp_and_udp(
        SERVICE_PORT,
        TARGET_PORT,
        Some(node_port(service)),
    );
    cluster.manifests.apply(&object, &[Endpoint::from(to)])
}

/// Each of them leads to this endpoint and no other, from inside and outside, soon.
fn lead_to(cluster: &Cluster, endpoint: &Host) -> Result<()> {
    let pod = cluster.pod("pod-1a")?;
    for service in CHANGING {
        let inside = SocketAddr::new(cluster_ip(service, true), SERVICE_PORT);
        let outside = SocketAddr::new(cluster.node(0)?.host.v4.into(), node_port(service));
        for (from, to) in [(pod, inside), (&cluster.client, outside)] {
            let mut last = Vec::new();
            until(Duration::from_secs(10), &format!("{to} to lead to {}", endpoint.name), || {
                last = from.call(to).servers(4).unwrap_or_default();
                Ok((last.len() == 4 && last.iter().all(|server| *server == endpoint.name)).then_some(()))
            })
            .with_context(|| format!("{last:?}"))?;
        }
    }
    Ok(())
}

/// Rolling updates with `maxSurge: 1`: the new agent starts beside the old one, which is ended when the new one serves. Services change
/// all the time, by the same source for both. No request fails, no health check fails, and no service is wrong in the end.
#[test]
fn agents_overlap() -> Result<()> {
    let mut scenario = Scenario::start(Cluster::builder().nodes(2), "socket", &[])?;
    let loads = loads(&scenario)?;
    let mut agent = scenario.agents.remove(0);
    let netns = scenario.cluster.node(0)?.host.netns.clone();
    let end = AtomicBool::new(false);
    let cluster = &scenario.cluster;
    let pods = [cluster.pod("pod-1b")?, cluster.pod("pod-2a")?, cluster.pod("pod-2b")?];
    let (asked, failures) = thread::scope(|scope| -> Result<_> {
        let asking = scope.spawn(|| ask_often(&netns, &end));
        let rolled = (|| -> Result<()> {
            for round in 0..rounds(4) {
                let name = format!("-{round}");
                let new = cluster.start_another_agent(0, &["--pod-datapath", "socket"], &name)?;
                let mut turn = round;
                let step = |turn: &mut usize| -> Result<()> {
                    *turn += 1;
                    CHANGING
                        .zip(pods.iter().cycle().skip(*turn))
                        .try_for_each(|(service, pod)| change(cluster, service, pod))
                };
                until(SOON, "the new agent to serve", || {
                    step(&mut turn)?;
                    Ok(agent.log().contains("the other agent serves now").then_some(()))
                })
                .with_context(|| format!("the new one's log:\n{}", new.log()))?;
                step(&mut turn)?;
                let last = pods[round % pods.len()];
                CHANGING.into_iter().try_for_each(|service| change(cluster, service, last))?;
                lead_to(cluster, last)?;
                // The old one is still there: it must not undo anything.
                ensure!(agent.is_running());
                agent.terminate()?;
                lead_to(cluster, last)?;
                loads.wait_for(20)?;
                agent = new;
            }
            Ok(())
        })();
        end.store(true, Ordering::Relaxed);
        let asked = asking.join().map_err(|_| anyhow::anyhow!("the health checks panicked"))?;
        rolled.map(|()| asked)
    })?;
    ensure!(failures.is_empty() && asked > 100, "{} of {asked} health checks: {failures:?}", failures.len());
    loads.none_failed()?;
    ensure!(agent.is_running());
    Ok(())
}

/// An agent that hangs does not hand over: the other one waits, touches nothing and is not ready, until the first is killed.
#[test]
fn a_standby_waits_until_the_active_one_is_killed() -> Result<()> {
    const ELSEWHERE: [&str; 4] =
        ["--healthz-bind-address", "127.0.0.1:11256", "--metrics-bind-address", "127.0.0.1:11249"];
    let mut scenario = Scenario::start(Cluster::builder().nodes(2), "socket", &[])?;
    let loads = loads(&scenario)?;
    let cluster = &scenario.cluster;
    let netns = &cluster.node(0)?.host.netns;
    let first = &mut scenario.agents[0];
    let metrics = netns.get("127.0.0.1:10249", "/metrics")?;
    ensure!(metrics.status == 200 && metrics.body.contains("\nproxy_agent_active 1"), "{metrics:?}");
    first.freeze()?;
    let mut standby = cluster.start_another_agent(0, &ELSEWHERE, "-standby")?;
    standby.wait_for_log_for(SOON, "asking the other agent to hand over")?;
    let hooks = first.debug(&["services"])?;
    change(cluster, CHANGING.start, cluster.pod("pod-2a")?)?;
    let health = until(SOON, "the standby to answer", || Ok(netns.get(ELSEWHERE[1], "/healthz").ok()))?;
    ensure!(health.status == 503 && health.body.contains("standing by"), "{health:?}");
    ensure!(netns.get(ELSEWHERE[1], "/livez")?.status == 200);
    let metrics = netns.get(ELSEWHERE[3], "/metrics")?.body;
    ensure!(metrics.contains("\nproxy_agent_active 0"), "{metrics}");
    ensure!(standby.log().matches("standing by until").count() == 1, "{}", standby.log());
    // It has had the time to write the change, and did not.
    loads.wait_for(100)?;
    ensure!(first.debug(&["services"])? == hooks);
    first.kill()?;
    until(SOON, "the standby to be ready", || Ok(is_ready(netns, ELSEWHERE[1]).then_some(())))?;
    until(SOON, "what changed meanwhile", || {
        Ok(standby.debug(&["services"])?.contains("changing-40").then_some(()))
    })?;
    // A third one comes, and is killed when it has taken over: the one that handed over ends, to be started again.
    let mut third = cluster.start_another_agent(0, &[], "-third")?;
    standby.wait_for_log_for(SOON, "the other agent serves now")?;
    third.kill()?;
    ensure!(standby.wait(SOON)? == Some(1), "{}", standby.log());
    first.start()?;
    loads.none_failed()
}

/// The maps have another layout than those that programs use, and the source is away: the attached programs go on
/// with their maps until the new ones are filled.
#[test]
fn another_layout_is_filled_before_programs_use_it() -> Result<()> {
    let mut scenario = Scenario::start(Cluster::builder().nodes(2), "socket", &[])?;
    let cluster = &scenario.cluster;
    let pod = cluster.pod("pod-1a")?;
    let inside = pod.call(scenario.target(Entry::ClusterIp, WEB, true)?).load()?;
    let outside = cluster.client.call(scenario.target(Entry::NodePort(0), WEB, true)?).keep_alive().load()?;
    let first = &mut scenario.agents[0];
    first.terminate()?;
    let bpffs = &cluster.node(0)?.bpffs;
    let own = fs::read_dir(bpffs)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.to_string_lossy().contains("/maps-services-"))
        .context("no maps")?;
    let other = bpffs.join("maps-services-0");
    fs::rename(&own, &other)?;
    let manifests = cluster.manifests.path();
    let away = manifests.with_extension("away");
    fs::rename(manifests, &away)?;

    let netns = &cluster.node(0)?.host.netns;
    let mut second = cluster.start_another_agent(0, &[], "-second")?;
    second.wait_for_log_for(SOON, "filling them before programs use them")?;
    until(SOON, "the maps to be there", || Ok(own.join("frontends_v4").exists().then_some(())))?;
    let status = until(SOON, "an answer", || Ok(netns.get(HEALTHZ, "/healthz").ok()))?.status;
    ensure!(status == 503, "{status}");
    inside.wait_for(50)?;
    outside.wait_for(50)?;
    ensure!(inside.report()?.failed == 0 && outside.report()?.failed == 0, "nothing was to change yet");

    fs::rename(&away, manifests)?;
    until(SOON, "the agent to serve", || Ok(is_ready(netns, HEALTHZ).then_some(())))?;
    ensure!(!other.exists(), "the old maps take memory");
    inside.wait_for(50)?;
    outside.wait_for(50)?;
    let (inside, outside) = (inside.stop()?, outside.stop()?);
    ensure!(inside.failed == 0 && outside.failed == 0, "{inside:?} {outside:?}");
    second.terminate()?;
    scenario.agents[0].start()
}
