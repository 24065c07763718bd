use proxy_figures::{Part, Place, Statistic};

use super::{super::results::Measured, *};

fn results(kernel: &str, figures: &[(&str, Better, [f64; 3])]) -> Results {
    let figures = figures.iter().map(|(row, better, [value, low, high])| Figure {
        table: "table".to_owned(),
        row: (*row).to_owned(),
        column: "column".to_owned(),
        unit: Unit::Nanoseconds,
        better: *better,
        value: Summary { value: *value, low: *low, high: *high, runs: 5, statistic: Statistic::Median },
    });
    let place = Place { processor: "some".to_owned(), cpus: 1, is_virtual: false, kernel: kernel.to_owned() };
    let part = Part {
        bench: "packet".to_owned(),
        method: String::new(),
        figures: figures.collect(),
        targets: Vec::new(),
    };
    Results { parts: vec![Measured { place, revision: "some".to_owned(), part }] }
}

#[test]
fn worse_by_a_tenth_and_by_more_than_it_varies() {
    use Better::{Less, More};
    for (better, before, now, regressions, improvements) in [
        // The same.
        (Less, [10.0, 9.0, 11.0], [10.0, 9.0, 11.0], 0, 0),
        // Within the spread.
        (Less, [10.0, 9.0, 12.0], [11.9, 11.0, 13.0], 0, 0),
        // Out of it, but not by a tenth.
        (Less, [100.0, 99.0, 101.0], [105.0, 104.0, 106.0], 0, 0),
        (Less, [100.0, 99.0, 101.0], [120.0, 119.0, 121.0], 1, 0),
        (Less, [100.0, 99.0, 101.0], [80.0, 79.0, 81.0], 0, 1),
        (More, [100.0, 99.0, 101.0], [80.0, 79.0, 81.0], 1, 0),
        (More, [100.0, 99.0, 101.0], [120.0, 119.0, 121.0], 0, 1),
        // Minima, which other runs lie above.
        (Less, [100.0, 105.0, 160.0], [120.0, 130.0, 180.0], 1, 0),
        (Less, [100.0, 125.0, 160.0], [120.0, 130.0, 180.0], 0, 0),
        // Zero is not a base for a ratio.
        (Less, [0.0, 0.0, 0.0], [3.0, 3.0, 3.0], 0, 0),
        (Less, [-1.0, -1.0, -1.0], [3.0, 3.0, 3.0], 0, 0),
    ] {
        let of = |values| results("6.18", &[("row", better, values)]);
        let comparison = Comparison::of(&of(before), &of(now));
        let got = (comparison.compared, comparison.regressions.len(), comparison.improvements);
        assert_eq!(got, (1, regressions, improvements), "{before:?} to {now:?}");
        assert!(comparison.notes.is_empty());
    }
}

#[test]
fn none_is_a_count() {
    let of = |count: f64| {
        let mut results = results("6.18", &[("failures", Better::Less, [count; 3])]);
        results.parts[0].part.figures[0].unit = Unit::Count;
        results
    };
    for (before, now, regressions, improvements) in [(0.0, 0.0, 0, 0), (0.0, 3.0, 1, 0), (3.0, 0.0, 0, 1)] {
        let comparison = Comparison::of(&of(before), &of(now));
        let got = (comparison.regressions.len(), comparison.improvements);
        assert_eq!(got, (regressions, improvements), "{before} to {now}");
    }
}

#[test]
fn the_worst_comes_first_and_the_rest_is_noted() {
    let before = results(
        "6.12",
        &[
            ("slower", Better::Less, [10.0; 3]),
            ("much slower", Better::Less, [10.0; 3]),
            ("fewer", Better::More, [10.0; 3]),
            ("gone", Better::Less, [10.0; 3]),
        ],
    );
    let now = results(
        "6.18",
        &[
            ("slower", Better::Less, [12.0; 3]),
            ("much slower", Better::Less, [30.0; 3]),
            ("fewer", Better::More, [5.0; 3]),
            ("new", Better::Less, [10.0; 3]),
            ("newer", Better::Less, [10.0; 3]),
        ],
    );
    let comparison = Comparison::of(&before, &now);
    let found: Vec<_> =
        comparison.regressions.iter().map(|change| (change.what.as_str(), change.ratio())).collect();
    let name = |row: &str| format!("packet: table: {row}, column");
    let expected =
        [("much slower", 3.0), ("fewer", 0.5), ("slower", 1.2)].map(|(row, ratio)| (name(row), ratio));
    assert_eq!(found, expected.each_ref().map(|(what, ratio)| (what.as_str(), *ratio)));
    assert!(comparison.notes.iter().any(|note| note.contains("another machine or kernel")));
    assert!(comparison.notes.iter().any(|note| note.contains("2 figures are new, 1 are gone")));

    let nothing = Comparison::of(&Results::default(), &now);
    assert_eq!((nothing.compared, nothing.notes.len()), (0, 1));
}
