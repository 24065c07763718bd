//! Sustained load, in the form of all benchmarks.

use std::time::Duration;

use proxy_figures::{Better, Figure, Part, Statistic, Summary, Target, Unit, quantile};
use proxy_load::{Tally, Transport};

use crate::{
    fixture::Proxy,
    sustained::{Case, MANY_CLIENTS, Measured, PARALLEL, SHORTER},
};

/// Adds method, tables and targets.
pub(crate) fn add(part: &mut Part, measured: &[Measured], time: Duration) {
    part.method += &method(time);
    for Measured { case, proxy, tally } in measured {
        let figure = |table: &str, unit, better, value| Figure {
            table: format!("Sustained load: {table}"),
            row: case.title(),
            column: proxy.title().to_owned(),
            unit,
            better,
            value,
        };
        let mut connects: Vec<_> = tally.connects.iter().map(|&time| f64::from(time)).collect();
        connects.sort_unstable_by(f64::total_cmp);
        let connect = |part| Summary::single(quantile(&connects, part));
        part.figures.extend([
            figure("successes per second", Unit::PerSecond, Better::More, rate(tally)),
            figure("failures", Unit::Count, Better::Less, failed(tally)),
            figure("time to connect, median", Unit::Microseconds, Better::Less, connect(0.5)),
            figure("time to connect, 99th percentile", Unit::Microseconds, Better::Less, connect(0.99)),
        ]);
        let kinds = [
            ("tried", Better::More, tally.tried()),
            ("connect errors", Better::Less, tally.failures.errors),
            ("timeouts", Better::Less, tally.failures.timeouts),
            ("resets", Better::Less, tally.failures.resets),
        ];
        part.figures.extend(kinds.map(|(kind, better, count)| Figure {
            row: format!("{}: {}", case.title(), proxy.title()),
            column: kind.to_owned(),
            ..figure("attempts and kinds of failures", Unit::Count, better, Summary::single(count as f64))
        }));
    }
    part.targets.extend(targets(measured));
}

/// The rate of all the time, with the quartiles of its seconds.
fn rate(tally: &Tally) -> Summary {
    let seconds = Summary::median(tally.seconds.iter().map(|&count| count as f64));
    Summary { value: tally.rate(), statistic: Statistic::Overall, ..seconds }
}

fn failed(tally: &Tally) -> Summary {
    Summary::single(tally.failures.total() as f64)
}

/// The hardest cases each, and of the others the worst.
fn targets(measured: &[Measured]) -> Vec<Target> {
    let mut compared = Vec::new();
    for ours in measured.iter().filter(|measured| measured.proxy == Proxy::Ours) {
        let is_peer = |other: &&Measured| other.case == ours.case && other.proxy == Proxy::Masquerade;
        if let Some(peer) = measured.iter().find(is_peer) {
            compared.push((ours.case, &ours.tally, &peer.tally));
        }
    }
    let (hardest, others): (Vec<_>, Vec<_>) = compared.into_iter().partition(|(case, ..)| case.is_hardest());
    let mut targets = Vec::new();
    for compared in hardest {
        let title = compared.0.title();
        targets.extend([failures(&title, compared), rates(&title, compared)]);
    }
    let worst = |title: &str, target: fn(&str, Compared<'_>) -> Target| {
        let all = others.iter().map(|&compared| {
            let target = target(title, compared);
            (loss(&target), Target { reason: reason(compared), ..target })
        });
        all.max_by(|one, other| one.0.total_cmp(&other.0)).map(|(_, target)| target)
    };
    targets.extend(worst("worst of the other cases", failures));
    targets.extend(worst("worst of the other cases", rates));
    targets
}

/// A case, our tally, and that of kernel masquerade.
type Compared<'t> = (Case, &'t Tally, &'t Tally);

fn failures(title: &str, (case, ours, peer): Compared<'_>) -> Target {
    Target {
        what: format!("sustained load, failures, {title}"),
        unit: Unit::Count,
        better: Better::Less,
        limit: 0.0,
        measured: ours.failures.total() as f64,
        reason: reason((case, ours, peer)),
    }
}

fn rates(title: &str, (case, ours, peer): Compared<'_>) -> Target {
    Target {
        what: format!("sustained load, rate against {}, {title}", Proxy::Masquerade.title()),
        unit: Unit::Ratio,
        better: Better::More,
        limit: 1.0,
        measured: ours.rate() / peer.rate(),
        reason: reason((case, ours, peer)),
    }
}

fn loss(target: &Target) -> f64 {
    if target.better == Better::Less { target.measured } else { -target.measured }
}

fn reason((case, ours, peer): Compared<'_>) -> Option<String> {
    let of = |tally: &Tally| {
        format!("{:.0}/s with {} of {} failed", tally.rate(), tally.failures.total(), tally.tried())
    };
    Some(format!("{}: {}; {}: {}", case.title(), of(ours), Proxy::Masquerade.title(), of(peer)))
}

fn method(time: Duration) -> String {
    format!(
        "\n\nSustained load: {PARALLEL} clients outside, each of which begins the next attempt when the last has ended, \
         use the nodePort of a Service whose endpoints are on the other node. An attempt is a connection with one \
         request, or a datagram from a new socket; it fails when it has no reply within a second. It lasts twice {} s \
         with one client address and one endpoint, twice {} s in the other cases; many clients are {MANY_CLIENTS} addresses of one \
         machine. Each measurement has a cluster made for it, with the kernel's usual TIME-WAIT and conntrack timeouts. \
         The ways to serve a case follow each other and then once more in the opposite order, so that a machine that gets slower or \
         faster with time does it to all. All CPUs are used. \
         *kernel masquerade* is the rules of *nftables*, but with masquerade that keeps source ports; kube-proxy's takes \
         random ones, which is *nftables* here as above. The clients' machine reuses ports in TIME-WAIT \
         after a second (`tcp_tw_reuse`), or its ports would limit {} to 470 a second. A rate is successes over \
         the whole time, with the quartiles of its seconds. A time to connect includes attempts that timed out, as a second; \
         for UDP it is the time to the reply.",
        time.as_secs(),
        (time / SHORTER).as_secs_f64(),
        Case { transport: Transport::TcpClientCloses, clients: 1, endpoints: 1 }.title(),
    )
}
