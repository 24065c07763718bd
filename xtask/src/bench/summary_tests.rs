use proxy_figures::Place;

use super::{super::results::Measured, *};
use crate::workspace::root;

fn figure(table: &str, row: &str, column: &str, (better, value): (Better, f64)) -> Figure {
    let (table, row, column) = (table.to_owned(), row.to_owned(), column.to_owned());
    Figure { table, row, column, unit: Unit::Mebibytes, better, value: Summary::single(value) }
}

fn target(what: &str, limit: f64, measured: f64) -> Target {
    Target {
        what: what.to_owned(),
        unit: Unit::Mebibytes,
        better: Better::Less,
        limit,
        measured,
        reason: None,
    }
}

fn part(figures: Vec<Figure>, targets: Vec<Target>) -> Part {
    Part { bench: "memory".to_owned(), method: String::new(), figures, targets }
}

fn subject(against: Against, columns: &'static [&'static str]) -> Subject {
    let figures = Select { table: Words(&["Memory"], &["other"]), row: Words(&[], &["at rest"]), columns };
    Subject { what: "Memory", against, bench: "memory", figures, targets: Words(&["limit"], &[]) }
}

const PEER: Against = Against::Peer("a peer", "peer");

#[test]
fn ratios_are_above_one_where_we_are_ahead() {
    for (better, ratios) in [(Better::More, "0.50 to 3.00"), (Better::Less, "0.33 to 2.00")] {
        let of = |row, ours, peer| {
            [("ours", ours), ("peer", peer)]
                .map(|(column, value)| figure("Memory", row, column, (better, value)))
        };
        let figures = [of("a", 1.0, 2.0), of("b", 6.0, 2.0)].concat();
        let line = Line::of(&subject(PEER, &["ours"]), &part(figures, Vec::new())).unwrap();
        assert_eq!((line.number(), line.against.as_str()), (ratios.to_owned(), "a peer"));
        let bar = line.bar().unwrap();
        assert_eq!((bar.row.as_str(), bar.value.value), ("Memory / peer", line.cases[0]));
        assert_eq!(bar.value.high, line.cases[1]);
    }
}

#[test]
fn what_was_not_measured_leaves_its_line_out() {
    let more = |column, value| figure("Memory", "a", column, (Better::More, value));
    let lacking = [
        (vec![more("ours", 1.0)], PEER),
        (vec![more("peer", 1.0)], PEER),
        (vec![more("ours", 0.0), more("peer", 0.0)], PEER),
        (vec![figure("Memory, other", "a", "ours", (Better::More, 1.0))], Against::Target),
        (vec![figure("Memory", "at rest", "ours", (Better::More, 1.0))], Against::Target),
        (Vec::new(), Against::EmptyProgram),
    ];
    for (figures, against) in lacking {
        assert_eq!(Line::of(&subject(against, &["ours"]), &part(figures, Vec::new())), None);
    }
    let one_of_two = part(vec![more("maps", 1.0)], Vec::new());
    assert_eq!(Line::of(&subject(Against::Target, &["maps", "programs"]), &one_of_two), None);
    assert_eq!(lines(&Results::default()), []);
}

#[test]
fn numbers_and_their_targets() {
    let of = |column, value| figure("Memory", "a", column, (Better::Less, value));
    let figures = vec![of("maps", 12.0), of("programs", 30.0)];
    let line = |against, columns, targets: &[(f64, f64)]| {
        let targets = targets.iter().map(|&(limit, measured)| target("limit", limit, measured));
        let others = [target("of another row", 1.0, 2.0)];
        let part = part(figures.clone(), targets.chain(others).collect());
        let line = Line::of(&subject(against, columns), &part).unwrap();
        assert!(line.bar().is_none(), "a plot has one unit");
        [line.number(), line.against.clone(), line.verdict()]
    };
    let sum = &["maps", "programs"];
    assert_eq!(line(Against::Target, sum, &[]), ["42.0 MiB", "-", "no target"]);
    let both = &[(50.0, 42.0), (60.0, 42.0)];
    assert_eq!(line(Against::Target, sum, both), ["42.0 MiB", "target: at most 50.0 to 60.0 MiB", "yes"]);
    assert_eq!(
        line(Against::Target, &["maps"], &[(9.0, 12.0)]),
        ["12.0 MiB", "target: at most 9.00 MiB", "**no**"]
    );
    let added = line(Against::EmptyProgram, &[], &[(9.0, 12.0), (50.0, 42.0)]);
    assert_eq!(added, ["+12.0 to 30.0 MiB", "an empty program", "**1 of 2**"]);
}

/// A title that changes in a benchmark must change in the summary as well.
#[test]
fn the_committed_results_have_all_lines() {
    let results = Results::load(&root().join("docs/benchmarks/results.json")).unwrap();
    let made = lines(&results);
    for subject in &subjects::ALL {
        let is_it = |line: &&Line| {
            let against = matches!(subject.against, Against::Peer(name, _) if name == line.against);
            line.what == subject.what && (line.peer.is_none() || against)
        };
        let line = made.iter().find(is_it).unwrap_or_else(|| panic!("no figures for `{}`", subject.what));
        assert!(subject.what.starts_with("Kernel memory") || line.met.1 > 0, "no target for `{}`", line.what);
    }
    assert_eq!(made.len(), subjects::ALL.len());
}

#[test]
fn lines_stand_in_the_order_of_their_subjects() {
    let place =
        Place { processor: "Some CPU".to_owned(), cpus: 2, is_virtual: false, kernel: "6.18".to_owned() };
    let of = |bench: &str, table: &str, row: &str, column: &str| {
        let part = part(vec![figure(table, row, column, (Better::Less, 1.0))], Vec::new());
        let part = Part { bench: bench.to_owned(), ..part };
        Measured { place: place.clone(), revision: "abc".to_owned(), part }
    };
    let mut results = Results::default();
    results.put(of("memory", "Agent", "10,000 x 10", "resident, without mapped maps"));
    results.put(of("sync", "One change of an endpoint", "idle", "p50"));
    let whats: Vec<_> = lines(&results).iter().map(|line| line.what).collect();
    assert_eq!(
        whats,
        [
            "One change of an endpoint until it is in the maps, median",
            "Resident memory of the agent with 10,000 Services"
        ]
    );
}
