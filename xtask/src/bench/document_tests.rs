use proxy_tests::bench::{Figure, Place, Summary, Unit};

use super::*;

fn figure(table: &str, row: &str, column: &str, unit: Unit, value: Summary) -> Figure {
    let (table, row, column) = (table.to_owned(), row.to_owned(), column.to_owned());
    Figure { table, row, column, unit, better: Better::Less, value }
}

fn target(what: &str, limit: f64, measured: f64, reason: Option<&str>) -> Target {
    let (what, reason) = (what.to_owned(), reason.map(str::to_owned));
    Target { what, unit: Unit::Nanoseconds, better: Better::Less, limit, measured, reason }
}

fn measured(bench: &str, revision: &str, figures: Vec<Figure>, targets: Vec<Target>) -> Results {
    let place =
        Place { processor: "Some CPU".to_owned(), cpus: 2, is_virtual: true, kernel: "6.18".to_owned() };
    let part = Part { bench: bench.to_owned(), method: "By a clock.".to_owned(), figures, targets };
    Results { parts: vec![Measured { place, revision: revision.to_owned(), part }] }
}

fn packet() -> Results {
    let spread = |value| Summary { value, low: value - 1.0, high: value + 1.0, runs: 3 };
    let figures = vec![
        figure("One flow", "tc", "IPv4", Unit::Nanoseconds, spread(12.0)),
        figure("One flow", "tc", "IPv6", Unit::Nanoseconds, Summary::single(1234.0)),
        figure("One flow", "a|b", "IPv6", Unit::Nanoseconds, spread(5.0)),
        figure("Mixed", "all", "time", Unit::Seconds, Summary::single(1.5)),
        figure("Mixed", "all", "size", Unit::Mebibytes, Summary::single(64.0)),
    ];
    let targets = vec![
        target("fast", 10.0, 9.0, Some("not to be seen")),
        target("faster", 10.0, 11.0, Some("it is slow")),
        target("fastest", 10.0, 12.0, None),
    ];
    measured("packet", "abc", figures, targets)
}

#[test]
fn tables_targets_and_plots() {
    let docs = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(write_to(docs.path(), &packet()).unwrap()).unwrap();
    for line in [
        "| packet | Some CPU, 2 CPUs, virtual machine | 6.18 | abc |",
        "### packet: 1 of 3 met",
        "| fast | at most 10.0 ns | 9.0 ns | met |",
        "| faster | at most 10.0 ns | 11.0 ns | **missed**: it is slow |",
        "| fastest | at most 10.0 ns | 12.0 ns | **missed** |",
        "By a clock.",
        "### One flow (ns)",
        "| | IPv4 | IPv6 |",
        "| tc | 12.0 [11.0; 13.0] | 1,234 |",
        "| a\\|b |  | 5.0 [4.0; 6.0] |",
        "![One flow (ns)](benchmarks/packet-one-flow.svg)",
        "### Mixed",
        "| all | 1.50 s | 64.0 MiB |",
    ] {
        assert!(text.lines().any(|other| other == line), "no `{line}` in\n{text}");
    }
    let svg = fs::read_to_string(docs.path().join("benchmarks/packet-one-flow.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("IPv6") && svg.contains("1,234"), "{svg}");
    assert!(!text.contains("packet-mixed.svg"), "a plot has one unit");
}

#[test]
fn a_part_is_renewed_and_the_others_stay() {
    let docs = tempfile::tempdir().unwrap();
    let traffic = [1.0, 2.0].map(|value| figure("Rates", "tc", "ours", Unit::Ratio, Summary::single(value)));
    write_to(docs.path(), &measured("traffic", "abc", traffic.to_vec(), Vec::new())).unwrap();
    write_to(docs.path(), &packet()).unwrap();
    let lone = figure("Other", "tc", "IPv4", Unit::Nanoseconds, Summary::single(7.0));
    let text = fs::read_to_string(
        write_to(docs.path(), &measured("packet", "def", vec![lone], Vec::new())).unwrap(),
    )
    .unwrap();
    let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("no `{what}` in\n{text}"));
    assert!(at("## packet") < at("## traffic"), "in the order of the benchmarks");
    assert!(at("| packet | Some CPU") < at("| traffic | Some CPU"));
    assert!(text.contains("def") && text.contains("### Other (ns)") && !text.contains("One flow"));
    assert!(!docs.path().join("benchmarks/packet-one-flow.svg").exists(), "the plot of a table that is gone");
}
