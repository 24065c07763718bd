use proxy_figures::{Better, Figure, Place, Statistic, Summary, Target, Unit};

use super::{super::results::Measured, *};

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
    let spread =
        |value| Summary { value, low: value - 1.0, high: value + 1.0, runs: 3, statistic: Statistic::Median };
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

/// A page, with the names of its folder and file.
fn read(docs: &Path, page: &str) -> String {
    fs::read_to_string(docs.join(page)).unwrap_or_else(|error| panic!("{page}: {error}"))
}

fn assert_lines(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|other| other == *line), "no `{line}` in\n{text}");
    }
}

#[test]
fn the_first_page_leads_to_targets_and_pages() {
    let docs = tempfile::tempdir().unwrap();
    assert_eq!(write_to(docs.path(), &packet()).unwrap(), docs.path().join("benchmarks.md"));
    let text = read(docs.path(), "benchmarks.md");
    assert_lines(
        &text,
        &[
            MARK,
            "| [packet](benchmarks/packet.md) | 1 of 3 | Some CPU, 2 CPUs, virtual machine | 6.18 | abc |",
            "1 of 3 targets are met. The missed ones stand below, with reasons where they were found.",
            "### Missed: packet",
            "| faster | at most 10.0 ns | 11.0 ns | it is slow |",
            "| fastest | at most 10.0 ns | 12.0 ns |  |",
        ],
    );
    assert!(
        !text.contains("| fast |") && !text.contains("not to be seen"),
        "met targets are on the next page"
    );
    assert!(!text.contains("| what |"), "no summary without a figure for it");
}

#[test]
fn a_page_has_method_targets_tables_and_plots() {
    let docs = tempfile::tempdir().unwrap();
    write_to(docs.path(), &packet()).unwrap();
    let text = read(docs.path(), "benchmarks/packet.md");
    assert_lines(
        &text,
        &[
            MARK,
            "Measured on Some CPU, 2 CPUs, virtual machine, Linux 6.18, revision abc.",
            "By a clock.",
            "## Targets: 1 of 3 met",
            "| fast | at most 10.0 ns | 9.0 ns | met |",
            "| faster | at most 10.0 ns | 11.0 ns | **missed**: it is slow |",
            "| fastest | at most 10.0 ns | 12.0 ns | **missed** |",
            "### One flow (ns)",
            "| | IPv4 | IPv6 |",
            "| tc | 12.0 [11.0; 13.0] | 1,234 |",
            "| a\\|b |  | 5.0 [4.0; 6.0] |",
            "![One flow (ns)](packet-one-flow.svg)",
            "### Mixed",
            "| all | 1.50 s | 64.0 MiB |",
        ],
    );
    let svg = read(docs.path(), "benchmarks/packet-one-flow.svg");
    assert!(svg.starts_with("<svg") && svg.contains("IPv6") && svg.contains("1,234"), "{svg}");
    assert!(!text.contains("packet-mixed.svg"), "a plot has one unit");
}

#[test]
fn quartiles_in_brackets_belong_to_a_median() {
    let docs = tempfile::tempdir().unwrap();
    let of = |value, statistic| Summary { value, low: 48.0, high: 51.7, runs: 25, statistic };
    let figures = [
        ("Medians", "tc", of(50.0, Statistic::Median)),
        ("Smallest", "tc", of(47.3, Statistic::Minimum)),
        ("Both", "tc", of(50.0, Statistic::Median)),
        ("Both", "XDP", of(52.0, Statistic::Overall)),
    ]
    .map(|(table, row, value)| figure(table, row, "IPv4", Unit::Nanoseconds, value));
    write_to(docs.path(), &measured("packet", "abc", figures.to_vec(), Vec::new())).unwrap();
    let text = read(docs.path(), "benchmarks/packet.md");
    assert_lines(
        &text,
        &["| tc | 50.0 [48.0; 51.7] |", "| tc | 47.3 (48.0 to 51.7) |", "| XDP | 52.0 (48.0 to 51.7) |"],
    );
    let section = |title: &str| text.split("\n### ").find(|part| part.starts_with(title)).unwrap().to_owned();
    assert!(!section("Medians").contains(": median") && section("Both").contains(": median"));
    assert!(section("Smallest").contains(": smallest time"));
    assert!(section("Both").contains(": all runs as one"));
}

#[test]
fn a_part_is_renewed_and_the_others_stay() {
    let docs = tempfile::tempdir().unwrap();
    let traffic = [1.0, 2.0].map(|value| figure("Rates", "tc", "ours", Unit::Ratio, Summary::single(value)));
    write_to(docs.path(), &measured("traffic", "abc", traffic.to_vec(), Vec::new())).unwrap();
    let of_traffic = read(docs.path(), "benchmarks/traffic.md");
    write_to(docs.path(), &packet()).unwrap();
    let lone = figure("Other", "tc", "IPv4", Unit::Nanoseconds, Summary::single(7.0));
    write_to(docs.path(), &measured("packet", "def", vec![lone], Vec::new())).unwrap();
    let text = read(docs.path(), "benchmarks.md");
    let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("no `{what}` in\n{text}"));
    assert!(at("| [packet]") < at("| [traffic]"), "in the order of the benchmarks");
    let packet = read(docs.path(), "benchmarks/packet.md");
    assert!(packet.contains("def") && packet.contains("### Other (ns)") && !packet.contains("One flow"));
    assert_eq!(read(docs.path(), "benchmarks/traffic.md"), of_traffic);
    assert!(!docs.path().join("benchmarks/packet-one-flow.svg").exists(), "the plot of a table that is gone");
}

#[test]
fn the_first_page_opens_with_a_summary_and_its_plot() {
    let docs = tempfile::tempdir().unwrap();
    let table = "Sustained load: successes per second";
    let rate = |row, column, value| Figure {
        better: Better::More,
        ..figure(table, row, column, Unit::PerSecond, Summary::single(value))
    };
    let figures = vec![
        rate("TCP", "ours", 90.0),
        rate("TCP", "kernel masquerade", 100.0),
        rate("UDP", "ours", 300.0),
        rate("UDP", "kernel masquerade", 200.0),
    ];
    let flood = "Flood of forged SYNs to one Service: new connections of another Service";
    let succeeded = |row, column, value| Figure {
        better: Better::More,
        ..figure(flood, row, column, Unit::Percent, Summary::single(value))
    };
    let succeeded = [
        succeeded("2,000 SYN/s", "ours", 100.0),
        succeeded("2,000 SYN/s", "nftables", 50.0),
        succeeded("20,000 SYN/s", "ours", 0.0),
        succeeded("20,000 SYN/s", "nftables", 50.0),
    ];
    let figures = [figures, succeeded.to_vec()].concat();
    write_to(docs.path(), &measured("traffic", "abc", figures, Vec::new())).unwrap();
    let text = read(docs.path(), "benchmarks.md");
    let plot = "benchmarks/summary-how-many-times-as-good-as-the-other.svg";
    assert_lines(
        &text,
        &[
            "| [Successes per second under sustained load](benchmarks/traffic.md) | the kernel's masquerade | 0.90 to 1.50 | no target |",
            &format!("![How many times as good as the other]({plot})"),
        ],
    );
    assert!(text.find("| what |").unwrap() < text.find("## ").unwrap(), "before all else");
    let svg = read(docs.path(), plot);
    assert!(svg.contains("0.90 to 1.50") && svg.contains("0.00 to 2.00"), "{svg}");
}
