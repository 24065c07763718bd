//! Takes over what an earlier agent left in the maps.

use std::collections::HashMap;

use anyhow::Result;
use proxy_common::{
    V4, V6,
    layout::{
        frontend::FrontendKey,
        id::Id,
        name::ServiceName,
        set::{Set, SetRole},
    },
};

use super::{PortState, Services, SetState};
use crate::{
    datapath::{
        address::protocol_of,
        maps::{self, MapFamily},
        pins::Pins,
        slices::Slice,
    },
    model::{
        objects::ObjectName,
        plan::{Frontend, IpFamily, PortName},
    },
};

/// What an earlier agent left.
#[derive(Default)]
pub(super) struct Restored {
    pub(super) ports: HashMap<PortName, PortState>,
    by_id: HashMap<Id, PortName>,
    nameless_v4: Vec<FrontendKey<V4>>,
    nameless_v6: Vec<FrontendKey<V6>>,
    doubled: Vec<u32>,
}

impl Restored {
    pub(super) fn read(pins: &Pins) -> Result<Self> {
        let mut restored = Self::default();
        for entry in maps::names(pins)?.iter() {
            let (id, name) = entry?;
            match parse_name(&name) {
                Some(port) if !restored.ports.contains_key(&port) => {
                    restored.by_id.insert(Id(id), port.clone());
                    restored.ports.insert(port, PortState { id: Id(id), ..PortState::default() });
                }
                _ => restored.doubled.push(id),
            }
        }
        restored.nameless_v4 = restored.read_family::<V4>(pins)?;
        restored.nameless_v6 = restored.read_family::<V6>(pins)?;
        Ok(restored)
    }

    /// Reads frontends and sets of a family; returns the frontends of nobody.
    pub(super) fn read_family<F: MapFamily>(&mut self, pins: &Pins) -> Result<Vec<FrontendKey<F>>> {
        let mut nameless = Vec::new();
        for entry in F::frontends(pins)?.iter() {
            let (key, value) = entry?;
            let port = value
                .checked(&key)
                .and_then(|target| self.by_id.get(&target.service()))
                .and_then(|name| self.ports.get_mut(name));
            match port {
                Some(state) => {
                    let is_node_port = F::same(&key.addr, &F::UNSPECIFIED);
                    state.frontends.insert(if is_node_port {
                        Frontend::NodePort(u16::from_be(key.port))
                    } else {
                        Frontend::ClusterIp(F::to_socket(&key.addr, key.port))
                    });
                }
                None => nameless.push(key),
            }
        }
        let (sets, backends) = (maps::sets(pins)?, F::backends(pins)?);
        for (_, state) in self.ports.iter_mut().filter(|(name, _)| name.family == F::FAMILY) {
            for role in SetRole::ALL {
                let set = sets.get(&Set::index(state.id, role), 0)?;
                let slice = Slice { base: set.base(), len: set.count() };
                let mut endpoints = Vec::with_capacity(slice.len as usize);
                for slot in slice.base..slice.base + slice.len {
                    let backend = backends.get(&slot, 0)?;
                    let endpoint = F::to_socket(&backend.addr, backend.port);
                    state.backends.insert(endpoint, backend.id);
                    endpoints.push(endpoint);
                }
                state.sets[role as usize] = SetState { slice, endpoints: endpoints.into() };
            }
        }
        Ok(nameless)
    }

    /// Removes what belongs to nobody: traces of an agent that was killed between two writes.
    pub(super) fn drop_orphans(self, services: &mut Services) {
        for key in self.nameless_v4 {
            let _ = services.v4.frontends.remove(&key);
        }
        for key in self.nameless_v6 {
            let _ = services.v6.frontends.remove(&key);
        }
        for id in self.doubled {
            let _ = services.shared.names.remove(&id);
        }
    }
}

/// A name as [`PortName`]'s `Display` writes it, with protocol and family.
fn parse_name(name: &ServiceName) -> Option<PortName> {
    let text = name.as_str();
    let (namespace, rest) = text.split_once('/')?;
    let (service, port) = rest.split_once(':').unwrap_or((rest, ""));
    Some(PortName {
        service: ObjectName::new(namespace, service),
        port: port.into(),
        protocol: protocol_of(name.protocol)?,
        family: if name.ip_version == 4 { IpFamily::V4 } else { IpFamily::V6 },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{datapath::address::protocol_number, model::objects::Protocol};

    #[test]
    fn names_are_read_as_they_were_written() {
        for (port, protocol, family) in
            [("", Protocol::Tcp, IpFamily::V4), ("http", Protocol::Udp, IpFamily::V6)]
        {
            let name =
                PortName { service: ObjectName::new("default", "web"), port: port.into(), protocol, family };
            let version = if family == IpFamily::V4 { 4 } else { 6 };
            let value = ServiceName::new(&name.to_string(), protocol_number(protocol), version);
            assert_eq!(parse_name(&value), Some(name));
        }
    }
}
