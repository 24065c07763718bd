//! `debug` with filters, and `debug explain`, over a running cluster.
//!
//! Set-up: three nodes with two routed pods each, served by sockets, an agent per node; `debug` runs on the first node.

use anyhow::{Context as _, Result};
use proxy_harness::{
    cluster::{Agent, Cluster, Endpoint, Service},
    traffic::{SERVICE_PORT, SINGLE, Scenario, TARGET_PORT, cluster_ip, node_port},
};
use serde_json::Value;

fn rows(agent: &Agent, args: &[&str]) -> Result<Vec<Value>> {
    let text = agent.debug(&[args, &["-o", "json"]].concat())?;
    serde_json::from_str(&text).with_context(|| format!("{args:?}: {text}"))
}

#[test]
fn rows_are_chosen_and_endpoints_explained() {
    let scenario = Scenario::start(Cluster::builder(), "socket", &[]).unwrap();
    let (cluster, agent) = (&scenario.cluster, &scenario.agents[0]);
    for (args, at_least) in [
        (&["services", "--service", "default/web"][..], 2),
        (&["backends", "--service", "default/web"], 6),
        (&["backends", "--service", "default/web", "--backend", "10.244.1.11"], 1),
    ] {
        let found = rows(agent, args).unwrap();
        assert!(found.len() >= at_least, "{args:?}: {found:?}");
        let is_of_web = |row: &Value| {
            row["service"].as_str().is_some_and(|name| name.split(':').next() == Some("default/web"))
        };
        assert!(found.iter().all(is_of_web), "{args:?}: {found:?}");
    }
    let one = rows(agent, &["backends", "--backend", "10.244.1.11:8080", "--limit", "1"]).unwrap();
    assert_eq!((one.len(), &one[0]["endpoint"]), (1, &"10.244.1.11:8080".into()), "{one:?}");
    assert!(rows(agent, &["services", "--service", "default/nosuch"]).unwrap().is_empty());
    assert_eq!(rows(agent, &["services", "--limit", "3"]).unwrap().len(), 3);

    let folder = cluster.manifests.path().display().to_string();
    let explain = |service: &str| {
        let name = cluster.nodes[0].host.name.as_str();
        rows(agent, &["explain", service, "--node-name", name, "--manifests", &folder])
    };
    let found = explain("default/web").unwrap();
    assert!(found.len() >= 6, "{found:?}");
    for row in &found {
        assert_eq!(row["why"], "ready", "{row}");
        assert_eq!(names(row, "inMaps"), names(row, "used"), "what is asked for is in the maps: {row}");
    }
    assert!(format!("{:#}", explain("default/nosuch").unwrap_err()).contains("default/nosuch"));

    let ips = [cluster_ip(SINGLE, true), cluster_ip(SINGLE, false)];
    let service =
        Service::new("single", &ips).tcp_and_udp(SERVICE_PORT, TARGET_PORT, Some(node_port(SINGLE)));
    let endpoint = Endpoint::from(cluster.pod("pod-1b").unwrap()).unready();
    cluster.manifests.apply(&service, &[endpoint]).unwrap();
    let found = explain("default/single").unwrap();
    assert!(!found.is_empty());
    for row in &found {
        assert_eq!((&row["why"], names(row, "used")), (&"not ready".into(), vec![]), "{row}");
    }
}

/// The sets that a row names, but the one for flows that there are.
fn names(row: &Value, field: &str) -> Vec<String> {
    let list = row[field].as_array().into_iter().flatten().filter_map(Value::as_str);
    list.filter(|name| *name != "serving").map(str::to_owned).collect()
}
