//! Floods, in the form of all benchmarks.

use std::time::Duration;

use proxy_figures::{Better, Figure, Part, Summary, Target, Unit};

use crate::{
    fixture::Proxy,
    flood::{CONNECTIONS, ENDPOINTS, HELD, Measured, SHORTER},
};

/// Adds method, tables and targets.
pub(crate) fn add(part: &mut Part, measured: &[Measured], time: Duration) {
    part.method += &method(time);
    for Measured { rate, proxy, flood, other, same, lost } in measured {
        let figure = |table: &str, unit, better, value| Figure {
            table: format!("Flood of forged SYNs to one Service: {table}"),
            row: title(*rate),
            column: proxy.title().to_owned(),
            unit,
            better,
            value: Summary::single(value),
        };
        part.figures.extend([
            figure(
                "new connections of another Service that succeed within a second",
                Unit::Percent,
                Better::More,
                100.0 * other.success(),
            ),
            figure(
                "new connections of the same Service that succeed within a second",
                Unit::Percent,
                Better::More,
                100.0 * same.success(),
            ),
            figure(
                &format!("established connections lost, of {}", 2 * HELD),
                Unit::Count,
                Better::Less,
                *lost as f64,
            ),
        ]);
        if *rate > 0 {
            part.figures.push(figure("SYNs reached", Unit::PerSecond, Better::More, flood.rate()));
        }
    }
    part.targets.extend(targets(measured));
}

/// The measured value of a target.
type Of = fn(&Measured) -> f64;

fn targets(measured: &[Measured]) -> Vec<Target> {
    let mut targets = Vec::new();
    for ours in measured.iter().filter(|measured| measured.proxy == Proxy::Ours && measured.rate > 0) {
        let peer = measured.iter().find(|other| other.rate == ours.rate && other.proxy == Proxy::Nftables);
        let cases: [(_, _, _, _, Of); 3] = [
            ("new connections of another Service", Unit::Percent, Better::More, 99.9, |measured| {
                100.0 * measured.other.success()
            }),
            ("new connections of the same Service", Unit::Percent, Better::More, 95.0, |measured| {
                100.0 * measured.same.success()
            }),
            ("established connections lost", Unit::Count, Better::Less, 0.0, |measured| measured.lost as f64),
        ];
        targets.extend(cases.map(|(what, unit, better, limit, of)| Target {
            what: format!("flood of {}, {what}", title(ours.rate)),
            unit,
            better,
            limit,
            measured: of(ours),
            reason: peer.map(|peer| {
                format!(
                    "{:.0} SYN/s reached; {} has {:.2} at {:.0} SYN/s",
                    ours.flood.rate(),
                    peer.proxy.title(),
                    of(peer),
                    peer.flood.rate()
                )
            }),
        }));
    }
    targets
}

fn title(rate: u32) -> String {
    match rate {
        0 => "no flood".to_owned(),
        1_000.. => format!("{},{:03} SYN/s", rate / 1_000, rate % 1_000),
        _ => format!("{rate} SYN/s"),
    }
}

fn method(time: Duration) -> String {
    format!(
        "\n\nFloods: forged SYNs, each from another address and port, go from outside to the nodePort of one Service for \
         {} s, at the wanted rate or as fast as this machine makes and forwards them; replies to them end in silence. \
         Meanwhile {CONNECTIONS} new connections a second are made to that Service and as many to another one; one that has no \
         reply within a second has failed. {HELD} connections to each Service are there before; half of them talk during the \
         flood, the others are asked after it. Both Services have {ENDPOINTS} endpoints on each node. Attacker, clients, nodes \
         and endpoints share this machine's CPUs, so the largest flood is also one of CPU time.",
        (time / SHORTER).as_secs_f64()
    )
}
