//! A client that holds connections open at the listeners takes nothing from others. Needs root.
//!
//! Set-up: one node with two pods and an agent that listens on all addresses; a client outside holds connections to
//! `/healthz` and `/metrics` open.

use std::{
    io::{ErrorKind, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use proxy_harness::cluster::{Cluster, Netns, until};

/// Connections of one client, held at the same time.
const SLOW: usize = 200;
/// Each gets another byte of its request this often.
const PAUSE: Duration = Duration::from_millis(50);
/// How often each of the others asks meanwhile.
const ROUNDS: usize = 10;
/// The probes' `timeoutSeconds` in the manifests.
const PROBE: Duration = Duration::from_secs(5);
/// Prometheus' default `scrape_timeout`.
const SCRAPE: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(60);

/// A client that opens connections, sends requests that never end, and opens another one for each that is cut.
struct Slow {
    stop: Arc<AtomicBool>,
    opened: Arc<AtomicUsize>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Slow {
    fn start(netns: &Netns, to: SocketAddr) -> Self {
        let (stop, opened) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (netns, stopped, count) = (netns.clone(), stop.clone(), opened.clone());
        let work = move || {
            netns.run(|| {
                let mut open = Vec::new();
                while !stopped.load(Ordering::Relaxed) {
                    open.retain_mut(|stream: &mut TcpStream| match stream.write(b"a") {
                        Ok(_) => true,
                        Err(error) => error.kind() == ErrorKind::WouldBlock,
                    });
                    while open.len() < SLOW && !stopped.load(Ordering::Relaxed) {
                        let Ok(mut stream) = TcpStream::connect_timeout(&to, CONNECT) else { break };
                        count.fetch_add(1, Ordering::Relaxed);
                        let begun = stream.write_all(b"GET /metrics HTTP/1.1\r\nX-Slow: ");
                        if begun.and_then(|()| stream.set_nonblocking(true)).is_ok() {
                            open.push(stream);
                        }
                    }
                    thread::sleep(PAUSE);
                }
                Ok(())
            })
        };
        Self { stop, opened, thread: Some(thread::spawn(work)) }
    }

    fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }

    fn end(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take();
        thread.map_or(Ok(()), |thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Asks, and fails if that takes too long.
fn ask(netns: &Netns, to: SocketAddr, path: &str, limit: Duration) -> Result<Duration> {
    let start = Instant::now();
    let answer = netns.get(&to.to_string(), path)?;
    let time = start.elapsed();
    ensure!(answer.status == 200, "{path} at {to}: {}", answer.head);
    ensure!(time < limit, "{path} at {to} took {time:?}");
    Ok(time)
}

#[test]
fn slow_connections_keep_no_other_client_out() -> Result<()> {
    let cluster = Cluster::builder().nodes(1).pods_per_node(2).build()?;
    let addresses = ["--healthz-bind-address", "[::]:10256", "--metrics-bind-address", "[::]:10249"];
    let _agent = cluster.start_agent(0, &addresses)?;
    let node = &cluster.node(0)?.host;
    let prometheus = cluster.pod("pod-1b")?;
    for (who, netns, own) in [
        ("a client outside", &cluster.client.netns, IpAddr::from(node.v4)),
        ("a client outside, IPv6", &cluster.client.netns, node.v6.into()),
        ("a pod", &cluster.pod("pod-1a")?.netns, node.v4.into()),
        // With the address that kubelet's probes have.
        ("a process of the node", &node.netns, node.v4.into()),
    ] {
        let slow = [10256, 10249].map(|port| Slow::start(netns, SocketAddr::new(own, port)));
        until(SOON, &format!("{who} to hold connections, and to lose some"), || {
            Ok(slow.iter().all(|slow| slow.opened() > SLOW).then_some(()))
        })?;
        let (mut probe, mut scrape) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..ROUNDS {
            for (port, path) in [(10256, "/healthz"), (10256, "/livez"), (10249, "/healthz")] {
                probe = probe.max(ask(&node.netns, SocketAddr::new(own, port), path, PROBE)?);
            }
            scrape = scrape.max(ask(&prometheus.netns, SocketAddr::new(own, 10249), "/metrics", SCRAPE)?);
        }
        let opened: usize = slow.iter().map(Slow::opened).sum();
        println!("{who} opened {opened} connections: probes took {probe:?} at most, scrapes {scrape:?}");
        slow.into_iter().try_for_each(Slow::end)?;
    }
    Ok(())
}
