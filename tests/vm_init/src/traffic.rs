//! Clients and servers. A server answers with the client's address as it sees it.

use std::{
    fs::File,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

use crate::node::{CLIENT_POD, OUTSIDE, SERVER_POD, elsewhere};

const PATIENCE: Duration = Duration::from_secs(5);

/// One attempt: client, request, and the source that the server sees.
struct Case {
    name: &'static str,
    /// The client's network namespace; without: the node.
    from: Option<&'static str>,
    to: &'static str,
    /// The address that the server sees, where it is kept.
    source: Option<&'static str>,
}

const fn case(
    name: &'static str,
    from: Option<&'static str>,
    to: &'static str,
    source: Option<&'static str>,
) -> Case {
    Case { name, from, to, source }
}

const CASES: [Case; 8] = [
    case("pod to cluster IP", Some(CLIENT_POD), "10.96.0.80:80", Some("10.244.0.2")),
    case("pod to cluster IP, v6", Some(CLIENT_POD), "[fd00:10:96::80]:80", Some("fd00:10:244::2")),
    case("node to cluster IP", None, "10.96.0.80:80", None),
    case("node to cluster IP, v6", None, "[fd00:10:96::80]:80", None),
    case("pod to node port", Some(CLIENT_POD), "192.168.77.2:30080", Some("10.244.0.2")),
    case("outside to node port", Some(OUTSIDE), "192.168.77.2:30080", Some("192.168.77.1")),
    case("outside to node port, v6", Some(OUTSIDE), "[fd00:77::2]:30080", Some("fd00:77::1")),
    case("node to its own node port by localhost", None, "127.0.0.1:30080", None),
];

/// Starts the servers in the pod. They live as long as the machine.
pub(crate) fn serve() -> Result<()> {
    let (tcp, udp) =
        within(Some(SERVER_POD), || Ok((TcpListener::bind("[::]:8080")?, UdpSocket::bind("[::]:8080")?)))?;
    thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            // A client that went away is the client's check that fails.
            drop(stream.peer_addr().and_then(|peer| (&stream).write_all(peer.to_string().as_bytes())));
        }
    });
    thread::spawn(move || {
        let mut request = [0; 64];
        while let Ok((_, peer)) = udp.recv_from(&mut request) {
            drop(udp.send_to(peer.to_string().as_bytes(), peer));
        }
    });
    Ok(())
}

/// Runs all cases over TCP and UDP.
pub(crate) fn run() -> Vec<(String, Result<()>)> {
    let tcp = CASES.iter().map(|case| (format!("{} (TCP)", case.name), try_case(case, ask_tcp)));
    let udp = CASES.iter().map(|case| (format!("{} (UDP)", case.name), try_case(case, ask_udp)));
    tcp.chain(udp).collect()
}

/// The first case alone.
pub(crate) fn cluster_ip() -> Result<()> {
    try_case(&CASES[0], ask_tcp)
}

fn try_case(case: &Case, ask: fn(SocketAddr) -> Result<String>) -> Result<()> {
    let to = case.to.parse()?;
    let answer = match case.from {
        Some(OUTSIDE) => elsewhere(|| within(case.from, move || ask(to)))?,
        from => within(from, move || ask(to))?,
    };
    let seen: SocketAddr = answer.parse().with_context(|| format!("strange answer `{answer}`"))?;
    if let Some(source) = case.source {
        let expected: IpAddr = source.parse()?;
        if seen.ip().to_canonical() != expected {
            bail!("the server sees {seen} instead of {expected}");
        }
    }
    Ok(())
}

fn ask_tcp(to: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).context("cannot connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("no answer")?;
    Ok(answer)
}

fn ask_udp(to: SocketAddr) -> Result<String> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(b"who am I", to).context("cannot send")?;
    let mut answer = [0; 64];
    let (length, from) = socket.recv_from(&mut answer).context("no answer")?;
    if from != to {
        bail!("the answer comes from {from}");
    }
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

/// Runs something in a network namespace, on a separate thread.
fn within<T: Send + 'static>(
    namespace: Option<&'static str>,
    act: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let thread = thread::spawn(move || {
        if let Some(name) = namespace {
            let file =
                File::open(format!("/run/netns/{name}")).with_context(|| format!("no namespace {name}"))?;
            setns(file, CloneFlags::CLONE_NEWNET)?;
        }
        act()
    });
    thread.join().map_err(|_| anyhow!("the thread panicked"))?
}
