//! Names of Services by the address that clients connect to.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use proxy_common::{
    Family, V4, V6,
    layout::{
        event::Words,
        frontend::{Frontend, FrontendKey},
        id::Id,
        name::ServiceName,
    },
};

use crate::datapath::{
    address::UserFamily as _,
    maps::{self, Hash, MapFamily},
    pins::Pins,
};

/// Reads the pinned maps.
pub(crate) struct Lookup {
    names: Hash<u32, ServiceName>,
    v4: Hash<FrontendKey<V4>, Frontend<V4>>,
    v6: Hash<FrontendKey<V6>, Frontend<V6>>,
}

impl Lookup {
    /// Opens them.
    ///
    /// # Errors
    /// When the maps do not exist.
    pub(crate) fn open(pins: &Pins) -> Result<Self> {
        Ok(Self { names: maps::service_names(pins)?, v4: V4::frontends(pins)?, v6: V6::frontends(pins)? })
    }

    /// The service port of a frontend, like `default/web:http`, or the Service of another port of a cluster IP, like `default/web`. None if
    /// no Service has it by now.
    pub(crate) fn service(&self, version: u8, addr: &Words, port: u16, protocol: u8) -> Option<String> {
        match version {
            4 => self.find(&self.v4, addr[0], port, protocol),
            _ => self.find(&self.v6, *addr, port, protocol),
        }
    }

    fn find<F: MapFamily>(
        &self,
        frontends: &Hash<FrontendKey<F>, Frontend<F>>,
        addr: F::Addr,
        port: u16,
        protocol: u8,
    ) -> Option<String> {
        let service = |key: FrontendKey<F>| {
            let target = frontends.get(&key).ok()??.checked(&key)?;
            self.name(target.service())
        };
        let without_port =
            |name: String| name.split_once(':').map_or(name.clone(), |(service, _)| service.to_owned());
        service(FrontendKey::new(addr, port, protocol))
            .or_else(|| service(FrontendKey::new(<F as Family>::UNSPECIFIED, port, protocol)))
            .or_else(|| service(FrontendKey::of_address(addr)).map(without_port))
    }

    /// The name of a service port.
    pub(crate) fn name(&self, service: Id) -> Option<String> {
        Some(self.names.get(&service.0).ok()??.as_str().to_owned())
    }
}

/// An address of either family.
pub(crate) fn ip(version: u8, addr: &Words) -> IpAddr {
    if version == 4 { V4::to_ip(&addr[0]) } else { V6::to_ip(addr) }
}

/// Address and port (network byte order).
pub(crate) fn socket(version: u8, addr: &Words, port: u16) -> SocketAddr {
    SocketAddr::new(ip(version, addr), u16::from_be(port))
}

/// An address as events have it.
pub(crate) fn words(ip: IpAddr) -> (u32, Words) {
    match ip {
        IpAddr::V4(_) => (4, [V4::from_ip(ip).unwrap_or_default(), 0, 0, 0]),
        IpAddr::V6(_) => (6, V6::from_ip(ip).unwrap_or_default()),
    }
}
