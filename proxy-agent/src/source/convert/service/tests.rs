use serde_json::{Value, json};

use super::*;
use crate::model::objects::{ObjectName, Protocol};

fn service_of(value: Value) -> Converted {
    service(&serde_json::from_value(value).unwrap())
}

/// `web` with these fields of its spec changed.
fn web(changes: Value) -> Converted {
    let mut spec = json!({"clusterIP": "10.0.0.1", "ports": [{"port": 80}]});
    let fields = changes.as_object().unwrap().clone();
    spec.as_object_mut().unwrap().extend(fields);
    service_of(json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec}))
}

fn served(converted: Converted) -> Service {
    match converted.change {
        Change::Service(service) => service,
        other => panic!("{other:?}"),
    }
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn a_service_is_converted_field_by_field() {
    let mut spec = json!({
        "type": "LoadBalancer", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"],
        "ipFamilies": ["IPv4", "IPv6"], "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local",
        "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
        "externalIPs": ["192.0.2.1", "2001:db8::1"], "loadBalancerIP": "192.0.2.99",
        "loadBalancerSourceRanges": ["198.51.100.0/24", "fd01::/16"], "healthCheckNodePort": 31000,
        "publishNotReadyAddresses": true, "trafficDistribution": "PreferClose",
        "ports": [
            {"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080, "appProtocol": "h2c"},
            {"name": "dns", "protocol": "UDP", "port": 53, "nodePort": 0},
            {"name": "sig", "protocol": "SCTP", "port": 3868},
        ],
    });
    let metadata = json!({"name": "web", "namespace": "shop"});
    let status = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.3"}]}});
    let converted = service_of(json!({"metadata": metadata, "spec": spec.clone(), "status": status}));
    assert_eq!(converted.problems, [""; 0]);
    let port =
        |name: &str, protocol, port, node_port| ServicePort { name: name.into(), protocol, port, node_port };
    let full = Service {
        name: ObjectName::new("shop", "web"),
        cluster_ips: ips(&["10.0.0.1", "fd00::1"]),
        ports: vec![
            port("http", Protocol::Tcp, 80, Some(30080)),
            port("dns", Protocol::Udp, 53, None),
            port("sig", Protocol::Sctp, 3868, None),
        ],
        internal_policy: TrafficPolicy::Local,
        external_policy: TrafficPolicy::Local,
        external_ips: ips(&["192.0.2.1", "2001:db8::1"]),
        load_balancer_ips: ips(&["192.0.2.3"]),
        source_ranges: Some(["198.51.100.0/24", "fd01::/16"].map(|net| net.parse().unwrap()).into()),
        affinity: Some(Duration::from_secs(60)),
        health_check_node_port: Some(31000),
    };
    assert_eq!(served(converted), full);

    // A null or missing field counts as none.
    for key in ["sessionAffinity", "sessionAffinityConfig", "externalIPs", "loadBalancerSourceRanges"] {
        spec[key] = Value::Null;
    }
    for status in [json!({"loadBalancer": null}), json!({"loadBalancer": {"ingress": null}}), Value::Null] {
        let converted = service_of(json!({"metadata": metadata, "spec": spec, "status": status}));
        let expected = Service {
            external_ips: vec![],
            load_balancer_ips: vec![],
            source_ranges: None,
            affinity: None,
            ..full.clone()
        };
        assert_eq!(served(converted), expected);
    }
}

#[test]
fn services_that_are_not_ours_are_gone() {
    let labelled = service_of(json!({
        "metadata": {"name": "web", "namespace": "shop", "labels": {SERVICE_PROXY_NAME: ""}},
        "spec": {"clusterIP": "10.0.0.1"},
    }));
    let cases = [
        ("ExternalName, even with an address", web(json!({"type": "ExternalName"}))),
        ("headless", web(json!({"clusterIP": "None", "clusterIPs": ["None"]}))),
        ("headless by the list", web(json!({"clusterIP": null, "clusterIPs": ["None"]}))),
        ("another proxy's, whatever the label's value", labelled),
    ];
    for (what, converted) in cases {
        assert_eq!(converted.change, Change::ServiceGone(ObjectName::new("shop", "web")), "{what}");
        assert!(converted.problems.is_empty(), "{what}");
    }
}

#[test]
fn cluster_ips_are_one_per_family_and_wrong_ones_are_dropped_alone() {
    let (v4, v6) = ("10.0.0.1", "fd00::1");
    let cases = [
        ("clusterIP alone", json!({}), vec![v4], 0),
        ("sloppy", json!({"clusterIP": "10.0.0.041"}), vec!["10.0.0.41"], 0),
        ("nulls", json!({"clusterIPs": null, "ipFamilies": null}), vec![v4], 0),
        ("no families: clusterIP alone", json!({"clusterIPs": [v4, v6]}), vec![v4], 0),
        ("no families, of IPv6", json!({"clusterIP": v6, "clusterIPs": [v6, v4]}), vec![v6], 0),
        ("no families, no clusterIP", json!({"clusterIP": null, "clusterIPs": [v4]}), vec![v4], 0),
        ("dual stack", json!({"clusterIPs": [v4, v6], "ipFamilies": ["IPv4", "IPv6"]}), vec![v4, v6], 0),
        ("the other order", json!({"clusterIPs": [v6, v4], "ipFamilies": ["IPv6", "IPv4"]}), vec![v6, v4], 0),
        ("families without list", json!({"ipFamilies": ["IPv4"]}), vec![v4], 0),
        ("one family", json!({"clusterIPs": [v4, v6], "ipFamilies": ["IPv4"]}), vec![v4], 0),
        ("one address", json!({"clusterIPs": [v4], "ipFamilies": ["IPv4", "IPv6"]}), vec![v4], 0),
        ("one empty", json!({"clusterIPs": ["", v6], "ipFamilies": ["IPv4", "IPv6"]}), vec![v6], 0),
        ("one None", json!({"clusterIPs": [v4, "None"], "ipFamilies": ["IPv4", "IPv6"]}), vec![v4], 0),
        ("one wrong", json!({"clusterIPs": [v4, "oops"], "ipFamilies": ["IPv4", "IPv6"]}), vec![v4], 1),
        (
            "two of one family",
            json!({"clusterIPs": [v4, "10.0.0.2"], "ipFamilies": ["IPv4", "IPv4"]}),
            vec![v4],
            1,
        ),
        ("of the other family", json!({"clusterIPs": [v4], "ipFamilies": ["IPv6"]}), vec![], 1),
        ("wrong", json!({"clusterIP": "10.0.0"}), vec![], 1),
        ("empty", json!({"clusterIP": ""}), vec![], 1),
        ("missing", json!({"clusterIP": null}), vec![], 1),
    ];
    for (what, fields, expected, problems) in cases {
        let converted = web(fields);
        assert_eq!(converted.problems.len(), problems, "{what}: {:?}", converted.problems);
        assert_eq!(served(converted).cluster_ips, ips(&expected), "{what}");
    }
}

#[test]
fn external_ips_are_of_both_families_without_duplicates_and_wrong_ones_are_dropped_alone() {
    let converted = web(json!({"externalIPs": [
        "192.0.2.1", "2001:db8::1", "192.0.2.001", "oops", "2001:db8:0::1", "192.0.2.2", "",
    ]}));
    let problems = ["externalIP `oops` is not an IP address", "externalIP `` is not an IP address"];
    assert_eq!(converted.problems, problems);
    assert_eq!(served(converted).external_ips, ips(&["192.0.2.1", "2001:db8::1", "192.0.2.2"]));
}

#[test]
fn load_balancer_ips_are_those_that_packets_arrive_with() {
    let cases = [
        ("no mode", json!([{"ip": "192.0.2.1"}]), vec!["192.0.2.1"], 0),
        ("null mode", json!([{"ip": "192.0.2.1", "ipMode": null}]), vec!["192.0.2.1"], 0),
        ("VIP", json!([{"ip": "192.0.2.1", "ipMode": "VIP"}]), vec!["192.0.2.1"], 0),
        ("Proxy", json!([{"ip": "192.0.2.1", "ipMode": "Proxy"}]), vec![], 0),
        ("a host name", json!([{"hostname": "lb.example.com"}, {"ip": ""}]), vec![], 0),
        (
            "ports do not matter",
            json!([{"ip": "192.0.2.1", "ports": [{"port": 443, "protocol": "TCP"}]}]),
            vec!["192.0.2.1"],
            0,
        ),
        (
            "both families",
            json!([{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}]),
            vec!["192.0.2.1", "2001:db8::1"],
            0,
        ),
        ("a duplicate", json!([{"ip": "192.0.2.1"}, {"ip": "192.0.2.01"}]), vec!["192.0.2.1"], 0),
        ("one wrong", json!([{"ip": "192.0.2"}, {"ip": "192.0.2.1"}]), vec!["192.0.2.1"], 1),
    ];
    for kind in ["ClusterIP", "NodePort", "LoadBalancer"] {
        for (what, ingress, expected, problems) in &cases {
            let converted = service_of(json!({
                "spec": {"type": kind, "clusterIP": "10.0.0.1"}, "status": {"loadBalancer": {"ingress": ingress}},
            }));
            assert_eq!(converted.problems.len(), *problems, "{what}: {:?}", converted.problems);
            assert_eq!(
                served(converted).load_balancer_ips,
                ips(expected),
                "{what}, whatever the type: {kind}"
            );
        }
    }
}

#[test]
fn source_ranges_are_read_sloppily_and_never_open_by_mistake() {
    let cases = [
        ("missing", json!(null), None, 0),
        ("empty", json!([]), None, 0),
        ("both families", json!(["10.0.0.0/8", "fd00::/8"]), Some(vec!["10.0.0.0/8", "fd00::/8"]), 0),
        ("space", json!([" 10.0.0.0/8 "]), Some(vec!["10.0.0.0/8"]), 0),
        ("leading zeros", json!(["203.0.113.000/025"]), Some(vec!["203.0.113.0/25"]), 0),
        ("bits beyond, twice", json!(["10.1.2.3/8", "10.0.0.0/8"]), Some(vec!["10.0.0.0/8"]), 0),
        ("one wrong", json!(["10.0.0.0/8", "10.0.0.1", "/"]), Some(vec!["10.0.0.0/8"]), 2),
        ("all wrong: no client", json!(["10.0.0.1", ""]), Some(vec![]), 3),
    ];
    for (what, ranges, expected, problems) in cases {
        let converted = web(json!({"loadBalancerSourceRanges": ranges}));
        assert_eq!(converted.problems.len(), problems, "{what}: {:?}", converted.problems);
        let expected = expected.map(|nets| nets.iter().map(|net| net.parse().unwrap()).collect());
        assert_eq!(served(converted).source_ranges, expected, "{what}");
    }
}

#[test]
fn affinity_lasts_three_hours_by_default_and_a_day_at_most() {
    let timeout = |seconds: Value| json!({"clientIP": {"timeoutSeconds": seconds}});
    let cases = [
        (json!(null), json!(null), None, 0),
        (json!(""), timeout(json!(60)), None, 0),
        (json!("None"), timeout(json!(60)), None, 0),
        (json!("Cookie"), json!(null), None, 1),
        (json!("ClientIP"), json!(null), Some(10_800), 0),
        (json!("ClientIP"), json!({"clientIP": null}), Some(10_800), 0),
        (json!("ClientIP"), timeout(json!(null)), Some(10_800), 0),
        (json!("ClientIP"), timeout(json!(1)), Some(1), 0),
        (json!("ClientIP"), timeout(json!(86_400)), Some(86_400), 0),
        (json!("ClientIP"), timeout(json!(86_401)), Some(86_400), 1),
        (json!("ClientIP"), timeout(json!(0)), Some(1), 1),
        (json!("ClientIP"), timeout(json!(-5)), Some(1), 1),
    ];
    for (affinity, config, expected, problems) in cases {
        let converted = web(json!({"sessionAffinity": affinity, "sessionAffinityConfig": config}));
        assert_eq!(converted.problems.len(), problems, "{affinity} {config}: {:?}", converted.problems);
        assert_eq!(served(converted).affinity, expected.map(Duration::from_secs), "{affinity} {config}");
    }
}

#[test]
fn health_checks_are_for_load_balancers_with_a_local_policy() {
    let cases = [
        ("LoadBalancer", "Local", json!(31000), Some(31000), 0),
        ("LoadBalancer", "Local", json!(0), None, 0),
        ("LoadBalancer", "Local", json!(null), None, 0),
        ("LoadBalancer", "Local", json!(70000), None, 1),
        ("LoadBalancer", "Cluster", json!(31000), None, 0),
        ("NodePort", "Local", json!(31000), None, 0),
        ("ClusterIP", "Local", json!(31000), None, 0),
    ];
    for (kind, policy, port, expected, problems) in cases {
        let converted =
            web(json!({"type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": port}));
        assert_eq!(converted.problems.len(), problems, "{kind} {policy} {port}: {:?}", converted.problems);
        assert_eq!(served(converted).health_check_node_port, expected, "{kind} {policy} {port}");
    }
}

#[test]
fn wrong_ports_and_policies_are_named_and_the_rest_works() {
    let converted = web(json!({"internalTrafficPolicy": "Near", "ports": [
        {"name": "a", "port": 80}, {"name": "b", "port": 70000}, {"name": "c"}, {"name": "a", "port": 81},
        {"name": "d", "port": 1, "protocol": "ICMP"}, {"name": "e", "port": 2, "nodePort": -1},
    ]}));
    assert_eq!(
        converted.problems,
        [
            "port 70000 of port \"b\" is not a port number",
            "port \"c\" has no number",
            "a second TCP port named \"a\" is ignored",
            "protocol `ICMP` is not TCP, UDP or SCTP",
            "nodePort -1 of port \"e\" is not a port number",
            "internalTrafficPolicy `Near` is neither Cluster nor Local; Cluster is used",
        ]
    );
    assert_eq!(served(converted).ports.len(), 1);
    assert!(served(web(json!({"ports": null}))).ports.is_empty());
}

#[test]
fn the_external_policy_counts_only_where_there_is_something_external() {
    let ingress = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}});
    let cases = [
        (json!({}), TrafficPolicy::Cluster, 0),
        (json!({"type": ""}), TrafficPolicy::Cluster, 0),
        (json!({"type": "ClusterIP"}), TrafficPolicy::Cluster, 0),
        (json!({"type": "ClusterIP", "ports": [{"port": 80, "nodePort": 30080}]}), TrafficPolicy::Cluster, 0),
        (json!({"type": "ClusterIP", "externalIPs": ["192.0.2.1"]}), TrafficPolicy::Local, 0),
        (json!({"type": "NodePort"}), TrafficPolicy::Local, 0),
        (json!({"type": "LoadBalancer"}), TrafficPolicy::Local, 0),
        (json!({"type": "Gateway"}), TrafficPolicy::Cluster, 1),
    ];
    for (mut spec, expected, problems) in cases {
        spec["externalTrafficPolicy"] = "Local".into();
        spec["clusterIP"] = "10.0.0.1".into();
        let converted = service_of(json!({"spec": spec, "status": ingress}));
        assert_eq!(converted.problems.len(), problems, "{spec}: {:?}", converted.problems);
        assert_eq!(served(converted).external_policy, expected, "{spec}");
    }
}
