//! `debug services`: every frontend and how many endpoints answer it.

use anyhow::Result;
use proxy_common::{
    Family, V4, V6,
    layout::{
        frontend::{FRONTEND_CLUSTER_IP, Frontend, FrontendKey, Target},
        id::Id,
        set::{Set, SetRole},
    },
};
use serde::Serialize;

use super::{
    names::{Names, protocol_text},
    output::{Row, or_dash},
};
use crate::{
    datapath::{
        address::{UserFamily, protocol_of},
        maps::{self, MapFamily},
        pins::Pins,
    },
    model::plan::IpFamily,
};

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct ServiceRow {
    service: Option<String>,
    #[serde(rename = "type")]
    kind: Kind,
    address: String,
    port: u16,
    protocol: &'static str,
    endpoints: Endpoints,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
enum Kind {
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    NodePort,
}

/// How many endpoints there are for clients of each kind, by traffic policy.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Endpoints {
    #[serde(rename = "clusterIP")]
    cluster_ip: u32,
    external: u32,
    cluster: u32,
}

impl Row for ServiceRow {
    const HEADER: &'static [&'static str] =
        &["SERVICE", "TYPE", "ADDRESS", "PROTOCOL", "CLUSTER-IP", "EXTERNAL", "CLUSTER"];

    fn cells(&self) -> Vec<String> {
        let kind = match self.kind {
            Kind::ClusterIp => "ClusterIP",
            Kind::NodePort => "NodePort",
        };
        let Endpoints { cluster_ip, external, cluster } = &self.endpoints;
        vec![
            or_dash(self.service.as_ref()),
            kind.to_owned(),
            self.address.clone(),
            self.protocol.to_owned(),
            cluster_ip.to_string(),
            external.to_string(),
            cluster.to_string(),
        ]
    }
}

pub(super) fn read(pins: &Pins) -> Result<Vec<ServiceRow>> {
    let names = Names::read(pins)?;
    let sets = maps::sets(pins)?;
    let set = |service, role| Ok(sets.get(&Set::index(service, role), 0)?);
    let mut rows = family::<V4>(frontends::<V4>(pins)?, &names, set)?;
    rows.extend(family::<V6>(frontends::<V6>(pins)?, &names, set)?);
    rows.sort();
    Ok(rows)
}

fn frontends<F: MapFamily>(pins: &Pins) -> Result<Vec<(FrontendKey<F>, Frontend<F>)>> {
    Ok(F::frontends(pins)?.iter().collect::<Result<_, _>>()?)
}

fn family<F: UserFamily>(
    frontends: Vec<(FrontendKey<F>, Frontend<F>)>,
    names: &Names,
    set: impl Fn(Id, SetRole) -> Result<Set>,
) -> Result<Vec<ServiceRow>> {
    let row = |(key, value): (FrontendKey<F>, Frontend<F>)| {
        // Torn just now: the next look shows what it became.
        let target = value.checked(&key)?;
        Some(row(&key, target, names, &set))
    };
    frontends.into_iter().filter_map(row).collect()
}

fn row<F: UserFamily>(
    key: &FrontendKey<F>,
    target: Target,
    names: &Names,
    set: impl Fn(Id, SetRole) -> Result<Set>,
) -> Result<ServiceRow> {
    let service = target.service();
    let count = |role| Ok::<_, anyhow::Error>(set(service, role)?.count());
    let is_cluster_ip = target.flags() & FRONTEND_CLUSTER_IP != 0;
    Ok(ServiceRow {
        service: names.get(service),
        kind: if is_cluster_ip { Kind::ClusterIp } else { Kind::NodePort },
        address: address(key),
        port: u16::from_be(key.port),
        protocol: protocol_text(protocol_of(key.protocol)),
        endpoints: Endpoints {
            cluster_ip: count(SetRole::ClusterIp)?,
            external: count(SetRole::External)?,
            cluster: count(SetRole::Cluster)?,
        },
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
    use proxy_common::layout::{name::ServiceName, set::SetKind};

    use super::*;
    use crate::{cli::OutputFormat, debug::output::render};

    fn frontend<F: UserFamily>(ip: &str, port: u16, id: Id, flags: u32) -> (FrontendKey<F>, Frontend<F>) {
        let addr = F::from_ip(ip.parse().unwrap()).unwrap();
        let key = FrontendKey::new(addr, port.to_be(), 6);
        (key, Frontend::new(key, Target::new(id, flags).unwrap()))
    }

    #[test]
    fn frontends_with_their_endpoints() {
        let web = Id::new(1, 1);
        let names: Names = [(web, ServiceName::new("default/web:http", 6, 4))].into_iter().collect();
        let set = |_, role: SetRole| {
            let count = [3, 1, 2][role as usize];
            Ok(Set::new(0, count, SetKind::Uniform))
        };
        let v4 = vec![
            frontend::<V4>("0.0.0.0", 30016, web, 0),
            frontend::<V4>("10.103.132.104", 3306, web, FRONTEND_CLUSTER_IP),
        ];
        let mut rows = family(v4, &names, set).unwrap();
        rows.extend(family(vec![frontend::<V6>("::", 30016, web.next(), 0)], &names, set).unwrap());
        rows.sort();
        let text = render(&rows, OutputFormat::Table).unwrap();
        let words: Vec<Vec<&str>> = text.lines().skip(1).map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(
            words,
            [
                ["-", "NodePort", "[::]:30016", "TCP", "3", "1", "2"],
                ["default/web:http", "ClusterIP", "10.103.132.104:3306", "TCP", "3", "1", "2"],
                ["default/web:http", "NodePort", "*:30016", "TCP", "3", "1", "2"],
            ]
        );
        let json = serde_json::to_value(&rows[1]).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "service": "default/web:http", "type": "ClusterIP", "address": "10.103.132.104:3306", "port": 3306,
                "protocol": "TCP", "endpoints": {"clusterIP": 3, "external": 1, "cluster": 2},
            })
        );
    }
}
