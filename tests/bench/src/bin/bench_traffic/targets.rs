//! Targets, and the reasons where they are missed.

use clap::ValueEnum;
use proxy_figures::{Better, Summary, Target, Unit};

use crate::{
    forward::Rates,
    measure::{Path, Samples},
    reasons,
    report::{against, forwarded_by},
    setup::Variant,
    wire::Kind,
};

/// All targets of the results.
pub(crate) fn targets(samples: &Samples, rates: &Rates) -> Vec<Target> {
    let mut questions = Vec::new();
    for (ours, limit) in [(Variant::Sockets, 0.97), (Variant::Tc, 0.92)] {
        let paths = &[Path::ClusterIpLocal, Path::ClusterIpRemote];
        questions.push(Question { what: "cluster IPs", ours, other: Variant::Direct, limit, paths });
    }
    for (what, limit, paths) in [
        ("nodePorts, local backend", 0.95, &[Path::NodePortLocal]),
        ("nodePorts, remote backend", 0.80, &[Path::NodePortRemote]),
    ] {
        questions.push(Question { what, ours: Variant::Sockets, other: Variant::Direct, limit, paths });
    }
    for other in [Variant::Nftables, Variant::Iptables] {
        for ours in [Variant::Sockets, Variant::Tc] {
            questions.push(Question {
                what: "all paths",
                ours,
                other,
                limit: 1.0,
                paths: Path::value_variants(),
            });
        }
    }
    let loads = questions
        .iter()
        .flat_map(|question| Kind::value_variants().iter().map(move |&kind| (question, kind)));
    let mut targets: Vec<_> = loads.filter_map(|(question, kind)| question.target(samples, kind)).collect();
    targets.extend(forwarding_targets(rates));
    targets
}

/// How one way to serve is to compare with another, for each kind of load.
struct Question {
    what: &'static str,
    ours: Variant,
    other: Variant,
    limit: f64,
    paths: &'static [Path],
}

impl Question {
    /// The worst row counts; none if nothing was measured.
    fn target(&self, samples: &Samples, kind: Kind) -> Option<Target> {
        let Self { what, ours, other, limit, paths } = *self;
        let rows = samples.keys().filter(|(row, variant)| *variant == ours && row.kind == kind);
        let rows = rows.map(|(row, _)| *row).filter(|row| paths.contains(&row.path));
        let ratios =
            rows.map(|row| (against(samples, row, ours, other), row)).filter(|(ratio, _)| ratio.runs > 0);
        let (ratio, row) = ratios.min_by(|one, other| one.0.value.total_cmp(&other.0.value))?;
        let cause = reasons::cause(ours, row).unwrap_or("the cause has not been looked for");
        Some(Target {
            what: format!(
                "{} against {}, {what}, worst row: {}",
                ours.title(),
                other.title(),
                lower(kind.title())
            ),
            unit: Unit::Ratio,
            better: Better::More,
            limit,
            measured: ratio.value,
            reason: Some(format!("{}, {} services: {cause}", row.path.title(), row.services)),
        })
    }
}

fn lower(title: &str) -> String {
    let (first, rest) = title.split_at(1);
    if title.starts_with("UDP") { title.to_owned() } else { first.to_lowercase() + rest }
}

fn forwarding_targets(rates: &Rates) -> Vec<Target> {
    let of = |wanted| rates.iter().find(|(variant, _)| *variant == wanted).map(|(_, rates)| rates);
    let cases = [
        (Variant::Xdp, Variant::Nftables, 3.0),
        (Variant::Sockets, Variant::Nftables, 1.5),
        (Variant::Xdp, Variant::Iptables, 1.0),
        (Variant::Sockets, Variant::Iptables, 1.0),
    ];
    let target = |(ours, peer, limit)| {
        let ratios = of(ours)?.iter().zip(of(peer)?).map(|(ours, peer)| ours / peer);
        Some(Target {
            what: format!(
                "packets forwarded per second of CPU time, nodePort, remote backend: {} against {}",
                forwarded_by(ours),
                forwarded_by(peer)
            ),
            unit: Unit::Ratio,
            better: Better::More,
            limit,
            measured: Summary::median(ratios).value,
            reason: None,
        })
    };
    cases.into_iter().filter_map(target).collect()
}
