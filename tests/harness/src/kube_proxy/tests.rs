//! Properties of the generated rules.

use std::net::Ipv4Addr;

use super::*;

fn node_context() -> NodeContext {
    NodeContext {
        node: Ipv4Addr::new(192, 168, 99, 11).into(),
        node_name: "node-1".to_owned(),
        cluster_cidr: "10.244.0.0/16",
        service_cidr: "10.96.0.0/12",
        keeps_ports: false,
    }
}

fn services() -> Vec<Service> {
    let endpoint = |last, node: &str| Endpoint {
        address: Ipv4Addr::new(10, 244, 1, last).into(),
        node: node.to_owned(),
    };
    let port = |name, protocol, node_port| Port { name, protocol, port: 80, target_port: 8080, node_port };
    vec![
        Service {
            name: "web".to_owned(),
            cluster_ip: Ipv4Addr::new(10, 96, 0, 10).into(),
            ports: vec![port("http", "tcp", Some(30080)), port("quic", "udp", None)],
            endpoints: vec![endpoint(2, "node-1"), endpoint(3, "node-2"), endpoint(4, "node-2")],
        },
        Service {
            name: "single".to_owned(),
            cluster_ip: Ipv4Addr::new(10, 96, 0, 11).into(),
            ports: vec![port("http", "tcp", None)],
            endpoints: vec![endpoint(5, "node-2")],
        },
    ]
}

/// The lines, without indentation, stand in the text in this order.
#[track_caller]
fn assert_lines(text: &str, lines: &[&str]) {
    let mut rest = text.lines().map(str::trim);
    for line in lines {
        assert!(rest.any(|other| other == *line), "{line:?} is missing, or too late, in\n{text}");
    }
}

#[test]
fn nftables_of_services() {
    let text = nftables(&node_context(), &services());
    let cases: [&[&str]; 7] = [
        // NodePorts: marked, then as the cluster IP.
        &[
            "chain external-00000000-default/web/tcp/http {",
            "meta mark set meta mark or 0x4000",
            "goto service-00000000-default/web/tcp/http",
        ],
        &[
            "chain service-00000000-default/web/tcp/http {",
            "meta l4proto tcp dnat ip addr . port to numgen random mod 3 map { 0 : 10.244.1.2 . 8080, \
             1 : 10.244.1.3 . 8080, 2 : 10.244.1.4 . 8080 }",
        ],
        // One endpoint needs no map.
        &["chain service-00000002-default/single/tcp/http {", "meta l4proto tcp dnat to 10.244.1.5:8080"],
        &[
            "map service-ips {",
            "elements = { 10.96.0.10 . tcp . 80 : goto service-00000000-default/web/tcp/http,",
            "10.96.0.10 . udp . 80 : goto service-00000001-default/web/udp/quic,",
            "10.96.0.11 . tcp . 80 : goto service-00000002-default/single/tcp/http }",
        ],
        &[
            "map service-nodeports {",
            "elements = { tcp . 30080 : goto external-00000000-default/web/tcp/http }",
        ],
        // Only endpoints of this node can be their own clients.
        &[
            "set hairpin-connections {",
            "elements = { 10.244.1.2 . 10.244.1.2 . tcp . 8080,",
            "10.244.1.2 . 10.244.1.2 . udp . 8080 }",
        ],
        &["set cluster-ips {", "elements = { 10.96.0.10,", "10.96.0.11 }"],
    ];
    for lines in cases {
        assert_lines(&text, lines);
    }
}

#[test]
fn iptables_of_services() {
    let text = iptables(&node_context(), &services());
    let cases: [&[&str]; 3] = [
        // All cluster IPs one after the other, and nodePorts behind them.
        &[
            "*nat",
            "-A KUBE-SERVICES -m comment --comment \"default/web:http cluster IP\" -m tcp -p tcp -d 10.96.0.10 \
             --dport 80 -j KUBE-SVC-0000000000000000",
            "-A KUBE-SERVICES -m comment --comment \"default/single:http cluster IP\" -m tcp -p tcp -d 10.96.0.11 \
             --dport 80 -j KUBE-SVC-0000000000000002",
            "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule \
             in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
            "-A KUBE-NODEPORTS -m comment --comment \"default/web:http\" -m tcp -p tcp --dport 30080 \
             -j KUBE-EXT-0000000000000000",
            "-A KUBE-EXT-0000000000000000 -m comment --comment \"masquerade traffic for default/web:http external \
             destinations\" -j KUBE-MARK-MASQ",
            "-A KUBE-EXT-0000000000000000 -j KUBE-SVC-0000000000000000",
            "COMMIT",
        ],
        // A third of all, half of the rest, the rest.
        &[
            "-A KUBE-SVC-0000000000000000 -m comment --comment \"default/web:http -> 10.244.1.2:8080\" -m statistic \
             --mode random --probability 0.3333333333 -j KUBE-SEP-0000000000000000",
            "-A KUBE-SVC-0000000000000000 -m comment --comment \"default/web:http -> 10.244.1.3:8080\" -m statistic \
             --mode random --probability 0.5000000000 -j KUBE-SEP-0000000000000001",
            "-A KUBE-SVC-0000000000000000 -m comment --comment \"default/web:http -> 10.244.1.4:8080\" \
             -j KUBE-SEP-0000000000000002",
        ],
        &[
            "-A KUBE-SEP-0000000000020000 -m comment --comment default/single:http -s 10.244.1.5 -j KUBE-MARK-MASQ",
            "-A KUBE-SEP-0000000000020000 -m comment --comment default/single:http -m tcp -p tcp -j DNAT \
             --to-destination 10.244.1.5:8080",
        ],
    ];
    for lines in cases {
        assert_lines(&text, lines);
    }
}
