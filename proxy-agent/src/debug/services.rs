//! `debug services`: every frontend and how many endpoints answer it.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
};

use anyhow::Result;
use ipnet::IpNet;
use proxy_common::{
    Family, V4, V6,
    layout::{
        frontend::{
            FRONTEND_ADDRESS, FRONTEND_CLUSTER_IP, FRONTEND_SOURCE_RANGES, Frontend, FrontendKey, Target,
        },
        id::Id,
        set::{BackendSet, SetPolicy},
        source_range::SourceRange,
    },
};
use serde::Serialize;

use super::{
    backends::set_policy_text,
    names::{Names, protocol_text},
};
use crate::{
    clock::Clock,
    datapath::{
        address::{UserFamily, protocol_of},
        maps::{self, MapFamily},
        pins::Pins,
    },
    model::plan::IpFamily,
    output::{Row, or_dash},
};

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceRow {
    pub(super) service: Option<String>,
    #[serde(rename = "type")]
    kind: Kind,
    address: String,
    port: u16,
    protocol: &'static str,
    endpoints: Endpoints,
    /// How long a client keeps its endpoint, if it does.
    affinity_seconds: Option<u32>,
    /// Allowed clients; `None`: everyone. Empty: no client.
    source_ranges: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
enum Kind {
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    NodePort,
    /// A load balancer's address, known by its source ranges.
    LoadBalancer,
    /// An external IP, or a load balancer's address that everyone may use: the same to the data path.
    External,
}

/// How many endpoints there are for clients of each kind, by traffic policy.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Endpoints {
    #[serde(rename = "clusterIP")]
    cluster_ip: u32,
    external: u32,
    cluster: u32,
    /// Of the above, those without endpoints because the traffic policy leaves none here: packets are dropped, not rejected.
    #[serde(rename = "noLocalEndpoints")]
    no_local_endpoints: Vec<&'static str>,
}

impl Row for ServiceRow {
    const HEADER: &'static [&'static str] = &[
        "SERVICE",
        "TYPE",
        "ADDRESS",
        "PROTOCOL",
        "CLUSTER-IP",
        "EXTERNAL",
        "CLUSTER",
        "AFFINITY",
        "SOURCES",
    ];

    fn cells(&self) -> Vec<String> {
        let kind = match self.kind {
            Kind::ClusterIp => "ClusterIP",
            Kind::NodePort => "NodePort",
            Kind::LoadBalancer => "LoadBalancer",
            Kind::External => "External",
        };
        let Endpoints { cluster_ip, external, cluster, no_local_endpoints } = &self.endpoints;
        let count = |set_policy, count: &u32| {
            if no_local_endpoints.contains(&set_policy_text(set_policy)) {
                "noLocalEndpoints".to_owned()
            } else {
                count.to_string()
            }
        };
        vec![
            or_dash(self.service.as_ref()),
            kind.to_owned(),
            self.address.clone(),
            self.protocol.to_owned(),
            count(SetPolicy::ClusterIp, cluster_ip),
            count(SetPolicy::External, external),
            count(SetPolicy::Cluster, cluster),
            or_dash(self.affinity_seconds.map(|seconds| format!("{seconds}s"))),
            or_dash(self.source_ranges.as_ref().map(|ranges| match &ranges[..] {
                [] => "nobody".to_owned(),
                [only] => only.clone(),
                [first, others @ ..] => format!("{first} +{}", others.len()),
            })),
        ]
    }
}

/// Result of the look-up for a frontend.
struct Lookup<S> {
    names: Names,
    clock: Option<Clock>,
    /// An element of `backend_sets`.
    set: S,
    sources: HashMap<Id, BTreeSet<IpNet>>,
}

pub(super) fn read(pins: &Pins) -> Result<Vec<ServiceRow>> {
    let sets = maps::backend_sets(pins)?;
    let mut sources = HashMap::new();
    read_sources::<V4>(pins, &mut sources)?;
    read_sources::<V6>(pins, &mut sources)?;
    let lookup = Lookup {
        names: Names::read(pins)?,
        clock: Clock::read(),
        set: |index| Ok(sets.element(index)?),
        sources,
    };
    let mut rows = family(V4::frontends(pins)?.entries()?, &lookup)?;
    rows.extend(family(V6::frontends(pins)?.entries()?, &lookup)?);
    rows.sort();
    Ok(rows)
}

/// Cluster IPs of TCP that have endpoints: the service port's name, and where it is reached.
///
/// # Errors
/// When the maps cannot be read.
pub(crate) fn tcp_cluster_ips(pins: &Pins) -> Result<Vec<(String, SocketAddr)>> {
    let is_wanted = |row: &ServiceRow| {
        row.kind == Kind::ClusterIp && row.protocol == "TCP" && row.endpoints.cluster_ip > 0
    };
    let rows = read(pins)?.into_iter().filter(is_wanted);
    Ok(rows.filter_map(|row| Some((row.service?, row.address.parse().ok()?))).collect())
}

fn read_sources<F: MapFamily>(pins: &Pins, found: &mut HashMap<Id, BTreeSet<IpNet>>) -> Result<()> {
    for ((bits, source), _) in F::source_ranges(pins)?.entries()? {
        let bits = bits.saturating_sub(SourceRange::<F>::SERVICE_BITS);
        if let Ok(net) = IpNet::new(F::to_ip(&source.addr), bits as u8) {
            found.entry(source.service).or_default().insert(net);
        }
    }
    Ok(())
}

fn family<F: UserFamily>(
    frontends: Vec<(FrontendKey<F>, Frontend<F>)>,
    lookup: &Lookup<impl Fn(u32) -> Result<BackendSet>>,
) -> Result<Vec<ServiceRow>> {
    let row = |(key, value): (FrontendKey<F>, Frontend<F>)| {
        // Torn just now: the next read shows the result.
        let target = value.checked(&key)?;
        // Every other port of a cluster IP: rejected, and not shown as a row.
        (target.flags() & FRONTEND_ADDRESS == 0).then(|| row(&key, target, lookup))
    };
    frontends.into_iter().filter_map(row).collect()
}

fn row<F: UserFamily>(
    key: &FrontendKey<F>,
    target: Target,
    lookup: &Lookup<impl Fn(u32) -> Result<BackendSet>>,
) -> Result<ServiceRow> {
    let service = target.service();
    let mut no_local_endpoints = Vec::new();
    let mut count = |set_policy| {
        let set = (lookup.set)(BackendSet::index(service, set_policy))?;
        if set.lacks_local_endpoints() {
            no_local_endpoints.push(set_policy_text(set_policy));
        }
        Ok::<_, anyhow::Error>(set.count())
    };
    let (cluster_ip, external, cluster) =
        (count(SetPolicy::ClusterIp)?, count(SetPolicy::External)?, count(SetPolicy::Cluster)?);
    let timeout = (lookup.set)(BackendSet::affinity_index(service))?.0 as u32;
    let has_sources = target.flags() & FRONTEND_SOURCE_RANGES != 0;
    Ok(ServiceRow {
        service: lookup.names.get(service),
        kind: if target.flags() & FRONTEND_CLUSTER_IP != 0 {
            Kind::ClusterIp
        } else if F::same(&key.addr, &F::UNSPECIFIED) {
            Kind::NodePort
        } else if has_sources {
            Kind::LoadBalancer
        } else {
            Kind::External
        },
        address: address(key),
        port: u16::from_be(key.port),
        protocol: protocol_text(protocol_of(key.protocol)),
        endpoints: Endpoints { cluster_ip, external, cluster, no_local_endpoints },
        affinity_seconds: lookup.clock.filter(|_| timeout > 0).map(|clock| clock.seconds(timeout)),
        source_ranges: has_sources
            .then(|| lookup.sources.get(&service).into_iter().flatten().map(ToString::to_string).collect()),
    })
}

/// A frontend's address and port; a node port is one of many addresses.
fn address<F: UserFamily>(key: &FrontendKey<F>) -> String {
    let is_any = <F as Family>::same(&key.addr, &F::UNSPECIFIED);
    if is_any && F::FAMILY == IpFamily::V4 {
        format!("*:{}", u16::from_be(key.port))
    } else {
        F::to_socket(&key.addr, key.port).to_string()
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::layout::{name::ServiceName, set::BackendSetKind};

    use super::*;
    use crate::{
        clock,
        output::{OutputFormat, render},
    };

    const WEB: Id = Id::new(1, 1);

    fn frontend<F: UserFamily>(ip: &str, port: u16, id: Id, flags: u32) -> (FrontendKey<F>, Frontend<F>) {
        let addr = F::from_ip(ip.parse().unwrap()).unwrap();
        let key = FrontendKey::new(addr, port.to_be(), 6);
        (key, Frontend::new(key, Target::new(id, flags).unwrap()))
    }

    fn lookup(sets: &[(u32, BackendSet)]) -> Lookup<impl Fn(u32) -> Result<BackendSet> + use<>> {
        let sets: HashMap<u32, BackendSet> = sets.iter().copied().collect();
        Lookup {
            names: [(WEB, ServiceName::new("default/web:http", 6, 4))].into_iter().collect(),
            clock: Clock::read(),
            set: move |index| Ok(sets.get(&index).copied().unwrap_or_default()),
            sources: HashMap::new(),
        }
    }

    /// The words of a table's lines.
    fn table(rows: &[ServiceRow]) -> Vec<Vec<String>> {
        let text = render(rows, OutputFormat::Table).unwrap();
        text.lines().skip(1).map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    }

    #[test]
    fn frontends_with_their_endpoints() {
        let sets = [(SetPolicy::ClusterIp, 3), (SetPolicy::External, 1), (SetPolicy::Cluster, 2)].map(
            |(set_policy, count)| {
                (BackendSet::index(WEB, set_policy), BackendSet::new(0, count, BackendSetKind::Uniform))
            },
        );
        let lookup = lookup(&sets);
        let address = FrontendKey::of_address(7);
        let whole = Target::new(WEB, FRONTEND_CLUSTER_IP | FRONTEND_ADDRESS).unwrap();
        let v4 = vec![
            frontend::<V4>("0.0.0.0", 30016, WEB, 0),
            frontend::<V4>("10.103.132.104", 3306, WEB, FRONTEND_CLUSTER_IP),
            frontend::<V4>("192.0.2.7", 3306, WEB, 0),
            (address, Frontend::new(address, whole)),
        ];
        let mut rows = family(v4, &lookup).unwrap();
        rows.extend(family(vec![frontend::<V6>("::", 30016, WEB.next(), 0)], &lookup).unwrap());
        rows.sort();
        assert_eq!(
            table(&rows),
            [
                ["-", "NodePort", "[::]:30016", "TCP", "3", "1", "2", "-", "-"],
                ["default/web:http", "ClusterIP", "10.103.132.104:3306", "TCP", "3", "1", "2", "-", "-"],
                ["default/web:http", "NodePort", "*:30016", "TCP", "3", "1", "2", "-", "-"],
                ["default/web:http", "External", "192.0.2.7:3306", "TCP", "3", "1", "2", "-", "-"],
            ]
        );
        let json = serde_json::to_value(&rows[1]).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "service": "default/web:http", "type": "ClusterIP", "address": "10.103.132.104:3306", "port": 3306,
                "protocol": "TCP", "endpoints": {"clusterIP": 3, "external": 1, "cluster": 2, "noLocalEndpoints": []},
                "affinitySeconds": null, "sourceRanges": null,
            })
        );
    }

    #[test]
    fn affinity_source_ranges_and_no_local_endpoints() {
        let mut lookup = lookup(&[
            (BackendSet::index(WEB, SetPolicy::ClusterIp), BackendSet::EMPTY),
            (BackendSet::index(WEB, SetPolicy::External), BackendSet::NO_LOCAL_ENDPOINTS),
            (
                BackendSet::index(WEB, SetPolicy::Cluster),
                BackendSet::new(0, 2, BackendSetKind::SessionAffinity),
            ),
            (BackendSet::affinity_index(WEB), BackendSet(clock::jiffies(10_800).into())),
        ]);
        let rows = |lookup: &Lookup<_>| {
            family(vec![frontend::<V4>("192.0.2.7", 80, WEB, FRONTEND_SOURCE_RANGES)], lookup).unwrap()
        };
        let line = |last: &[&str]| {
            let words = [
                "default/web:http",
                "LoadBalancer",
                "192.0.2.7:80",
                "TCP",
                "0",
                "noLocalEndpoints",
                "2",
                "10800s",
            ];
            words.iter().chain(last).map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(table(&rows(&lookup)), [line(&["nobody"])]);
        let nets = ["10.0.0.0/8", "192.0.2.0/24"].map(|net| net.parse().unwrap());
        lookup.sources.insert(WEB, nets.into());
        assert_eq!(table(&rows(&lookup)), [line(&["10.0.0.0/8", "+1"])]);
        let json = serde_json::to_value(&rows(&lookup)[0]).unwrap();
        assert_eq!(json["sourceRanges"], serde_json::json!(["10.0.0.0/8", "192.0.2.0/24"]));
        assert_eq!(json["affinitySeconds"], 10_800);
        assert_eq!(json["endpoints"]["noLocalEndpoints"], serde_json::json!(["external"]));
    }
}
