use serde_json::{Value, json};

use super::*;

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

#[test]
fn addresses_are_read_sloppily() {
    let cases = [
        ("10.0.0.1", Some("10.0.0.1")),
        ("172.30.0.041", Some("172.30.0.41")),
        ("010.000.0.08", Some("10.0.0.8")),
        ("::1", Some("::1")),
        ("::ffff:10.0.0.1", Some("10.0.0.1")),
        ("10.0.0.256", None),
        ("10.0.0", None),
        ("10.0.0.1.2", None),
        ("10.0.0.+1", None),
        ("10..0.1", None),
        ("fe80::1%eth0", None),
        ("", None),
    ];
    for (text, expected) in cases {
        assert_eq!(parse_ip(text), expected.map(|e| e.parse().unwrap()), "{text}");
    }
}

#[test]
fn a_service_is_converted_field_by_field() {
    let converted = web(json!({
        "type": "NodePort", "clusterIPs": ["10.0.0.1", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"],
        "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local",
        "ports": [
            {"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080},
            {"name": "dns", "protocol": "UDP", "port": 53, "nodePort": 0},
            {"name": "sig", "protocol": "SCTP", "port": 3868},
        ],
    }));
    assert_eq!(converted.problems, [""; 0]);
    let port =
        |name: &str, protocol, port, node_port| ServicePort { name: name.into(), protocol, port, node_port };
    assert_eq!(
        served(converted),
        Service {
            name: ObjectName::new("shop", "web"),
            cluster_ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            ports: vec![
                port("http", Protocol::Tcp, 80, Some(30080)),
                port("dns", Protocol::Udp, 53, None),
                port("sig", Protocol::Sctp, 3868, None),
            ],
            internal_policy: TrafficPolicy::Local,
            external_policy: TrafficPolicy::Local,
            ..Service::default()
        }
    );
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
    let cases = [
        (json!({}), vec!["10.0.0.1"], 0),
        (json!({"clusterIP": "10.0.0.041"}), vec!["10.0.0.41"], 0),
        (json!({"clusterIPs": ["fd00::1", "10.0.0.1"]}), vec!["fd00::1", "10.0.0.1"], 0),
        (json!({"clusterIPs": null, "ipFamilies": null}), vec!["10.0.0.1"], 0),
        (json!({"clusterIPs": ["10.0.0.1", "oops"]}), vec!["10.0.0.1"], 1),
        (json!({"clusterIPs": ["10.0.0.1", "10.0.0.2"]}), vec!["10.0.0.1"], 1),
        (json!({"clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv6"]}), vec![], 1),
        (json!({"clusterIP": ""}), vec![], 1),
        (json!({"clusterIP": null}), vec![], 1),
    ];
    for (fields, expected, problems) in cases {
        let converted = web(fields.clone());
        assert_eq!(converted.problems.len(), problems, "{fields}: {:?}", converted.problems);
        let found: Vec<_> = served(converted).cluster_ips.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{fields}");
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
            "protocol `ICMP` is none of TCP, UDP and SCTP",
            "nodePort -1 of port \"e\" is not a port number",
            "internalTrafficPolicy `Near` is neither Cluster nor Local; Cluster is used",
        ]
    );
    assert_eq!(served(converted).ports.len(), 1);
    assert!(served(web(json!({"ports": null}))).ports.is_empty());
}

#[test]
fn the_external_policy_counts_only_where_there_is_something_external() {
    let cases = [
        (json!({"type": "ClusterIP"}), TrafficPolicy::Cluster),
        (json!({"type": "ClusterIP", "externalIPs": ["192.0.2.1"]}), TrafficPolicy::Local),
        (json!({"type": "NodePort"}), TrafficPolicy::Local),
        (json!({"type": "LoadBalancer"}), TrafficPolicy::Local),
    ];
    for (mut fields, expected) in cases {
        fields["externalTrafficPolicy"] = "Local".into();
        assert_eq!(served(web(fields.clone())).external_policy, expected, "{fields}");
    }
}

/// A slice of `web` with these fields changed.
fn slice(changes: Value) -> Converted {
    let mut value = json!({
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {SERVICE_NAME: "web"}},
        "addressType": "IPv4",
    });
    value.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    endpoint_slice(&serde_json::from_value(value).unwrap())
}

#[test]
fn a_slice_is_converted_with_the_defaults_of_its_conditions() {
    let converted = slice(json!({
        "ports": [
            {"name": "http", "port": 8080}, {"name": "", "protocol": "UDP", "port": 53},
            {"port": 1}, {"name": null, "port": 1}, {"name": "none"}, {"name": "zero", "port": 0},
        ],
        "endpoints": [
            {"addresses": ["10.1.0.1", "10.1.0.9"], "nodeName": "n1"},
            {"addresses": ["10.1.0.002"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["10.1.0.3"], "conditions": null},
            {"addresses": ["10.1.0.4"], "conditions": {"ready": null, "serving": false}},
        ],
    }));
    assert_eq!(converted.problems, [""; 0]);
    let endpoint = |last, node: Option<&str>, ready, serving, terminating| Endpoint {
        address: IpAddr::from([10, 1, 0, last]),
        node: node.map(Into::into),
        ready,
        serving,
        terminating,
        hints: Hints::default(),
    };
    assert_eq!(
        converted.change,
        Change::EndpointSlice(EndpointSlice {
            name: ObjectName::new("shop", "web-1"),
            service: ObjectName::new("shop", "web"),
            ipv6: false,
            ports: vec![
                SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 },
                SlicePort { name: "".into(), protocol: Protocol::Udp, port: 53 },
            ],
            endpoints: vec![
                endpoint(1, Some("n1"), true, true, false),
                endpoint(2, None, false, true, true),
                endpoint(3, None, true, true, false),
                endpoint(4, None, true, false, false),
            ],
            ..EndpointSlice::default()
        })
    );
}

#[test]
fn slices_that_are_not_ours_are_gone() {
    let labels =
        |labels: Value| json!({"metadata": {"name": "web-1", "namespace": "shop", "labels": labels}});
    let cases = [
        ("no service", slice(labels(json!({}))), 0),
        ("no labels", slice(labels(Value::Null)), 0),
        ("headless", slice(labels(json!({SERVICE_NAME: "web", HEADLESS: ""}))), 0),
        ("host names", slice(json!({"addressType": "FQDN"})), 0),
        ("nonsense", slice(json!({"addressType": "IPX"})), 1),
    ];
    for (what, converted, problems) in cases {
        assert_eq!(converted.change, Change::EndpointSliceGone(ObjectName::new("shop", "web-1")), "{what}");
        assert_eq!(converted.problems.len(), problems, "{what}");
    }
}

#[test]
fn wrong_endpoints_are_dropped_alone() {
    let converted = slice(json!({"ports": null, "endpoints": [
        {"addresses": ["10.1.0.1"]}, {"addresses": ["fd00::1"]}, {"addresses": ["pod"]}, {"addresses": null},
    ]}));
    assert_eq!(converted.problems.len(), 3, "{:?}", converted.problems);
    let Change::EndpointSlice(slice) = converted.change else { panic!() };
    assert_eq!(slice.endpoints.len(), 1);
}

#[test]
fn a_node_gives_its_internal_addresses_first() {
    let lite = json!({"metadata": {"name": "n1"}, "status": {"addresses": [
        {"type": "Hostname", "address": "n1"}, {"type": "ExternalIP", "address": "192.0.2.1"},
        {"type": "InternalIP", "address": "10.2.0.1"}, {"type": "InternalIP", "address": "fd02::1"},
        {"type": "InternalIP", "address": "?"},
    ]}});
    let converted = node(&serde_json::from_value(lite).unwrap());
    let addresses = ["10.2.0.1", "fd02::1", "192.0.2.1"].map(|a| a.parse().unwrap()).into();
    assert_eq!(converted.change, Change::Node(Node { addresses, ..Node::default() }));
    assert_eq!(converted.problems, ["address `?` is not an IP address"]);
}
