//! `debug sockets`: the unconnected UDP sockets that are being translated.

use std::net::SocketAddr;

use anyhow::Result;
use proxy_common::{
    V4, V6,
    layout::socket::{SocketDirection, SocketKey, SocketPeer},
};
use serde::Serialize;

use super::{
    names::Names,
    output::{Row, or_dash},
};
use crate::datapath::{address::UserFamily, maps::MapFamily, pins::Pins};

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct SocketRow {
    /// The kernel's; `ss -e` shows it as `sk`, in hexadecimal.
    cookie: u64,
    service: Option<String>,
    vip: SocketAddr,
    backend: SocketAddr,
}

impl Row for SocketRow {
    const HEADER: &'static [&'static str] = &["COOKIE", "SERVICE", "VIP", "BACKEND"];

    fn cells(&self) -> Vec<String> {
        let Self { cookie, service, vip, backend } = self;
        vec![format!("{cookie:x}"), or_dash(service.as_ref()), vip.to_string(), backend.to_string()]
    }
}

pub(super) fn read(pins: &Pins) -> Result<Vec<SocketRow>> {
    let names = Names::read(pins)?;
    let mut rows = rows(entries::<V4>(pins)?, &names);
    rows.extend(self::rows(entries::<V6>(pins)?, &names));
    rows.sort_by(|a, b| (&a.service, a.vip, a.cookie).cmp(&(&b.service, b.vip, b.cookie)));
    rows.dedup();
    Ok(rows)
}

/// All entries of a family's map. Walking a map that changes can begin anew: duplicates go, and there is an end.
fn entries<F: MapFamily>(pins: &Pins) -> Result<Vec<(SocketKey<F>, SocketPeer<F>)>> {
    const PATIENCE: usize = 1 << 20;
    Ok(F::sockets(pins)?.iter().take(PATIENCE).collect::<Result<_, _>>()?)
}

fn rows<F: UserFamily>(entries: Vec<(SocketKey<F>, SocketPeer<F>)>, names: &Names) -> Vec<SocketRow> {
    let sends = entries.into_iter().filter(|(key, _)| key.direction == SocketDirection::Send as u16);
    sends
        .map(|(key, peer)| SocketRow {
            cookie: key.cookie,
            service: names.get(peer.service),
            vip: F::to_socket(&key.addr, key.port),
            backend: F::to_socket(&peer.addr, peer.port),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proxy_common::layout::{id::Id, name::ServiceName};

    use super::*;

    #[test]
    fn each_socket_and_vip_once() {
        let dns = Id::new(1, 1);
        let names: Names = [(dns, ServiceName::new("kube-system/dns:dns", 17, 4))].into_iter().collect();
        let ip = |text: &str| V4::from_ip(text.parse().unwrap()).unwrap();
        let (vip, backend) = (ip("10.96.0.10"), ip("10.244.0.3"));
        let port = 53u16.to_be();
        let peer = |addr| SocketPeer { addr, port, zero: 0, backend: Id::new(1, 1), service: dns };
        let entries = vec![
            (SocketKey::<V4>::new(0x1f, vip, port, SocketDirection::Send), peer(backend)),
            (SocketKey::new(0x1f, backend, port, SocketDirection::Receive), peer(vip)),
        ];
        let lines: Vec<String> = rows(entries, &names).iter().map(|row| row.cells().join(" ")).collect();
        assert_eq!(lines, ["1f kube-system/dns:dns 10.96.0.10:53 10.244.0.3:53"]);
    }
}
