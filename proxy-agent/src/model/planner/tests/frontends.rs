use super::*;

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// In a short form, with the letter of its kind.
fn short(frontend: &Frontend) -> String {
    match frontend {
        Frontend::ClusterIp(address) => format!("c {address}"),
        Frontend::ClusterAddress(ip) => format!("a {ip}"),
        Frontend::ExternalIp(address) => format!("e {address}"),
        Frontend::LoadBalancer(address) => format!("l {address}"),
        Frontend::LoadBalancerAddress(ip) => format!("b {ip}"),
        Frontend::NodePort(port) => format!("n {port}"),
    }
}

fn all(service: &Service) -> Vec<(String, IpFamily, String)> {
    let plans = plan(service, [].iter(), node_context()).ports;
    let frontends = |plan: &PortPlan| plan.frontends.iter().map(short).collect::<Vec<_>>().join(", ");
    plans.iter().map(|p| (p.name.port.to_string(), p.name.family, frontends(p))).collect()
}

#[test]
fn every_port_of_every_family_has_its_frontends() {
    let full = Service {
        external_ips: ips(&["192.0.2.1", "2001:db8::1"]),
        load_balancer_ips: ips(&["192.0.2.2", "2001:db8::2", "192.0.2.3"]),
        ..service()
    };
    let (v4, v6) = (IpFamily::V4, IpFamily::V6);
    let expected = [
        (
            "http",
            v4,
            "c 10.0.0.1:80, a 10.0.0.1, l 192.0.2.2:80, l 192.0.2.3:80, e 192.0.2.1:80, b 192.0.2.2, b 192.0.2.3, n 30080",
        ),
        (
            "dns",
            v4,
            "c 10.0.0.1:53, a 10.0.0.1, l 192.0.2.2:53, l 192.0.2.3:53, e 192.0.2.1:53, b 192.0.2.2, b 192.0.2.3",
        ),
        (
            "http",
            v6,
            "c [fd00::1]:80, a fd00::1, l [2001:db8::2]:80, e [2001:db8::1]:80, b 2001:db8::2, n 30080",
        ),
        ("dns", v6, "c [fd00::1]:53, a fd00::1, l [2001:db8::2]:53, e [2001:db8::1]:53, b 2001:db8::2"),
    ];
    assert_eq!(all(&full), expected.map(|(port, family, list)| (port.to_owned(), family, list.to_owned())));

    // A family without a cluster IP is not served, whatever other addresses of it there are.
    let v4_only = Service { cluster_ips: ips(&["10.0.0.1"]), ..full.clone() };
    assert_eq!(all(&v4_only), all(&full)[..2]);
    assert_eq!(all(&Service { cluster_ips: vec![], ..full.clone() }), []);
    assert_eq!(all(&Service { ports: vec![], ..full }), []);
}

#[test]
fn an_address_of_several_roles_has_one_frontend() {
    let cases: &[(&str, &[&str], &[&str], &str)] = &[
        ("source ranges stay effective", &["192.0.2.1"], &["192.0.2.1"], "l 192.0.2.1:80, b 192.0.2.1"),
        ("external IP is the cluster IP", &["10.0.0.1", "192.0.2.1"], &[], "e 192.0.2.1:80"),
        ("load balancer is the cluster IP", &[], &["10.0.0.1", "192.0.2.1"], "l 192.0.2.1:80, b 192.0.2.1"),
    ];
    for (what, external, balancer, expected) in cases {
        let service = Service { external_ips: ips(external), load_balancer_ips: ips(balancer), ..service() };
        let expected = format!("c 10.0.0.1:80, a 10.0.0.1, {expected}, n 30080");
        assert_eq!(all(&service)[0].2, expected, "{what}");
    }
}

#[test]
fn the_external_policy_governs_every_frontend_but_the_cluster_ip() {
    let slices = [slice(("dns", Protocol::Udp, 53), &["10.1.0.1 rs@", "10.1.0.2 rs"])];
    let (near, all) = (["10.1.0.1:53"].as_slice(), ["10.1.0.1:53", "10.1.0.2:53"].as_slice());
    let local = Service { external_policy: TrafficPolicy::Local, ..service() };
    let external = |texts: &[&str]| Service { external_ips: ips(texts), ..local.clone() };
    let cases = [
        ("nothing external", local.clone(), None, all),
        ("externalIP", external(&["192.0.2.1"]), None, near),
        ("externalIP of the other family only", external(&["2001:db8::1"]), None, all),
        ("LB VIP", Service { load_balancer_ips: ips(&["192.0.2.1"]), ..local.clone() }, None, near),
        ("nodePort", local.clone(), Some(30053), near),
    ];
    for (what, mut service, node_port, expected) in cases {
        service.ports[1].node_port = node_port;
        let plan = &plan(&service, slices.iter(), node_context()).ports[1];
        assert_eq!(shown(&plan.external), expected, "{what}");
        assert_eq!(shown(&plan.internal), all, "{what}");
        assert_eq!(shown(&plan.cluster), all, "{what}");
    }
}

#[test]
fn policy_local_without_local_endpoints_lacks_them_only_if_there_are_others() {
    use TrafficPolicy::{Cluster, Local};
    for (internal_policy, external_policy, endpoints, expected) in [
        (Local, Cluster, &["10.1.0.1 rs"][..], (true, false)),
        (Cluster, Local, &["10.1.0.1 rs"], (false, true)),
        (Local, Local, &["10.1.0.1 st"], (true, true)),
        (Local, Local, &["10.1.0.1 rs@"], (false, false)),
        (Local, Local, &["10.1.0.1 s"], (false, false)),
        (Local, Local, &[], (false, false)),
    ] {
        let service = Service { internal_policy, external_policy, ..service() };
        let plan = http(&service, &[slice(HTTP, endpoints)]);
        assert_eq!((plan.lacks_internal(), plan.lacks_external()), expected, "{endpoints:?}");
    }
}

#[test]
fn every_port_has_the_affinity_of_its_service() {
    for affinity in [None, Some(Duration::from_secs(10_800))] {
        let plans = plan(&Service { affinity, ..service() }, [].iter(), node_context()).ports;
        assert!(plans.iter().all(|plan| plan.affinity == affinity));
    }
}

#[test]
fn source_ranges_are_of_the_family_and_let_the_node_reach_itself() {
    // Ranges, and those expected for IPv4 and IPv6. The node is 172.16.0.1 and fd02::1.
    type Texts = Option<&'static [&'static str]>;
    let cases: &[(&str, Texts, Texts, Texts)] = &[
        ("not given", None, None, None),
        ("none of them could be read", Some(&[]), Some(&[]), Some(&[])),
        ("the other family only", Some(&["10.0.0.0/8"]), Some(&["10.0.0.0/8"]), None),
        ("both", Some(&["fd00::/16", "10.0.0.0/8"]), Some(&["10.0.0.0/8"]), Some(&["fd00::/16"])),
        ("everyone of a family", Some(&["10.0.0.0/8", "::/0"]), Some(&["10.0.0.0/8"]), None),
        ("everyone and some", Some(&["10.0.0.0/8", "0.0.0.0/0", "fd00::/16"]), None, Some(&["fd00::/16"])),
        ("sorted", Some(&["192.0.2.0/24", "10.0.0.0/8"]), Some(&["10.0.0.0/8", "192.0.2.0/24"]), None),
        (
            "the node's primary address",
            Some(&["172.16.0.0/16"]),
            Some(&["172.16.0.0/16", "198.51.100.1/32", "198.51.100.2/32"]),
            None,
        ),
        ("another of its addresses", Some(&["192.168.0.0/16"]), Some(&["192.168.0.0/16"]), None),
        ("its primary IPv6 address", Some(&["fd02::/64"]), None, Some(&["2001:db8::1/128", "fd02::/64"])),
    ];
    let vips = ips(&["198.51.100.2", "198.51.100.1", "2001:db8::1"]);
    let nets = |texts: &[&str]| texts.iter().map(|net| net.parse().unwrap()).collect::<Vec<IpNet>>();
    for (what, ranges, v4, v6) in cases {
        let service =
            Service { source_ranges: ranges.map(nets), load_balancer_ips: vips.clone(), ..service() };
        for plan in plan(&service, [].iter(), node_context()).ports {
            let expected = if plan.name.family == IpFamily::V4 { v4 } else { v6 };
            assert_eq!(plan.sources, expected.map(nets), "{what}, {:?}", plan.name.family);
        }
        let unknown = NodeContext { addresses: &[], ..node_context() };
        let plans = plan(&service, [].iter(), unknown).ports;
        let mut allowed = plans.into_iter().filter_map(|plan| plan.sources).flatten();
        assert!(allowed.all(|net| !vips.contains(&net.addr())), "{what}: the node is not known");
    }
}
