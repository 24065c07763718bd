//! `debug backends`: every endpoint of every service port.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::Result;
use proxy_common::{
    V4, V6,
    layout::{
        backend::{Backend, BackendState},
        id::Id,
        set::{BackendSet, SetPolicy},
    },
};
use serde::Serialize;

use super::names::{Name, Names, protocol_text};
use crate::{
    datapath::{
        address::UserFamily,
        maps::{self, MapFamily},
        pins::Pins,
    },
    model::plan::IpFamily,
    output::Row,
};

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct BackendRow {
    pub(super) service: String,
    pub(super) protocol: &'static str,
    pub(super) endpoint: SocketAddr,
    /// Which clients may get it.
    pub(super) sets: Vec<&'static str>,
    /// It serves; else it only finishes its connections.
    alive: bool,
}

impl Row for BackendRow {
    const HEADER: &'static [&'static str] = &["SERVICE", "PROTOCOL", "ENDPOINT", "SETS", "ALIVE"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.service.clone(),
            self.protocol.to_owned(),
            self.endpoint.to_string(),
            self.sets.join(","),
            self.alive.to_string(),
        ]
    }
}

/// A set's name, as the columns of `debug services` have it.
pub(super) fn set_policy_text(set_policy: SetPolicy) -> &'static str {
    match set_policy {
        SetPolicy::ClusterIp => "clusterIP",
        SetPolicy::External => "external",
        SetPolicy::Cluster => "cluster",
        SetPolicy::Serving => "serving",
    }
}

pub(super) fn read(pins: &Pins) -> Result<Vec<BackendRow>> {
    let names = Names::read(pins)?;
    let sets = maps::backend_sets(pins)?;
    let alive = maps::backend_states(pins)?;
    let is_alive = |id: Id| Ok(alive.element(BackendState::position(id).0)?.holds(id));
    let slices = |service| {
        let slice = |set_policy| Ok((set_policy, sets.element(BackendSet::index(service, set_policy))?));
        SetPolicy::ALL.into_iter().map(slice).collect::<Result<Vec<_>>>()
    };
    let v4 = V4::backends(pins)?;
    let v6 = V6::backends(pins)?;
    let mut rows = Vec::new();
    for (id, name) in names.iter() {
        let slices = slices(id)?;
        rows.extend(match name.family {
            IpFamily::V4 => of_port(name, &slices, |slot| Ok(v4.element(slot)?), is_alive)?,
            IpFamily::V6 => of_port(name, &slices, |slot| Ok(v6.element(slot)?), is_alive)?,
        });
    }
    rows.sort_by(|a, b| (&a.service, a.protocol, a.endpoint).cmp(&(&b.service, b.protocol, b.endpoint)));
    Ok(rows)
}

/// The endpoints of one service port, each once.
fn of_port<F: UserFamily>(
    name: &Name,
    sets: &[(SetPolicy, BackendSet)],
    slot: impl Fn(u32) -> Result<Backend<F>>,
    is_alive: impl Fn(Id) -> Result<bool>,
) -> Result<Vec<BackendRow>> {
    let mut endpoints: BTreeMap<SocketAddr, (Id, Vec<&'static str>)> = BTreeMap::new();
    for (set_policy, set) in sets {
        for index in set.base()..set.base().saturating_add(set.count()) {
            let backend = slot(index)?;
            let endpoint = F::to_socket(&backend.addr, backend.port);
            let (_, set_policies) = endpoints.entry(endpoint).or_insert((backend.id, Vec::new()));
            if set_policies.last() != Some(&set_policy_text(*set_policy)) {
                set_policies.push(set_policy_text(*set_policy));
            }
        }
    }
    let row = |(endpoint, (id, sets))| {
        Ok(BackendRow {
            service: name.text.clone(),
            protocol: protocol_text(name.protocol),
            endpoint,
            sets,
            alive: is_alive(id)?,
        })
    };
    endpoints.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use proxy_common::layout::{name::ServiceName, set::BackendSetKind};

    use super::*;

    #[test]
    fn each_endpoint_once_with_the_sets_it_is_in() {
        let names: Names = [(Id::new(1, 1), ServiceName::new("default/web", 6, 4))].into_iter().collect();
        let (_, name) = names.iter().next().unwrap();
        let slots: Vec<Backend<V4>> = ["10.0.0.2", "10.0.0.1", "10.0.0.2"]
            .into_iter()
            .zip([2, 1, 2])
            .map(|(ip, id)| {
                Backend::new(V4::from_ip(ip.parse().unwrap()).unwrap(), 80u16.to_be(), Id::new(id, 1))
            })
            .collect();
        let set = |base, count| BackendSet::new(base, count, BackendSetKind::Uniform);
        let sets = [
            (SetPolicy::ClusterIp, set(0, 2)),
            (SetPolicy::External, set(2, 1)),
            (SetPolicy::Serving, set(0, 2)),
        ];
        let rows =
            of_port::<V4>(name, &sets, |slot| Ok(slots[slot as usize]), |id| Ok(id.index() == 2)).unwrap();
        let lines: Vec<String> = rows.iter().map(|row| row.cells().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "default/web TCP 10.0.0.1:80 clusterIP,serving false",
                "default/web TCP 10.0.0.2:80 clusterIP,external,serving true",
            ]
        );
    }
}
