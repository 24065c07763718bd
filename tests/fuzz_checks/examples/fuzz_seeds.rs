//! Writes the seeds of the fuzz targets that take bytes: `cargo run -p proxy-fuzz-checks --example fuzz_seeds`.
//! The others' seeds are text, written by hand.
#![forbid(unsafe_code)]

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
};

use anyhow::Result;
use proxy_common::{V4, V6};
use proxy_fuzz_checks::seeds_dir;
use proxy_packets::{Frame, Host, PacketFamily, Transport};

const ETHERNET: u8 = 14;

fn main() -> Result<()> {
    packets::<V4>()?;
    packets::<V6>()?;
    flows()?;
    sock_diag()
}

fn write(target: &str, name: &str, bytes: &[u8]) -> Result<()> {
    let dir = seeds_dir(target);
    fs::create_dir_all(&dir)?;
    Ok(fs::write(Path::new(&dir).join(name), bytes)?)
}

/// Frames as the tests of single packets have them, behind the offset of their network header.
fn packets<F: PacketFamily>() -> Result<()> {
    let transports = [
        ("tcp", Transport::Tcp(2)),
        ("udp", Transport::Udp),
        ("sctp", Transport::Sctp(1)),
        ("echo", Transport::Echo(false)),
    ];
    for (name, transport) in transports {
        for options in if F::IS_V4 { vec![0, 40] } else { vec![0] } {
            let mut frame = Frame::new(Host::Client.at::<F>(40_000), Host::Node.at::<F>(30_001), transport);
            frame.options = options;
            let mut bytes = vec![ETHERNET];
            bytes.extend(frame.build()?);
            write("parse_packet", &format!("v{}-{name}-{options}", F::NUMBER), &bytes)?;
        }
    }
    let whole = Frame::new(Host::PodA.at::<F>(40_000), Host::LocalVip.at::<F>(80), Transport::Udp).build()?;
    let mut fragment = [&[ETHERNET][..], &whole].concat();
    let (at, value) = if F::IS_V4 { (21, 0x20) } else { (21, 44) };
    fragment[at] = value;
    write("parse_packet", &format!("v{}-fragment", F::NUMBER), &fragment)?;
    // Hop-by-hop options in front of the transport header; or, for IPv4, an ICMP error about the packet.
    let mut nested = [&[ETHERNET][..], &whole].concat();
    let (next, insert): (usize, Vec<u8>) = if F::IS_V4 {
        let quoted = whole[14..].to_vec();
        (24, [&[3, 3, 0, 0, 0, 0, 0, 0][..], &quoted].concat())
    } else {
        (21, vec![17, 0, 1, 4, 0, 0, 0, 0])
    };
    nested[next] = if F::IS_V4 { 1 } else { 0 };
    let transport = 1 + 14 + if F::IS_V4 { 20 } else { 40 };
    nested.splice(transport..transport, insert);
    write("parse_packet", &format!("v{}-nested", F::NUMBER), &nested)
}

/// Choices: family, settings, then events.
fn flows() -> Result<()> {
    let request = |client: u8, port: u8, destination: u8, protocol: u8, flags: u8| {
        if protocol == 1 {
            vec![7, client, port, destination, protocol, 0]
        } else {
            vec![7, client, port, destination, protocol, flags, 0]
        }
    };
    for family in [0u8, 1] {
        let begin = vec![family, 0, 0, 0, 0];
        let all: Vec<Vec<u8>> =
            (0..24).flat_map(|to| [request(0, 0, to, 0, 0), request(3, 0, to, 1, 0)]).collect();
        write("flows", &format!("all-{family}"), &[begin.clone(), all.concat()].concat())?;
        let life = [
            request(0, 0, 0, 0, 0),
            vec![4, 0, 1],
            request(0, 0, 0, 0, 1),
            request(0, 0, 0, 0, 2),
            vec![4, 0, 2],
            request(0, 0, 1, 0, 0),
            vec![2, 1],
            request(0, 0, 0, 0, 0),
        ];
        write("flows", &format!("life-{family}"), &[begin.clone(), life.concat()].concat())?;
        let crowd: Vec<Vec<u8>> = (0..12)
            .map(|n| request(3 + n % 3, n % 3, 18 + n % 2, n % 2, 0))
            .chain([vec![2, 1], vec![0, 3], vec![3, 1]])
            .collect();
        for settings in [[0, 0, 1, 0], [1, 1, 2, 3], [0, 1, 0, 1]] {
            let begin = [&[family][..], &settings].concat();
            let name = format!("crowd-{family}-{}", settings.map(|n| n.to_string()).concat());
            write("flows", &name, &[begin, crowd.concat()].concat())?;
        }
    }
    Ok(())
}

/// What the kernel says of connected sockets, and how it ends.
fn sock_diag() -> Result<()> {
    let message = |kind: u16, payload: &[u8]| -> Vec<u8> {
        let length = 16 + payload.len() as u32;
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &2u16.to_ne_bytes(), &[0; 8], payload].concat()
    };
    let socket = |family: u8, src: &[u8], dst: &[u8]| -> Vec<u8> {
        let address = |bytes: &[u8]| [bytes, &vec![0; 16 - bytes.len()]].concat();
        let head = [family, 1, 0, 0, 0x9c, 0x40, 0x1f, 0x90];
        let cookie = [7, 0, 0, 0, 1, 0, 0, 0];
        [&head[..], &address(src), &address(dst), &[0; 4], &cookie, &[0; 20]].concat()
    };
    let (v4, v6) = (Ipv4Addr::LOCALHOST.octets(), Ipv6Addr::LOCALHOST.octets());
    const BY_FAMILY: u16 = 20;
    let sockets =
        [message(BY_FAMILY, &socket(2, &v4, &v4)), message(BY_FAMILY, &socket(10, &v6, &v6))].concat();
    write("sock_diag", "sockets", &sockets)?;
    write("sock_diag", "done", &[sockets, message(3, &[0; 4])].concat())?;
    let refused = [&(-2i32).to_ne_bytes()[..], &message(BY_FAMILY, &[])].concat();
    write("sock_diag", "error", &message(2, &refused))
}
