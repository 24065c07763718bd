//! `debug sockets`: the sockets that are being translated. Unconnected UDP sockets are in a map; connected ones are looked
//! for in all network namespaces.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use proxy_common::{
    V4, V6,
    layout::socket::{SocketDirection, SocketKey, SocketPeer},
};
use serde::Serialize;

use super::{
    names::Names,
    output::{Row, or_dash},
};
use crate::{
    datapath::{address::UserFamily, maps::MapFamily, pins::Pins},
    net::sock_diag::Transport,
    reaper::{
        storage::Storage,
        walk::{Translated, translated},
    },
};

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct SocketRow {
    /// The kernel's; `ss -e` shows it as `sk`, in hexadecimal.
    cookie: u64,
    protocol: &'static str,
    connected: bool,
    service: Option<String>,
    vip: SocketAddr,
    backend: SocketAddr,
}

impl Row for SocketRow {
    const HEADER: &'static [&'static str] = &["COOKIE", "PROTOCOL", "CONNECTED", "SERVICE", "VIP", "BACKEND"];

    fn cells(&self) -> Vec<String> {
        let Self { cookie, protocol, connected, service, vip, backend } = self;
        vec![
            format!("{cookie:x}"),
            (*protocol).to_owned(),
            connected.to_string(),
            or_dash(service.as_ref()),
            vip.to_string(),
            backend.to_string(),
        ]
    }
}

pub(super) fn read(pins: &Pins) -> Result<Vec<SocketRow>> {
    let names = Names::read(pins)?;
    let mut rows = rows(entries::<V4>(pins)?, &names);
    rows.extend(self::rows(entries::<V6>(pins)?, &names));
    rows.extend(connected(pins)?.iter().map(|socket| row(socket, &names)));
    rows.sort_by(|a, b| (&a.service, a.vip, a.cookie).cmp(&(&b.service, b.vip, b.cookie)));
    rows.dedup();
    Ok(rows)
}

fn connected(pins: &Pins) -> Result<Vec<Translated>> {
    let transports = [Transport::Udp, Transport::Tcp].into();
    let (sockets, walked) = translated(&Storage::open(pins)?, &transports)
        .context("cannot walk through the network namespaces")?;
    if walked.unsupported {
        eprintln!("this kernel cannot list connected sockets (modules udp_diag and tcp_diag)");
    } else if walked.failed > 0 {
        eprintln!("{} network namespaces could not be looked at", walked.failed);
    }
    Ok(sockets)
}

fn row(socket: &Translated, names: &Names) -> SocketRow {
    let Translated { transport, cookie, translation } = *socket;
    SocketRow {
        cookie,
        protocol: match transport {
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
        },
        connected: true,
        service: names.get(translation.service),
        vip: translation.vip,
        backend: translation.backend,
    }
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
            protocol: "UDP",
            connected: false,
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
    use crate::reaper::storage::Translation;

    const DNS: Id = Id::new(1, 1);

    fn names() -> Names {
        [(DNS, ServiceName::new("kube-system/dns:dns", 17, 4))].into_iter().collect()
    }

    #[test]
    fn each_socket_and_vip_once() {
        let ip = |text: &str| V4::from_ip(text.parse().unwrap()).unwrap();
        let (vip, backend) = (ip("10.96.0.10"), ip("10.244.0.3"));
        let port = 53u16.to_be();
        let peer = |addr| SocketPeer { addr, port, zero: 0, backend: Id::new(1, 1), service: DNS };
        let entries = vec![
            (SocketKey::<V4>::new(0x1f, vip, port, SocketDirection::Send), peer(backend)),
            (SocketKey::new(0x1f, backend, port, SocketDirection::Receive), peer(vip)),
        ];
        let lines: Vec<String> = rows(entries, &names()).iter().map(|row| row.cells().join(" ")).collect();
        assert_eq!(lines, ["1f UDP false kube-system/dns:dns 10.96.0.10:53 10.244.0.3:53"]);
    }

    #[test]
    fn connected_sockets_say_so() {
        let translation = Translation {
            vip: "[fd00::a]:53".parse().unwrap(),
            backend: "[fd01::3]:5353".parse().unwrap(),
            backend_id: Id::new(7, 1),
            service: DNS,
        };
        for (transport, name) in [(Transport::Tcp, "TCP"), (Transport::Udp, "UDP")] {
            let cells = row(&Translated { transport, cookie: 0x2a, translation }, &names()).cells();
            let expected = ["2a", name, "true", "kube-system/dns:dns", "[fd00::a]:53", "[fd01::3]:5353"];
            assert_eq!(cells, expected);
        }
    }
}
