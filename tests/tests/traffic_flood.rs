//! A flood of SYNs from addresses that are nobody's: connections that are there do not notice.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};
use proxy_tests::{
    cluster::{Agent, Cluster, Place, until},
    traffic::{Entry, HOST_NETWORK, Scenario, WEB},
};

/// The fewest that there are by default.
const MAX_FLOWS: &str = "65536";

/// With two entries each, nine times what the map holds.
const SYNS: u32 = 300_000;

/// Connections of each kind; half of them talk during the flood, half are silent.
const CONNECTIONS: usize = 60;

/// A connection that is kept.
struct Connection {
    what: String,
    stream: BufReader<TcpStream>,
    lost: Option<String>,
}

impl Connection {
    fn open(from: &Place, to: SocketAddr, what: &str) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&to, Duration::from_secs(3))
            .with_context(|| format!("{} -> {to}", from.name))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        Ok(Self { what: what.to_owned(), stream: BufReader::new(stream), lost: None })
    }

    /// A request and its answer. One that was lost stays lost.
    fn ask(&mut self) {
        if self.lost.is_none() {
            self.lost = self.try_ask().err().map(|error| format!("{}: {error:#}", self.what));
        }
    }

    fn try_ask(&mut self) -> Result<()> {
        self.stream.get_mut().write_all(b"still there?\n")?;
        let mut line = String::new();
        let read = self.stream.read_line(&mut line)?;
        ensure!(read > 0 && line.ends_with("still there?\n"), "{line:?}");
        Ok(())
    }
}

/// Opens connections through the first node in every way that packets take there.
fn connections(scenario: &Scenario) -> Result<Vec<Connection>> {
    let cluster = &scenario.cluster;
    let ways = [
        // Backends here and on the other node.
        (&cluster.client, Entry::NodePort(0), WEB),
        // On the other node only.
        (&cluster.client, Entry::NodePort(0), HOST_NETWORK),
        (cluster.pod("pod-1a")?, Entry::ClusterIp, WEB),
    ];
    let mut all = Vec::new();
    for (from, entry, service) in ways {
        let to = scenario.target(entry, service, true)?;
        let what = format!("{} -> {entry} ({to})", from.name);
        all.extend(from.netns.run(|| {
            (0..CONNECTIONS).map(|_| Connection::open(from, to, &what)).collect::<Result<Vec<_>>>()
        })?);
    }
    all.iter_mut().for_each(Connection::ask);
    Ok(all)
}

/// Sends SYNs to some ports, each from another address and port of the client's network.
fn flood(cluster: &Cluster, to: &[SocketAddrV4]) -> Result<Duration> {
    cluster.client.netns.run(|| {
        // With this protocol the packets are whole, headers included.
        let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
        let start = Instant::now();
        for number in 0..SYNS {
            let to = to[number as usize % to.len()];
            // 200 hosts that nobody is.
            let from = SocketAddrV4::new(
                Ipv4Addr::new(172, 31, 0, 10 + (number % 200) as u8),
                1024 + (number / 200) as u16,
            );
            match sendto(raw.as_raw_fd(), &syn(from, to), &SockaddrIn::from(to), MsgFlags::empty()) {
                // The device's queue is full, as a flood's is.
                Ok(_) | Err(nix::errno::Errno::ENOBUFS) => {}
                Err(error) => bail!("cannot send a SYN to {to}: {error}"),
            }
        }
        Ok(start.elapsed())
    })
}

/// An IPv4 packet with a SYN. The kernel fills in length and checksum of the IP header.
fn syn(from: SocketAddrV4, to: SocketAddrV4) -> [u8; 40] {
    let mut packet = [0; 40];
    packet[0] = 0x45;
    packet[8] = 64;
    packet[9] = 6;
    packet[12..16].copy_from_slice(&from.ip().octets());
    packet[16..20].copy_from_slice(&to.ip().octets());
    packet[20..22].copy_from_slice(&from.port().to_be_bytes());
    packet[22..24].copy_from_slice(&to.port().to_be_bytes());
    packet[24..28].copy_from_slice(&u32::from(from.port()).wrapping_mul(0x9e37_79b9).to_be_bytes());
    packet[32] = 5 << 4;
    packet[33] = 2;
    packet[34..36].copy_from_slice(&[0xff, 0xff]);
    // Addresses, ports and flags, with the pseudo header's protocol and length.
    let words = packet[12..].chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let mut sum = words.sum::<u32>() + 6 + 20;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[36..38].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    packet
}

fn counter(agent: &Agent, name: &str) -> Result<u64> {
    let counters = agent.debug(&["counters"])?;
    let line = counters.lines().find(|line| line.split_whitespace().next() == Some(name));
    line.and_then(|line| line.split_whitespace().nth(1))
        .context("no such counter")?
        .parse()
        .context("no number")
}

/// What a flood left.
struct Aftermath {
    lost: Vec<String>,
    limited: u64,
    scenario: Scenario,
}

fn survive(args: &[&str]) -> Result<Aftermath> {
    let args = [&["--max-flows", MAX_FLOWS], args].concat();
    let scenario = Scenario::start(Cluster::builder().nodes(2), "tc", &args)?;
    let mut busy = connections(&scenario)?;
    // Every other one, of each kind.
    let mut number = 0;
    let mut silent: Vec<_> = busy
        .extract_if(.., |_| {
            number += 1;
            number % 2 == 0
        })
        .collect();
    let mut to = Vec::new();
    for service in [WEB, WEB, HOST_NETWORK] {
        let SocketAddr::V4(target) = scenario.target(Entry::NodePort(0), service, true)? else {
            bail!("IPv4")
        };
        to.push(target);
    }
    let over = AtomicBool::new(false);
    let took = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                busy.iter_mut().for_each(Connection::ask);
                thread::sleep(Duration::from_millis(50));
            }
        });
        let took = flood(&scenario.cluster, &to);
        over.store(true, Ordering::Relaxed);
        took
    })?;
    silent.iter_mut().chain(&mut busy).for_each(Connection::ask);
    let agent = &scenario.agents[0];
    let limited = counter(agent, "new_flow_limited")?;
    let lost: Vec<_> =
        silent.iter_mut().chain(&mut busy).filter_map(|connection| connection.lost.take()).collect();
    println!(
        "{SYNS} SYNs in {took:?}: {} of {} connections lost, new_flow_limited {limited}, flow_new {}, snat_exhausted {}",
        lost.len(),
        3 * CONNECTIONS,
        counter(agent, "flow_new")?,
        counter(agent, "snat_exhausted")?,
    );
    Ok(Aftermath { lost, limited, scenario })
}

#[test]
fn a_flood_takes_no_connection_away() {
    let Aftermath { lost, limited, scenario } = survive(&[]).unwrap();
    assert!(lost.is_empty(), "{} lost: {:#?}", lost.len(), lost.iter().take(5).collect::<Vec<_>>());
    assert!(limited > u64::from(SYNS) * 9 / 10, "{limited}");
    // And then all is as before.
    for (service, entry) in
        [(WEB, Entry::NodePort(0)), (HOST_NETWORK, Entry::NodePort(0)), (WEB, Entry::ClusterIp)]
    {
        let from = if entry == Entry::ClusterIp {
            scenario.cluster.pod("pod-1a").unwrap()
        } else {
            &scenario.cluster.client
        };
        let to = scenario.target(entry, service, true).unwrap();
        until(Duration::from_secs(10), "new connections", || {
            let replies = from.call(to).times(5)?;
            Ok((replies.len() == 5 && replies.iter().all(|reply| reply.error.is_none())).then_some(()))
        })
        .unwrap();
    }
    // The agent looks every five seconds.
    let agent = &scenario.agents[0];
    let told = |log: String| {
        log.lines().find(|line| line.contains("of new flows that nobody answered")).map(str::to_owned)
    };
    let warning = until(Duration::from_secs(15), "a warning", || Ok(told(agent.log()))).unwrap();
    assert!(warning.contains("--max-new-flows"), "{warning}");
}

/// What the limit is for, and that the other test can fail.
#[test]
fn without_the_limit_it_does() {
    let Aftermath { lost, limited, .. } = survive(&["--max-new-flows", "0"]).unwrap();
    assert_eq!(limited, 0);
    assert!(!lost.is_empty(), "the flood was too small");
}
