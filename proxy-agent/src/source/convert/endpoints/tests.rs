use serde_json::{Value, json};

use super::*;
use crate::model::objects::Protocol;

fn convert(mut value: Value) -> (Result<Mirrored, String>, Vec<String>) {
    value["metadata"]["name"] = "web".into();
    endpoints(&serde_json::from_value(value).unwrap())
}

/// Slices as text: name, ports, and addresses with `!` where they are not ready.
fn shown(mirrored: &Mirrored) -> Vec<String> {
    let slice = |slice: &EndpointSlice| {
        let ports = slice.ports.iter().map(|port| format!("{}/{}/{}", port.name, port.protocol, port.port));
        let endpoints = slice.endpoints.iter().map(|endpoint| {
            let node = endpoint.node.as_deref().map_or_else(String::new, |node| format!("@{node}"));
            format!("{}{}{node}", if endpoint.ready { "" } else { "!" }, endpoint.address)
        });
        let (ports, endpoints): (Vec<_>, Vec<_>) = (ports.collect(), endpoints.collect());
        format!("{} {} {}", slice.name.name, ports.join(","), endpoints.join(","))
    };
    mirrored.slices.iter().map(slice).collect()
}

#[test]
fn each_subset_is_a_slice_of_each_family() {
    let (mirrored, problems) = convert(json!({"metadata": {"namespace": "shop"}, "subsets": [
        {
            "addresses": [{"ip": "10.1.0.1", "nodeName": "n1", "targetRef": {"kind": "Pod"}}, {"ip": "fd00::1"}],
            "notReadyAddresses": [{"ip": "10.1.0.2"}],
            "ports": [{"name": "http", "port": 8080}, {"port": 53, "protocol": "UDP", "appProtocol": "x"}],
        },
        {"addresses": null, "notReadyAddresses": [{"ip": "10.1.0.3"}], "ports": [{"port": 1}]},
        {"addresses": [{"ip": "10.1.0.4"}], "ports": null},
        {},
    ]}));
    let mirrored = mirrored.unwrap();
    assert_eq!(
        shown(&mirrored),
        [
            "web:endpoints-0-ipv4 http/TCP/8080,/UDP/53 10.1.0.1@n1,!10.1.0.2",
            "web:endpoints-0-ipv6 http/TCP/8080,/UDP/53 fd00::1",
            "web:endpoints-1-ipv4 /TCP/1 !10.1.0.3",
            "web:endpoints-2-ipv4  10.1.0.4",
        ]
    );
    assert_eq!(mirrored.service, ObjectName::new("shop", "web"));
    assert!(
        mirrored
            .slices
            .iter()
            .all(|slice| slice.service == mirrored.service && &*slice.name.namespace == "shop")
    );
    assert_eq!(mirrored.slices[0].ports[0].protocol, Protocol::Tcp);
    assert_eq!(problems, [""; 0]);
}

#[test]
fn wrong_parts_are_dropped_alone() {
    let (mirrored, problems) = convert(json!({"subsets": [
        {"addresses": [{"ip": "pod"}, {"ip": "10.1.0.1"}], "ports": [{"port": 80_000}, {"port": 80}, {"port": 81, "protocol": "X"}]},
    ]}));
    assert_eq!(shown(&mirrored.unwrap()), ["web:endpoints-0-ipv4 /TCP/80 10.1.0.1"]);
    assert_eq!(problems.len(), 3, "{problems:?}");
}

#[test]
fn some_are_not_mirrored() {
    let with = |metadata: Value| {
        convert(json!({"metadata": metadata, "subsets": [{"addresses": [{"ip": "10.1.0.1"}], "ports": [{"port": 80}]}]})).0
    };
    for (what, metadata, expected) in [
        ("nothing special", json!({"labels": {"app": "web"}}), None),
        ("requested", json!({"labels": {SKIP_MIRROR: "true"}}), Some("skip-mirror")),
        ("requested the opposite", json!({"labels": {SKIP_MIRROR: "false"}}), None),
        ("headless", json!({"labels": {HEADLESS: ""}}), Some("headless")),
        ("leader election", json!({"annotations": {LEADER: "{}"}}), Some("leader election")),
    ] {
        match (with(metadata), expected) {
            (Ok(mirrored), None) => assert_eq!(mirrored.slices.len(), 1, "{what}"),
            (Err(why), Some(expected)) => assert!(why.contains(expected), "{what}: {why}"),
            (other, _) => panic!("{what}: {other:?}"),
        }
    }
}
