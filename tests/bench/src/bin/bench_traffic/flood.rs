//! Clients of Services while another client floods one of them with SYNs.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use proxy_load::{Attempts, Flood, Forger, Held, Tally, Transport, route_forged_sources};

use crate::fixture::{Fixture, Proxy};

/// Forged SYNs per second; without any, all clients must succeed.
pub(crate) const RATES: [u32; 4] = [0, 2_000, 20_000, 200_000];
/// How many times shorter each flood is than the hardest cases of sustained load.
pub(crate) const SHORTER: u32 = 2;
/// The same for the one of no packets, which shows only that clients succeed here.
const NO_FLOOD_SHORTER: u32 = 12;
/// New connections per second of each Service's clients.
pub(crate) const CONNECTIONS: u32 = 100;
/// Connections to each Service that are there before the flood. Every other one is silent during it.
pub(crate) const HELD: usize = 32;
/// Endpoints of each Service on each node.
pub(crate) const ENDPOINTS: usize = 2;

/// The Service that is flooded, and the one that is not.
const FLOODED: u8 = 0;
const OTHER: u8 = 1;

/// A flood with one way to serve.
pub(crate) struct Measured {
    /// SYNs per second that were wanted.
    pub(crate) rate: u32,
    pub(crate) proxy: Proxy,
    pub(crate) flood: Flood,
    /// New connections of the Service that is not flooded.
    pub(crate) other: Tally,
    /// New connections of the flooded Service.
    pub(crate) same: Tally,
    /// Established connections that were lost.
    pub(crate) lost: usize,
}

/// All floods, each on separate clusters.
pub(crate) fn measure(time: Duration) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for (index, rate) in RATES.into_iter().enumerate() {
        let time = time / if rate == 0 { NO_FLOOD_SHORTER } else { SHORTER };
        let mut proxies = [Proxy::Ours, Proxy::Nftables];
        proxies.rotate_left(index % 2);
        for proxy in proxies {
            let title = format!("{}: {rate} SYN/s", proxy.title());
            let measured = one(rate, proxy, time).with_context(|| title.clone())?;
            let Measured { flood, other, same, lost, .. } = &measured;
            println!(
                "{title} ({:.0} reached): another Service: {other}; the same: {same}; {lost} of {} connections lost",
                flood.rate(),
                2 * HELD
            );
            all.push(measured);
        }
    }
    Ok(all)
}

fn one(rate: u32, proxy: Proxy, time: Duration) -> Result<Measured> {
    let fixture = Fixture::new(proxy, ENDPOINTS, ENDPOINTS)?;
    route_forged_sources(&fixture.cluster)?;
    let client = &fixture.cluster.client.netns;
    let (flooded, other) = (fixture.target(FLOODED)?, fixture.target(OTHER)?);
    let open = |to| (0..HELD).map(move |_| Held::open(SocketAddr::V4(to), "established"));
    let mut talking = client.run(|| open(flooded).chain(open(other)).collect::<Result<Vec<_>>>())?;
    let mut number = 0;
    let mut silent: Vec<_> = talking
        .extract_if(.., |_| {
            number += 1;
            number % 2 == 0
        })
        .collect();
    let stop = AtomicBool::new(false);
    let connect = |to| {
        let attempts = Attempts::new(Transport::TcpClientCloses, to);
        client.run(|| Ok(attempts.open_loop(CONNECTIONS, time)?))
    };
    let (flood, other, same) = thread::scope(|scope| {
        let flood = scope.spawn(|| match rate {
            0 => Ok(Flood::default()),
            _ => client.run(|| Forger::new()?.flood(&[flooded], rate, &stop)),
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                talking.iter_mut().for_each(Held::ask);
                thread::sleep(Duration::from_millis(50));
            }
        });
        let same = scope.spawn(|| connect(flooded));
        let other = connect(other);
        let same = same.join();
        stop.store(true, Ordering::Relaxed);
        let panicked = |_| anyhow!("a thread panicked");
        anyhow::Ok((flood.join().map_err(panicked)??, other?, same.map_err(panicked)??))
    })?;
    silent.iter_mut().chain(&mut talking).for_each(Held::ask);
    let lost = silent.iter().chain(&talking).filter(|held| held.lost().is_some()).count();
    Ok(Measured { rate, proxy, flood, other, same, lost })
}
