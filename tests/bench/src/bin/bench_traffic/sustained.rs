//! New connections for long enough to meet the remains of the first ones: closed flows, TIME-WAIT, source ports.

use std::time::Duration;

use anyhow::{Context as _, Result};
use proxy_load::{Attempts, Tally, Transport};

use crate::fixture::{Fixture, Proxy};

/// How many clients connect at once.
pub(crate) const PARALLEL: usize = 64;
/// Addresses of many client machines.
pub(crate) const MANY_CLIENTS: usize = 16;
/// Endpoints of a Service that has several.
pub(crate) const MANY_ENDPOINTS: usize = 4;

/// How many times shorter cases with several clients or endpoints are than those with one of each.
pub(crate) const SHORTER: u32 = 6;

/// The repeated operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) transport: Transport,
    pub(crate) clients: usize,
    pub(crate) endpoints: usize,
}

impl Case {
    /// All cases, the hardest first: it is limited to one address, port and endpoint.
    pub(crate) fn all() -> Vec<Self> {
        use Transport::{TcpClientCloses, TcpServerCloses, Udp};
        let mut all = Vec::new();
        for (clients, endpoints, transports) in [
            (1, 1, &[TcpServerCloses, TcpClientCloses, Udp][..]),
            (MANY_CLIENTS, 1, &[TcpServerCloses, TcpClientCloses]),
            (1, MANY_ENDPOINTS, &[TcpServerCloses, TcpClientCloses]),
            (MANY_CLIENTS, MANY_ENDPOINTS, &[TcpServerCloses, TcpClientCloses, Udp]),
        ] {
            all.extend(transports.iter().map(|&transport| Self { transport, clients, endpoints }));
        }
        all
    }

    /// With one client and one endpoint?
    pub(crate) fn is_hardest(self) -> bool {
        (self.clients, self.endpoints) == (1, 1)
    }

    pub(crate) fn title(self) -> String {
        let transport = match self.transport {
            Transport::TcpServerCloses => "TCP, server closes first",
            Transport::TcpClientCloses => "TCP, client closes first",
            Transport::Udp => "UDP, a socket each",
        };
        let plural = |count, what| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        format!("{transport}, {}, {}", plural(self.clients, "client"), plural(self.endpoints, "endpoint"))
    }
}

/// A case with one way to serve.
pub(crate) struct Measured {
    pub(crate) case: Case,
    pub(crate) proxy: Proxy,
    pub(crate) tally: Tally,
}

/// Measures all cases, in clusters made for each measurement, so that none finds the remains of another. Each is measured twice, in the
/// order A B B A: a machine that gets slower or faster with time does it to all.
pub(crate) fn measure(time: Duration) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for (index, case) in Case::all().into_iter().enumerate() {
        let time = if case.is_hardest() { time } else { time / SHORTER };
        let mut proxies = vec![Proxy::Ours, Proxy::Masquerade];
        // Random ports differ most where the endpoint keeps TIME-WAIT; elsewhere they are not worth the time.
        if case.is_hardest() && case.transport == Transport::TcpServerCloses {
            proxies.push(Proxy::Nftables);
        }
        // Another one is the first each time.
        let first = index % proxies.len();
        proxies.rotate_left(first);
        let mut tallies: Vec<Tally> = Vec::new();
        for (turn, &proxy) in proxies.iter().chain(proxies.iter().rev()).enumerate() {
            let title = format!("{}: {}", proxy.title(), case.title());
            let tally = one(case, proxy, time).with_context(|| title.clone())?;
            println!("{title}: {:.0}/s, {tally}", tally.rate());
            if turn < proxies.len() {
                tallies.push(tally);
            } else {
                tallies[2 * proxies.len() - 1 - turn].join(tally);
            }
        }
        all.extend(proxies.into_iter().zip(tallies).map(|(proxy, tally)| Measured { case, proxy, tally }));
    }
    Ok(all)
}

fn one(case: Case, proxy: Proxy, time: Duration) -> Result<Tally> {
    let fixture = Fixture::new(proxy, 0, case.endpoints)?;
    let mut attempts = Attempts::new(case.transport, fixture.target(0)?);
    if case.clients > 1 {
        attempts.sources = fixture.clients(case.clients);
    }
    fixture.cluster.client.netns.run(|| {
        // Neighbours are found.
        attempts.closed_loop(1, Duration::from_millis(20))?;
        Ok(attempts.closed_loop(PARALLEL, time)?)
    })
}
