//! Names of service ports, by the ids that other maps hold.

use std::collections::BTreeMap;

use anyhow::Result;
use proxy_common::layout::{id::Id, name::ServiceName};

use crate::{
    datapath::{address::protocol_of, maps, pins::Pins},
    model::{objects::Protocol, plan::IpFamily},
};

/// A service port, as the agent named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    /// Like `default/web:http`.
    pub(super) text: String,
    pub(super) protocol: Option<Protocol>,
    pub(super) family: IpFamily,
}

/// All names.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(BTreeMap<Id, Name>);

impl Names {
    pub(super) fn read(pins: &Pins) -> Result<Self> {
        let entries = maps::service_names(pins)?.entries()?;
        Ok(entries.into_iter().map(|(id, name)| (Id(id), name)).collect())
    }

    /// The name of a service port; none if the id is of an earlier owner of its index.
    pub(super) fn get(&self, id: Id) -> Option<String> {
        self.0.get(&id).map(|name| name.text.clone())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Id, &Name)> {
        self.0.iter().map(|(id, name)| (*id, name))
    }
}

impl FromIterator<(Id, ServiceName)> for Names {
    fn from_iter<I: IntoIterator<Item = (Id, ServiceName)>>(names: I) -> Self {
        let name = |name: ServiceName| Name {
            text: name.as_str().to_owned(),
            protocol: protocol_of(name.protocol),
            family: if name.ip_version == 6 { IpFamily::V6 } else { IpFamily::V4 },
        };
        Self(names.into_iter().map(|(id, value)| (id, name(value))).collect())
    }
}

/// A protocol as Services spell it.
pub(crate) fn protocol_text(protocol: Option<Protocol>) -> &'static str {
    match protocol {
        Some(Protocol::Tcp) => "TCP",
        Some(Protocol::Udp) => "UDP",
        Some(Protocol::Sctp) => "SCTP",
        None => "?",
    }
}
