//! The steps of the demonstration, each with its proof.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use proxy_harness::cluster::{Call, Host, Load, Protocol, until};

use super::{Demo, account::Account};

const DB: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 103, 132, 104)), DB_PORT);
const DB_PORT: u16 = 3306;
const DB_PODS: [&str; 3] = ["pod-1b", "pod-2b", "pod-3b"];
const WEB_NODE_PORT: u16 = 30016;
const WEB_PODS: [&str; 2] = ["pod-1a", "pod-2a"];
/// Enough for every pod to answer some, but for one time in a million.
const REQUESTS: usize = 40;
const SOON: Duration = Duration::from_secs(5);

/// Everything, in the order of the account.
pub(super) fn all(demo: &mut Demo, account: &mut Account) -> Result<()> {
    cluster_ip(demo, account);
    node_port(demo, account);
    scaling(demo, account)?;
    agent_killed(demo, account)?;
    tables(demo, account);
    netfilter(demo, account);
    Ok(())
}

fn cluster_ip(demo: &Demo, account: &mut Account) {
    account.heading("ClusterIP: db-service, 10.103.132.104:3306");
    for node in &demo.cluster.nodes {
        for host in [&node.pods[0], &node.host] {
            let what = format!("{} -> {DB}", host.name);
            account.prove(&what, answered(&host.call(DB), &DB_PODS, |client| host.owns(client)));
        }
    }
    let pod = &demo.cluster.nodes[0].pods[0];
    account.prove("the pod thinks it talks to the service", peer_is_service(pod));
}

fn peer_is_service(pod: &Host) -> Result<String> {
    let reply = pod.call(DB).once()?;
    let answer = reply.answer.with_context(|| format!("no answer: {:?}", reply.error))?;
    ensure!(reply.peer == Some(DB), "getpeername: {:?}", reply.peer);
    Ok(format!("getpeername {DB}; {} sees {}", answer.server, answer.client.ip()))
}

/// The node's port at both of its addresses.
fn web_addresses(host: &Host) -> [SocketAddr; 2] {
    [(host.v4, WEB_NODE_PORT).into(), (host.v6, WEB_NODE_PORT).into()]
}

fn node_port(demo: &Demo, account: &mut Account) {
    account.heading("NodePort: web, port 30016 of every node");
    let client = &demo.cluster.client;
    for node in &demo.cluster.nodes {
        for address in web_addresses(&node.host) {
            let seen = |source| client.owns(source) || node.owns(source);
            account.prove(&format!("client -> {address}"), answered(&client.call(address), &WEB_PODS, seen));
        }
    }
    let address = web_addresses(&demo.cluster.nodes[2].host)[0];
    for (protocol, what) in [(Protocol::Udp, "UDP"), (Protocol::ConnectedUdp, "UDP, connected")] {
        let call = client.call(address).protocol(protocol);
        account.prove(&format!("client -> {address} {what}"), answered(&call, &WEB_PODS, |_| true));
    }
    let node = &demo.cluster.nodes[2].host;
    let local = SocketAddr::from(([127, 0, 0, 1], WEB_NODE_PORT));
    account.prove(&format!("{} -> {local}", node.name), answered(&node.call(local), &WEB_PODS, |_| true));
    account.prove("2 x 20 MB through a node without a pod of web", bulk(&client.call(address)));
}

fn bulk(call: &Call<'_>) -> Result<String> {
    let report = call.bulk(20_000_000)?;
    Ok(format!("every byte right, {} ms", report.elapsed_ms))
}

/// All pods answer, and see a client that they should.
fn answered(call: &Call<'_>, pods: &[&str], seen: impl Fn(IpAddr) -> bool) -> Result<String> {
    let mut by_pod = BTreeMap::new();
    for reply in call.times(REQUESTS)? {
        let answer = reply.answer.with_context(|| format!("no answer: {:?}", reply.error))?;
        ensure!(seen(answer.client.ip()), "{} sees {} as its client", answer.server, answer.client);
        *by_pod.entry(answer.server).or_insert(0) += 1;
    }
    ensure!(by_pod.keys().eq(pods), "answered by {:?}", by_pod.keys());
    Ok(by_pod.iter().map(|(pod, count)| format!("{pod} x {count}")).collect::<Vec<_>>().join(", "))
}

fn scaling(demo: &Demo, account: &mut Account) -> Result<()> {
    account.heading("Scaling: the pod of node-2 leaves web, and comes back");
    let client = &demo.cluster.client;
    let calls: Vec<_> =
        demo.cluster.nodes.iter().map(|node| client.call(web_addresses(&node.host)[0])).collect();
    // Connections that are there stay, whichever pod they are with.
    let loads = calls.iter().flat_map(|call| [call.clone().keep_alive().load(), call.load()]);
    let loads = loads.collect::<Result<Vec<_>>>()?;
    loads.iter().try_for_each(|load| load.wait_for(5))?;
    demo.apply("scaled-down/web-endpoints.yaml")?;
    account.prove("no new connection to pod-2a", settles(&calls, &WEB_PODS[..1]));
    demo.apply("web-endpoints.yaml")?;
    account.prove("pod-2a takes its share again", settles(&calls, &WEB_PODS));
    account.prove("no request was lost meanwhile", without_loss(loads));
    Ok(())
}

/// Soon exactly these pods answer at every address.
fn settles(calls: &[Call<'_>], pods: &[&str]) -> Result<String> {
    let start = Instant::now();
    for call in calls {
        let mut last = Vec::new();
        let settled = until(SOON, "the change to arrive", || {
            last = call.servers(REQUESTS)?;
            last.sort();
            last.dedup();
            Ok((last == pods).then_some(()))
        });
        settled.with_context(|| format!("still answered by {last:?}"))?;
    }
    Ok(format!("on all nodes after at most {} ms", start.elapsed().as_millis()))
}

fn without_loss(loads: Vec<Load>) -> Result<String> {
    let mut requests = 0;
    for load in loads {
        let report = load.stop()?;
        ensure!(report.failed == 0, "{} of {} failed: {:?}", report.failed, report.sent, report.errors);
        requests += report.ok;
    }
    Ok(format!("{requests} requests, all answered"))
}

fn agent_killed(demo: &mut Demo, account: &mut Account) -> Result<()> {
    account.heading("The agent of node-1 is killed (SIGKILL) while requests flow, and started again");
    let node = &demo.cluster.nodes[0];
    let calls = [
        node.pods[0].call(DB),
        node.host.call(DB),
        demo.cluster.client.call(web_addresses(&node.host)[0]),
        demo.cluster.client.call(web_addresses(&node.host)[1]).protocol(Protocol::Udp),
    ];
    let loads = calls.iter().flat_map(|call| [call.load(), call.clone().keep_alive().load()]);
    let loads = loads.collect::<Result<Vec<_>>>()?;
    let go_on = || loads.iter().try_for_each(|load| load.wait_for(50));
    go_on()?;
    demo.agents[0].kill()?;
    go_on()?;
    let restarted = demo.agents[0].start().and_then(|()| go_on());
    account.prove("it starts again and finds its state", restarted.map(|()| "healthy".to_owned()));
    account.prove("no request was lost", without_loss(loads));
    Ok(())
}

fn tables(demo: &Demo, account: &mut Account) {
    account.heading("What the data path of node-1 knows");
    let pod = demo.cluster.nodes[0].pods[0].v4.to_string();
    let db = DB.to_string();
    let trace = ["trace", "--from", &pod, "--to", &db];
    for args in [&["services"][..], &["backends"], &["counters"], &trace] {
        match demo.agents[0].debug(args) {
            Ok(table) => account.table(&format!("proxy-agent debug {}", args.join(" ")), &table),
            Err(error) => account.prove(&format!("proxy-agent debug {}", args.join(" ")), Err(error)),
        }
    }
    account.prove("the tables name the services", names_services(demo));
}

fn names_services(demo: &Demo) -> Result<String> {
    let table = demo.agents[0].debug(&["services"])?;
    ensure!(table.contains("default/db-service") && table.contains("default/web"), "they do not");
    Ok("default/db-service, default/web".to_owned())
}

fn netfilter(demo: &Demo, account: &mut Account) {
    account.heading("Netfilter");
    let after: Result<Vec<_>> = demo.cluster.nodes.iter().map(|node| node.netfilter_rules()).collect();
    let unchanged = after.and_then(|after| {
        ensure!(after == demo.rules_before, "the rules have changed");
        Ok("as the network plugin left them".to_owned())
    });
    account.prove("no rule was added on any node", unchanged);
    let invalid = demo.cluster.nodes.iter().map(|node| node.invalid_packets()).sum::<Result<u64>>();
    account.prove(
        "conntrack found no packet INVALID",
        invalid.and_then(|packets| {
            ensure!(packets == 0, "{packets} packets");
            Ok("its firewall dropped nothing".to_owned())
        }),
    );
}
