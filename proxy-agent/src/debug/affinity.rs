//! `debug affinity`: which client keeps which endpoint.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use proxy_common::{
    Family, V4, V6,
    layout::affinity::{Affinity, AffinityKey},
};
use serde::Serialize;

use super::names::Names;
use crate::{
    clock::Clock,
    datapath::{address::UserFamily, maps::MapFamily, pins::Pins},
    output::{Row, or_dash},
};

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AffinityRow {
    pub(super) service: Option<String>,
    /// None for sockets that were bound to no address when they connected.
    client: Option<IpAddr>,
    /// Cookie of the network namespace, of sockets only.
    netns: Option<u64>,
    pub(super) endpoint: SocketAddr,
    /// Since the client last opened a flow. After the timeout (`debug services`) a new backend is selected for it.
    unused_seconds: Option<u64>,
}

impl Row for AffinityRow {
    const HEADER: &'static [&'static str] = &["SERVICE", "CLIENT", "NETNS", "ENDPOINT", "UNUSED"];

    fn cells(&self) -> Vec<String> {
        vec![
            or_dash(self.service.as_ref()),
            or_dash(self.client),
            or_dash(self.netns),
            self.endpoint.to_string(),
            or_dash(self.unused_seconds.map(|seconds| format!("{seconds}s"))),
        ]
    }
}

pub(super) fn read(pins: &Pins) -> Result<Vec<AffinityRow>> {
    let names = Names::read(pins)?;
    let clock = Clock::read();
    let mut rows: Vec<_> =
        V4::affinity(pins)?.entries()?.iter().map(|(key, entry)| row(key, entry, &names, clock)).collect();
    rows.extend(V6::affinity(pins)?.entries()?.iter().map(|(key, entry)| row(key, entry, &names, clock)));
    rows.sort_by(|a, b| (&a.service, a.client, a.netns).cmp(&(&b.service, b.client, b.netns)));
    rows.dedup();
    Ok(rows)
}

fn row<F: UserFamily>(
    key: &AffinityKey<F>,
    entry: &Affinity<F>,
    names: &Names,
    clock: Option<Clock>,
) -> AffinityRow {
    let is_bound = !<F as Family>::same(&key.client, &F::UNSPECIFIED);
    AffinityRow {
        service: names.get(key.service),
        client: is_bound.then(|| F::to_ip(&key.client)),
        netns: (key.netns != 0).then_some(key.netns),
        endpoint: F::to_socket(&entry.addr, entry.port),
        unused_seconds: clock.map(|clock| clock.seconds_since(entry.last_used)),
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::layout::{id::Id, name::ServiceName};

    use super::*;

    #[test]
    fn clients_are_addresses_or_namespaces() {
        let web = Id::new(1, 1);
        let names: Names = [(web, ServiceName::new("default/web", 6, 4))].into_iter().collect();
        let addr = |ip: &str| V4::from_ip(ip.parse().unwrap()).unwrap();
        let entry = Affinity::<V4> { addr: addr("10.244.0.1"), port: 8080u16.to_be(), ..Affinity::default() };
        let line = |client: &str, netns, service| {
            row(&AffinityKey::new(addr(client), netns, service), &entry, &names, None).cells().join(" ")
        };
        assert_eq!(line("192.0.2.9", 0, web), "default/web 192.0.2.9 - 10.244.0.1:8080 -");
        assert_eq!(line("0.0.0.0", 4099, web), "default/web - 4099 10.244.0.1:8080 -");
        assert_eq!(line("10.244.0.9", 4099, web.next()), "- 10.244.0.9 4099 10.244.0.1:8080 -");
    }
}
