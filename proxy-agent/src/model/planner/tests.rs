use std::time::Duration;

use super::*;
use crate::model::objects::{Change, Endpoint, Hints, Node, Protocol, SlicePort};

mod frontends;
mod random;

const NODE: &str = "here";

/// This node in zone `a`, with a primary address of each family.
fn node_context() -> NodeContext<'static> {
    const ADDRESSES: [IpAddr; 3] = [
        IpAddr::V4(std::net::Ipv4Addr::new(172, 16, 0, 1)),
        IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 0, 1)),
        IpAddr::V6(std::net::Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 1)),
    ];
    NodeContext { node: NODE, zone: Some("a"), addresses: &ADDRESSES }
}

/// `web` with a cluster IP of each family, ports `http` 80/TCP (nodePort 30080) and `dns` 53/UDP.
fn service() -> Service {
    let port =
        |name: &str, protocol, port, node_port| ServicePort { name: name.into(), protocol, port, node_port };
    Service {
        name: ObjectName::new("default", "web"),
        cluster_ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        ports: vec![port("http", Protocol::Tcp, 80, Some(30080)), port("dns", Protocol::Udp, 53, None)],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        ..Service::default()
    }
}

/// Endpoints in a short form: address, `@` if local and conditions `r`eady, `s`erving, `t`erminating, then zones and, with
/// `n:`, nodes that hints name.
fn slice(port: (&str, Protocol, u16), endpoints: &[&str]) -> EndpointSlice {
    let (name, protocol, number) = port;
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|text| {
            let mut words = text.split(' ');
            let (address, flags) = (words.next().unwrap(), words.next().unwrap());
            let (nodes, zones): (Vec<_>, Vec<_>) = words.partition(|word| word.starts_with("n:"));
            let hints = Hints::new(
                zones.into_iter().map(Into::into).collect(),
                nodes.iter().map(|node| node[2..].into()).collect(),
            );
            Endpoint {
                address: address.parse().unwrap(),
                node: Some(if flags.contains('@') { NODE.into() } else { "elsewhere".into() }),
                ready: flags.contains('r'),
                serving: flags.contains('s'),
                terminating: flags.contains('t'),
                hints,
            }
        })
        .collect();
    EndpointSlice {
        name: ObjectName::new("default", "web-1"),
        service: ObjectName::new("default", "web"),
        ipv6: endpoints.first().is_some_and(|e| e.address.is_ipv6()),
        ports: vec![SlicePort { name: name.into(), protocol, port: number }],
        endpoints,
        ..EndpointSlice::default()
    }
}

const HTTP: (&str, Protocol, u16) = ("http", Protocol::Tcp, 8080);

/// The plan of port `http`, IPv4.
fn http(service: &Service, slices: &[EndpointSlice]) -> PortPlan {
    let plans = plan(service, slices.iter(), node_context()).ports;
    plans.into_iter().find(|p| &*p.name.port == "http" && p.name.family == IpFamily::V4).unwrap()
}

fn shown(addresses: &[SocketAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

#[test]
fn slices_match_by_port_name_protocol_and_family() {
    let cases: &[(&str, &[EndpointSlice], &[&str])] = &[
        (
            "a plain slice",
            &[slice(HTTP, &["10.1.0.2 rs", "10.1.0.1 rs"])],
            &["10.1.0.1:8080", "10.1.0.2:8080"],
        ),
        ("another name", &[slice(("web", Protocol::Tcp, 8080), &["10.1.0.1 rs"])], &[]),
        ("another protocol", &[slice(("http", Protocol::Udp, 8080), &["10.1.0.1 rs"])], &[]),
        ("another family", &[slice(HTTP, &["fd01::1 rs"])], &[]),
        (
            "several slices, different numbers under one name",
            &[slice(HTTP, &["10.1.0.1 rs"]), slice(("http", Protocol::Tcp, 9090), &["10.1.0.1 rs"])],
            &["10.1.0.1:8080", "10.1.0.1:9090"],
        ),
    ];
    for (what, slices, expected) in cases {
        assert_eq!(shown(&http(&service(), slices).cluster), *expected, "{what}");
    }

    let v6 = [slice(HTTP, &["fd01::1 rs"])];
    let plans = plan(&service(), v6.iter(), node_context()).ports;
    let found: Vec<_> = plans.iter().map(|p| shown(&p.internal)).collect();
    assert_eq!(found, [vec![], vec![], vec!["[fd01::1]:8080".to_owned()], vec![]]);
}

#[test]
fn ready_serving_and_terminating_decide() {
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("ready wins", &["10.1.0.1 rs", "10.1.0.2 st", "10.1.0.3 s"], &["10.1.0.1:8080"]),
        ("ready though terminating", &["10.1.0.1 rst", "10.1.0.2 st"], &["10.1.0.1:8080"]),
        ("none ready: terminating ones that serve", &["10.1.0.1 st", "10.1.0.2 t"], &["10.1.0.1:8080"]),
        ("serving alone is not enough", &["10.1.0.1 s"], &[]),
        ("terminating alone is not enough", &["10.1.0.1 t"], &[]),
        ("ready by publishNotReadyAddresses", &["10.1.0.1 r"], &["10.1.0.1:8080"]),
        ("nobody", &[], &[]),
    ];
    for (what, endpoints, expected) in cases {
        let plan = http(&service(), &[slice(HTTP, endpoints)]);
        assert_eq!(shown(&plan.cluster), *expected, "{what}");
        assert_eq!((&plan.internal, &plan.external), (&plan.cluster, &plan.cluster), "{what}");
    }
}

#[test]
fn of_duplicates_the_later_wins_unless_it_terminates() {
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("later wins", &["10.1.0.1 ", "10.1.0.1 rs"], &["10.1.0.1:8080"]),
        ("later wins, unready", &["10.1.0.1 rs", "10.1.0.1 "], &[]),
        ("later terminates", &["10.1.0.1 rs", "10.1.0.1 st"], &["10.1.0.1:8080"]),
        ("earlier terminates", &["10.1.0.1 t", "10.1.0.1 rs"], &["10.1.0.1:8080"]),
        ("both terminate: the first", &["10.1.0.1 st", "10.1.0.1 t"], &["10.1.0.1:8080"]),
    ];
    for (what, endpoints, expected) in cases {
        let one = [slice(HTTP, endpoints)];
        assert_eq!(shown(&http(&service(), &one).cluster), *expected, "{what}");
        let each: Vec<_> = endpoints.iter().map(|e| slice(HTTP, &[e])).collect();
        assert_eq!(shown(&http(&service(), &each).cluster), *expected, "{what}, over two slices");
    }
    // The local flag follows the winner.
    let moved = Service { internal_policy: TrafficPolicy::Local, ..service() };
    assert!(http(&moved, &[slice(HTTP, &["10.1.0.1 rs@", "10.1.0.1 rs"])]).internal.is_empty());
}

#[test]
fn local_policies_choose_local_endpoints_for_their_frontends() {
    use TrafficPolicy::{Cluster, Local};
    type Case<'a> = (&'a str, TrafficPolicy, TrafficPolicy, &'a [&'a str], [&'a [&'a str]; 3]);
    let (a, b) = ("10.1.0.1:8080", "10.1.0.2:8080");
    let cases: &[Case<'_>] = &[
        ("both Cluster", Cluster, Cluster, &["10.1.0.1 rs@", "10.1.0.2 rs"], [&[a, b], &[a, b], &[a, b]]),
        ("internal Local", Local, Cluster, &["10.1.0.1 rs@", "10.1.0.2 rs"], [&[a], &[a, b], &[a, b]]),
        ("external Local", Cluster, Local, &["10.1.0.1 rs@", "10.1.0.2 rs"], [&[a, b], &[a], &[a, b]]),
        ("none here", Local, Local, &["10.1.0.1 rs", "10.1.0.2 rs"], [&[], &[], &[a, b]]),
        ("local fallback of the policy", Local, Local, &["10.1.0.1 st@", "10.1.0.2 rs"], [&[a], &[a], &[b]]),
        ("local one unready", Local, Local, &["10.1.0.1 s@", "10.1.0.2 rs"], [&[], &[], &[b]]),
        ("both fall back", Local, Local, &["10.1.0.1 st@", "10.1.0.2 st"], [&[a], &[a], &[a, b]]),
        ("nothing anywhere", Local, Local, &["10.1.0.1 s@"], [&[], &[], &[]]),
    ];
    for (what, internal_policy, external_policy, endpoints, [internal, external, cluster]) in cases {
        let service =
            Service { internal_policy: *internal_policy, external_policy: *external_policy, ..service() };
        let plan = http(&service, &[slice(HTTP, endpoints)]);
        assert_eq!(shown(&plan.internal), *internal, "{what}: internal");
        assert_eq!(shown(&plan.external), *external, "{what}: external");
        assert_eq!(shown(&plan.cluster), *cluster, "{what}: cluster");
    }

    // Without a node port there is nothing for the external policy to govern.
    let inside = Service { external_policy: Local, ..service() };
    let dns = [slice(("dns", Protocol::Udp, 53), &["10.1.0.2 rs"])];
    let plans = plan(&inside, dns.iter(), node_context()).ports;
    assert_eq!(shown(&plans[1].external), ["10.1.0.2:53"]);
}

#[test]
fn an_endpoint_without_a_node_is_remote() {
    let mut anywhere = slice(HTTP, &["10.1.0.1 rs@"]);
    anywhere.endpoints[0].node = None;
    let local = Service { internal_policy: TrafficPolicy::Local, ..service() };
    assert!(http(&local, &[anywhere]).internal.is_empty());
}

#[test]
fn hints_choose_for_the_cluster_and_never_among_local_endpoints() {
    use TrafficPolicy::{Cluster, Local};
    let (a, b, c) = ("10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.3:8080");
    type Case<'a> = (&'a str, &'a [&'a str], &'a [&'a str], &'a [&'a str]);
    // The expected `cluster` and, under policy Local, `internal`.
    let cases: &[Case<'_>] = &[
        ("our zone", &["10.1.0.1 rs a", "10.1.0.2 rs b"], &[a], &[]),
        ("our node", &["10.1.0.1 rs@ n:here b", "10.1.0.2 rs n:there a"], &[a], &[a]),
        ("a local one of another zone stays local", &["10.1.0.1 rs a", "10.1.0.2 rs@ b"], &[a], &[b]),
        ("one without a hint", &["10.1.0.1 rs a", "10.1.0.2 rs"], &[a, b], &[]),
        (
            "hints of unready ones do not matter",
            &["10.1.0.1 rs a", "10.1.0.2 rs b", "10.1.0.3 st"],
            &[a],
            &[],
        ),
        ("only an unready one is of our zone", &["10.1.0.1 st a", "10.1.0.2 rs b"], &[b], &[]),
        (
            "none ready: terminating ones whatever their hints",
            &["10.1.0.1 st a", "10.1.0.3 st b"],
            &[a, c],
            &[],
        ),
    ];
    for (what, endpoints, cluster, local) in cases {
        let slices = [slice(HTTP, endpoints)];
        let policies = |policy| Service { internal_policy: policy, external_policy: policy, ..service() };
        let plan = http(&policies(Cluster), &slices);
        assert_eq!(shown(&plan.cluster), *cluster, "{what}");
        assert_eq!((&plan.internal, &plan.external), (&plan.cluster, &plan.cluster), "{what}");
        let plan = http(&policies(Local), &slices);
        assert_eq!(
            (shown(&plan.internal), shown(&plan.external)),
            (to_owned(local), to_owned(local)),
            "{what}"
        );
        assert_eq!(shown(&plan.cluster), *cluster, "{what}: under policy Local");
    }

    // Hints are evaluated over all slices of the port, and apply to it alone.
    let slices = [slice(HTTP, &["10.1.0.1 rs a"]), slice(HTTP, &["10.1.0.2 rs"])];
    assert_eq!(shown(&http(&service(), &slices).cluster), [a, b]);
    let slices = [slice(HTTP, &["10.1.0.1 rs a"]), slice(("dns", Protocol::Udp, 53), &["10.1.0.2 rs"])];
    assert_eq!(shown(&http(&service(), &slices).cluster), [a]);
    let nowhere = NodeContext { zone: None, ..node_context() };
    let slices = [slice(HTTP, &["10.1.0.1 rs a", "10.1.0.2 rs b"])];
    assert_eq!(shown(&plan(&service(), slices.iter(), nowhere).ports[0].cluster), [a, b]);
}

fn to_owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

#[test]
fn flows_may_stay_at_endpoints_that_serve_or_are_used() {
    use TrafficPolicy::{Cluster, Local};
    let (a, b, c) = ("10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.3:8080");
    let cases: &[(&str, TrafficPolicy, &[&str], &[&str])] = &[
        ("ready ones", Cluster, &["10.1.0.2 rs", "10.1.0.1 rs"], &[a, b]),
        ("serving but not ready", Cluster, &["10.1.0.1 rs", "10.1.0.2 s"], &[a, b]),
        ("terminating", Cluster, &["10.1.0.1 rs", "10.1.0.2 st", "10.1.0.3 t"], &[a, b]),
        ("of another zone", Cluster, &["10.1.0.1 rs a", "10.1.0.2 rs b"], &[a, b]),
        ("elsewhere under policy Local", Local, &["10.1.0.1 rs@", "10.1.0.2 rs"], &[a, b]),
        ("used without the condition serving", Cluster, &["10.1.0.1 r", "10.1.0.2 "], &[a]),
        ("used here only", Local, &["10.1.0.1 rs a", "10.1.0.3 r@ b"], &[a, c]),
        ("nobody", Cluster, &["10.1.0.1 ", "10.1.0.2 t"], &[]),
    ];
    for (what, policy, endpoints, expected) in cases {
        let service = Service { internal_policy: *policy, external_policy: *policy, ..service() };
        assert_eq!(shown(&http(&service, &[slice(HTTP, endpoints)]).serving), *expected, "{what}");
    }
}

#[test]
fn load_balancers_get_the_number_of_ready_local_endpoints() {
    let http = |endpoints: &[&str]| slice(HTTP, endpoints);
    let dns = |endpoints: &[&str]| slice(("dns", Protocol::Udp, 53), endpoints);
    let cases = [
        ("nobody", vec![], 0),
        ("only local ones", vec![http(&["10.1.0.1 rs@", "10.1.0.2 rs"])], 1),
        ("terminating ones do not count", vec![http(&["10.1.0.1 st@", "10.1.0.2 s@"])], 0),
        ("each address once", vec![http(&["10.1.0.1 rs@"]), dns(&["10.1.0.1 rs@", "10.1.0.2 rs@"])], 2),
        ("hints do not matter", vec![http(&["10.1.0.1 rs@ b", "10.1.0.2 rs a"])], 1),
        ("both families", vec![http(&["10.1.0.1 rs@"]), http(&["fd01::1 rs@"])], 2),
    ];
    for (what, slices, expected) in cases {
        let asked = Service { health_check_node_port: Some(31000), ..service() };
        let check = plan(&asked, slices.iter(), node_context()).health_check;
        assert_eq!(check, Some(HealthCheck { port: 31000, local_endpoints: expected }), "{what}");
        assert_eq!(
            plan(&service(), slices.iter(), node_context()).health_check,
            None,
            "{what}, but no load balancer asks"
        );
    }
    let nowhere = Service { health_check_node_port: Some(31000), cluster_ips: vec![], ..service() };
    assert_eq!(plan(&nowhere, [].iter(), node_context()), ServicePlan::default());
}

#[test]
fn a_stored_service_is_planned_with_its_slices_and_node_and_a_missing_one_is_nothing() {
    let mut store = Store::new();
    let name = service().name;
    store.apply(Change::EndpointSlice(slice(HTTP, &["10.1.0.1 rs a", "10.1.0.2 rs b"])));
    assert_eq!(plan_stored(&store, &name, NODE), ServicePlan::default());
    store.apply(Change::Service(service()));
    let planned = |store: &Store| plan_stored(store, &name, NODE).ports;
    assert_eq!(planned(&store).len(), 4);
    assert_eq!(shown(&planned(&store)[0].internal), ["10.1.0.1:8080", "10.1.0.2:8080"]);
    store.apply(Change::Node(Node { zone: Some("b".into()), ..Node::default() }));
    assert_eq!(shown(&planned(&store)[0].internal), ["10.1.0.2:8080"]);
    store.apply(Change::NodeGone);
    assert_eq!(shown(&planned(&store)[0].internal), ["10.1.0.2:8080"], "the machine stays where it is");
}
