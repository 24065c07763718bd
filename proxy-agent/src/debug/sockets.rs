//! `debug sockets`: the unconnected UDP sockets that are being translated. They keep that themselves, so the sockets of all
//! processes are looked at; further VIPs of one, and everything on kernels without socket storage, are in a map.

use std::{
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::Result;
use proxy_common::{
    V4, V6,
    layout::socket::{SharedPeer, SocketDirection, SocketKey, SocketPeer, UdpPeers},
};
use proxy_sys::socket::socket_cookie;
use serde::Serialize;

use super::names::Names;
use crate::{
    datapath::{
        address::UserFamily,
        maps::{MapFamily, SocketStorage},
        pins::Pins,
    },
    net::processes,
    output::{Row, or_dash},
};

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct SocketRow {
    /// The kernel's; `ss -e` shows it as `sk`, in hexadecimal.
    cookie: u64,
    pub(super) service: Option<String>,
    vip: SocketAddr,
    pub(super) backend: SocketAddr,
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
    let (mut v4, mut v6) = (entries::<V4>(pins)?, entries::<V6>(pins)?);
    let (kept_v4, kept_v6) = (V4::udp_peers(pins)?, V6::udp_peers(pins)?);
    processes::for_each_socket(|socket| {
        v4.extend(kept(&kept_v4, socket));
        v6.extend(kept(&kept_v6, socket));
    });
    let mut rows = rows(v4, &names);
    rows.extend(self::rows(v6, &names));
    rows.sort_by(|a, b| (&a.service, a.vip, a.cookie).cmp(&(&b.service, b.vip, b.cookie)));
    rows.dedup();
    Ok(rows)
}

type Entry<F> = (SocketKey<F>, SocketPeer<F>);

/// All entries of a family's map.
fn entries<F: MapFamily>(pins: &Pins) -> Result<Vec<Entry<F>>> {
    let entry = |(_, SharedPeer { key, peer, .. })| (key, peer);
    Ok(F::sockets(pins)?.entries()?.into_iter().map(entry).collect())
}

/// The records in a socket's own storage.
fn kept<F: MapFamily>(map: &SocketStorage<UdpPeers<F>>, socket: &OwnedFd) -> Vec<Entry<F>> {
    // A socket that is not UDP, or never sent to a VIP, has no record.
    let (Ok(Some(kept)), Ok(cookie)) = (map.get(socket), socket_cookie(socket.as_fd())) else {
        return Vec::new();
    };
    let whole = kept.peers.iter().filter(|entry| entry.is_whole());
    let key = |vip, port| SocketKey::new(cookie, vip, port, SocketDirection::Send);
    whole.map(|entry| (key(entry.vip, entry.vip_port), entry.peer)).collect()
}

fn rows<F: UserFamily>(entries: Vec<Entry<F>>, names: &Names) -> Vec<SocketRow> {
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
        let peer = |addr| SocketPeer { addr, port, checked: 0, backend: Id::new(1, 1), service: dns };
        let entries = vec![
            (SocketKey::<V4>::new(0x1f, vip, port, SocketDirection::Send), peer(backend)),
            (SocketKey::new(0x1f, backend, port, SocketDirection::Receive), peer(vip)),
        ];
        let lines: Vec<String> = rows(entries, &names).iter().map(|row| row.cells().join(" ")).collect();
        assert_eq!(lines, ["1f kube-system/dns:dns 10.96.0.10:53 10.244.0.3:53"]);
    }
}
