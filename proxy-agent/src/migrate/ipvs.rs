//! The remains of kube-proxy's IPVS mode besides chains: virtual servers, and an interface that has their addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use netlink_packet_route::address::AddressAttribute;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_GENERIC};
use rtnetlink::Handle;

use crate::kube_proxy::IPVS_INTERFACE;
use crate::net::{
    interfaces::Interface,
    pods::nftables::find,
    untracked::{attribute, nested},
};

const SERVERS: &str = "/proc/thread-self/net/ip_vs";
const CONNECTIONS: &str = "/proc/thread-self/net/ip_vs_conn";

/// A virtual server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Server {
    /// IP protocol number.
    protocol: u8,
    address: SocketAddr,
    /// Connections that it still translates.
    pub(super) active: u64,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", protocol_name(self.protocol), self.address)
    }
}

fn protocol_name(number: u8) -> &'static str {
    PROTOCOLS.iter().find(|(_, known)| *known == number).map_or("?", |(name, _)| name)
}

const PROTOCOLS: [(&str, u8); 3] = [("TCP", 6), ("UDP", 17), ("SCTP", 132)];

/// Virtual servers of kube-proxy, and of others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// The index of [`IPVS_INTERFACE`], and how many addresses it has.
    pub(super) interface: Option<(u32, usize)>,
    /// Servers at addresses of this node, [`IPVS_INTERFACE`] among them. Without that interface, none counts as kube-proxy's.
    pub(super) servers: Vec<Server>,
    /// How many others there are.
    pub(super) others: usize,
}

impl Found {
    pub(super) fn is_empty(&self) -> bool {
        self.interface.is_none() && self.servers.is_empty()
    }

    /// Connections that IPVS still translates. It drops their packets once their server is gone.
    pub(super) fn active(&self) -> u64 {
        self.servers.iter().map(|server| server.active).sum()
    }
}

/// # Errors
/// When addresses cannot be listed.
pub(super) async fn find_all(netlink: &Handle, interfaces: &[Interface]) -> Result<Found> {
    let interface = interfaces.iter().find(|interface| interface.name == IPVS_INTERFACE);
    let (mut local, mut count) = (BTreeSet::new(), 0);
    let mut addresses = netlink.address().get().execute();
    while let Some(message) = addresses.try_next().await.context("cannot list addresses")? {
        let ip = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        });
        // IPv6: every interface that is up gives itself one of these.
        let is_own = !matches!(ip, Some(IpAddr::V6(ip)) if ip.is_unicast_link_local());
        if interface.is_some_and(|interface| interface.index == message.header.index) && is_own {
            count += 1;
        }
        local.extend(ip);
    }
    // Without IPVS the file is not there.
    let table = fs::read_to_string(SERVERS).unwrap_or_default();
    let is_own = |server: &Server| interface.is_some() && local.contains(&server.address.ip());
    let (mut servers, others): (Vec<_>, Vec<_>) = servers(&table).partition(is_own);
    if let Ok(table) = fs::read_to_string(CONNECTIONS) {
        let live = live(&table);
        for server in &mut servers {
            server.active = live.get(&(server.protocol, server.address)).copied().unwrap_or_default();
        }
    }
    Ok(Found {
        interface: interface.map(|interface| (interface.index, count)),
        servers,
        others: others.len(),
    })
}

/// Virtual servers of `/proc/net/ip_vs` (`ip_vs_info_seq_show`), each with the sum of its endpoints' connections. Those of firewall marks
/// have no address, and are not kube-proxy's.
fn servers(table: &str) -> impl Iterator<Item = Server> {
    const TITLES: usize = 3;
    let mut servers: Vec<Server> = Vec::new();
    let mut is_known = false;
    for line in table.lines().skip(TITLES) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["->", _, _, _, active, inactive, ..] => {
                let count =
                    [active, inactive].iter().filter_map(|text| text.parse::<u64>().ok()).sum::<u64>();
                if let Some(server) = servers.last_mut().filter(|_| is_known) {
                    server.active += count;
                }
            }
            [protocol, address, ..] => {
                let protocol = PROTOCOLS.iter().find(|(name, _)| name == protocol);
                let server = protocol.zip(parse(address));
                is_known = server.is_some();
                servers.extend(server.map(|((_, protocol), address)| Server {
                    protocol: *protocol,
                    address,
                    active: 0,
                }));
            }
            _ => {}
        }
    }
    servers.into_iter()
}

/// How many connections of `/proc/net/ip_vs_conn` (`ip_vs_conn_seq_show`) each server has that still need it. The servers' own counts have
/// those as well that only wait for their time to be over: of a busy node, all of the last two minutes.
fn live(table: &str) -> BTreeMap<(u8, SocketAddr), u64> {
    let mut live = BTreeMap::new();
    for line in table.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [protocol, _, _, address, port, _, _, state, ..] = words.as_slice() else { continue };
        // NONE: the state of a client's persistence template.
        let is_over = ["TIME_WAIT", "CLOSE", "NONE"].contains(state);
        let protocol = PROTOCOLS.iter().find(|(name, _)| name == protocol);
        if let (Some((_, protocol)), Some(server), false) = (protocol, address_of(address, port), is_over) {
            *live.entry((*protocol, server)).or_default() += 1;
        }
    }
    live
}

/// `0A600001:01BB`, or `[fd00:...]:01BB`.
fn parse(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.rsplit_once(':')?;
    address_of(address.trim_start_matches('[').trim_end_matches(']'), port)
}

fn address_of(address: &str, port: &str) -> Option<SocketAddr> {
    let address = match address.parse::<Ipv6Addr>() {
        Ok(v6) => v6.into(),
        Err(_) => Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?).into(),
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

/// Removes the servers, then the interface.
///
/// # Errors
/// An error of the kernel; the rest stays.
pub(super) async fn remove(netlink: &Handle, found: &Found) -> Result<()> {
    remove_servers(&found.servers).context("cannot remove virtual servers of IPVS")?;
    if let Some((index, _)) = found.interface {
        let removed = netlink.link().del(index).execute().await;
        removed.with_context(|| format!("cannot remove the interface {IPVS_INTERFACE}"))?;
    }
    Ok(())
}

// From `linux/genetlink.h` and `linux/ip_vs.h`.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const DELETE_SERVICE: u8 = 3;
const SERVICE: u16 = 1;
const VERSION: u8 = 1;
/// Headers of netlink and of generic netlink.
const HEADER: usize = 16;
const HEADERS: usize = HEADER + 4;

fn remove_servers(servers: &[Server]) -> io::Result<()> {
    if servers.is_empty() {
        return Ok(());
    }
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    let answer = ask(&socket, &message(CONTROL, GET_FAMILY, &attribute(FAMILY_NAME, b"IPVS\0")))?;
    let id =
        answer.get(HEADERS..).and_then(|answer| find(answer, FAMILY_ID)).and_then(|id| id.try_into().ok());
    let family = u16::from_ne_bytes(id.ok_or(io::ErrorKind::InvalidData)?);
    // The request is acknowledged as well.
    socket.recv_from_full()?;
    for server in servers {
        match ask(&socket, &message(family, DELETE_SERVICE, &service(server))) {
            // Gone meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            result => drop(result?),
        }
    }
    Ok(())
}

/// The attributes that name a server.
fn service(server: &Server) -> Vec<u8> {
    let (family, mut address) = match server.address.ip() {
        IpAddr::V4(ip) => (libc::AF_INET as u16, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::AF_INET6 as u16, ip.octets().to_vec()),
    };
    address.resize(16, 0);
    nested(
        SERVICE,
        &[
            attribute(1, &family.to_ne_bytes()),
            attribute(2, &u16::from(server.protocol).to_ne_bytes()),
            attribute(3, &address),
            attribute(4, &server.address.port().to_be_bytes()),
        ],
    )
}

fn message(kind: u16, command: u8, attributes: &[u8]) -> Vec<u8> {
    const REQUEST_WITH_ACK: u16 = 1 | 4;
    let mut bytes = Vec::new();
    bytes.extend(((HEADERS + attributes.len()) as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(REQUEST_WITH_ACK.to_ne_bytes());
    // Sequence number and port; then the header of generic netlink.
    bytes.extend([0; 8]);
    bytes.extend([command, VERSION, 0, 0]);
    bytes.extend(attributes);
    bytes
}

/// Sends a message, and takes the first answer.
fn ask(socket: &Socket, message: &[u8]) -> io::Result<Vec<u8>> {
    const ERROR: u16 = 2;
    socket.send(message, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = answer.get(HEADER..HEADERS).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(ERROR), Some(code)) if code != 0 => Err(io::Error::from_raw_os_error(code.saturating_abs())),
        _ => Ok(answer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600001:01BB rr
  -> C0A80102:192B      Masq    1      3          4
  -> C0A80103:192B      Masq    1      0          1
FWM  00000010 wlc
  -> C0A80102:192B      Masq    1      9          9
UDP  [fd00:0010:0096:0000:0000:0000:0000:000a]:0035 rr
TCP  0A600002:0050 rr persistent 10800
";

    #[test]
    fn servers_and_their_connections() {
        let found: Vec<String> =
            servers(TABLE).map(|server| format!("{server}: {}", server.active)).collect();
        assert_eq!(found, ["TCP 10.96.0.1:443: 8", "UDP [fd00:10:96::a]:53: 0", "TCP 10.96.0.2:80: 0"]);
        assert_eq!(servers("").count(), 0);
        for length in 0..TABLE.len() {
            let _ = servers(&TABLE[..length]).count();
        }
    }

    #[test]
    fn connections_that_are_over_do_not_count() {
        let table = "\
Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP C0A80101 D2F0 0A600001 01BB C0A80102 192B ESTABLISHED     899
TCP C0A80101 D2F1 0A600001 01BB C0A80102 192B TIME_WAIT       119
TCP C0A80101 D2F2 0A600001 01BB C0A80102 192B FIN_WAIT         60
TCP C0A80101 0000 0A600002 0050 C0A80102 192B NONE          10800
UDP fd00:0000:0000:0000:0000:0000:0000:0001 0035 fd00:0010:0096:0000:0000:0000:0000:000a 0035 \
fd00:0010:0244:0000:0000:0000:0000:000b 0035 UDP             300
";
        let live = live(table);
        let of = |protocol, server: &str| live.get(&(protocol, server.parse().unwrap())).copied();
        assert_eq!(of(6, "10.96.0.1:443"), Some(2));
        assert_eq!(of(6, "10.96.0.2:80"), None);
        assert_eq!(of(17, "[fd00:10:96::a]:53"), Some(1));
        for length in 0..table.len() {
            let _ = super::live(&table[..length]).len();
        }
    }

    #[test]
    fn a_server_s_name_for_the_kernel() {
        let server = servers(TABLE).next().unwrap();
        let bytes = service(&server);
        let inner = find(&bytes, SERVICE).unwrap();
        assert_eq!(find(inner, 2), Some(&6_u16.to_ne_bytes()[..]));
        assert_eq!(find(inner, 3).map(|address| &address[..4]), Some(&[10, 96, 0, 1][..]));
        assert_eq!(find(inner, 4), Some(&443_u16.to_be_bytes()[..]));
        let message = message(77, DELETE_SERVICE, &bytes);
        assert_eq!(message.len(), u32::from_ne_bytes(message[..4].try_into().unwrap()) as usize);
    }
}
