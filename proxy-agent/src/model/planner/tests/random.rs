//! Properties of every Service.

use proptest::prelude::*;

use super::*;

fn any_ip() -> impl Strategy<Value = IpAddr> {
    let texts = ["10.0.0.1", "192.0.2.1", "192.0.2.2", "fd00::1", "2001:db8::1"];
    prop::sample::select(texts.to_vec()).prop_map(|text| text.parse().unwrap())
}

fn any_service() -> impl Strategy<Value = Service> {
    let ips = || prop::collection::vec(any_ip(), 0..4);
    let policy = || prop::sample::select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local]);
    let range = (any_ip(), 0u8..=128).prop_filter_map("a prefix", |(ip, len)| IpNet::new(ip, len).ok());
    let ranges = prop::option::of(prop::collection::vec(range, 0..3));
    let cluster_ips = prop::sample::select(vec![vec![], vec!["10.0.0.1"], vec!["fd00::1", "10.0.0.1"]]);
    let addresses = (cluster_ips, ips(), ips());
    (addresses, policy(), policy(), ranges).prop_map(|(addresses, internal, external, source_ranges)| {
        Service {
            cluster_ips: addresses.0.iter().map(|ip| ip.parse().unwrap()).collect(),
            external_ips: addresses.1,
            load_balancer_ips: addresses.2,
            internal_policy: internal,
            external_policy: external,
            source_ranges,
            health_check_node_port: Some(31000),
            ..service()
        }
    })
}

fn any_slice() -> impl Strategy<Value = EndpointSlice> {
    let flags = prop::sample::subsequence(vec!["@", "r", "s", "t"], 0..=4).prop_map(|flags| flags.concat());
    let hints = prop::sample::subsequence(vec![" a", " b", " n:here", " n:there"], 0..=4);
    let endpoint = (1u8..6, flags, hints);
    (any::<bool>(), prop::collection::vec(endpoint, 0..6)).prop_map(|(ipv6, endpoints)| {
        let prefix = if ipv6 { "fd01::" } else { "10.1.0." };
        let endpoints = endpoints.into_iter();
        let texts: Vec<_> = endpoints
            .map(|(last, flags, hints)| format!("{prefix}{last} {flags}{}", hints.concat()))
            .collect();
        slice(HTTP, &texts.iter().map(String::as_str).collect::<Vec<_>>())
    })
}

fn is_strictly_sorted<T: Ord>(list: &[T]) -> bool {
    list.windows(2).all(|pair| pair[0] < pair[1])
}

/// The address of a frontend that has one with a port.
fn socket(frontend: &Frontend) -> Option<SocketAddr> {
    match frontend {
        Frontend::ClusterIp(a) | Frontend::ExternalIp(a) | Frontend::LoadBalancer(a) => Some(*a),
        Frontend::ClusterAddress(_) | Frontend::LoadBalancerAddress(_) | Frontend::NodePort(_) => None,
    }
}

proptest! {
    #[test]
    fn plans_are_well_formed(
        service in any_service(),
        slices in prop::collection::vec(any_slice(), 0..4),
        zone in prop::sample::select(vec![None, Some("a")]),
    ) {
        let planned = plan(&service, slices.iter(), NodeContext { zone, ..node_context() });
        prop_assert_eq!(planned.ports.len(), service.cluster_ips.len() * service.ports.len());
        prop_assert_eq!(planned.health_check.is_some(), !planned.ports.is_empty());
        for port in &planned.ports {
            let family = port.name.family;
            for list in [&port.internal, &port.external, &port.cluster, &port.serving] {
                prop_assert!(is_strictly_sorted(list), "{:?}", list);
                prop_assert!(list.iter().all(|address| IpFamily::of(&address.ip()) == family));
            }
            for used in [&port.internal, &port.external, &port.cluster] {
                prop_assert!(used.iter().all(|address| port.serving.contains(address)), "{:?}", port);
            }
            // No local endpoint, and none elsewhere either: packets to an empty set are rejected, not dropped.
            let no_local_endpoint = port.internal.is_empty() && port.external.is_empty();
            prop_assert!(!port.cluster.is_empty() || no_local_endpoint);

            let mut addresses: Vec<_> = port.frontends.iter().filter_map(socket).collect();
            prop_assert!(addresses.iter().all(|address| IpFamily::of(&address.ip()) == family));
            addresses.sort();
            prop_assert!(is_strictly_sorted(&addresses), "{:?}", port.frontends);

            if let Some(sources) = &port.sources {
                prop_assert!(is_strictly_sorted(sources), "{:?}", sources);
                let fit = |net: &IpNet| IpFamily::of(&net.addr()) == family && net.prefix_len() > 0;
                prop_assert!(sources.iter().all(fit), "{:?}", sources);
            }
        }
    }
}
