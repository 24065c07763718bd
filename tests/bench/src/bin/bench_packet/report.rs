//! The results, in the common form.

use proxy_figures::{Better, Figure, Part, Summary, Unit};
use proxy_packets::sys::Kind;

use crate::{
    cases::{CLIENTS, Case, Table},
    fixture::{LARGE, SERVICES, SMALL},
    measure::Measured,
    targets::{COARSEST, REFERENCE_HIT, Results, family},
};

/// The whole.
pub(crate) fn part(cases: &[Case<'_>], measured: &Measured, runs: u32) -> Part {
    let results = Results { cases, above: &measured.above };
    let mut figures = Vec::new();
    for (row, values) in
        [("alone", &measured.empty), ("behind a wrapper that restores IPv4 headers", &measured.wrapped)]
    {
        for (column, value) in ["XDP", "tc"].into_iter().zip(values) {
            figures.push(figure(EMPTY.to_owned(), row.to_owned(), column.to_owned(), *value));
        }
    }
    let mut in_order: Vec<_> = cases.iter().zip(&measured.above).collect();
    // One table for all numbers of services.
    in_order.sort_by_key(|(case, _)| match case.table {
        Table::Services(_) => (Table::Services(0), !case.is_v4, false),
        Table::Again => (Table::Services(0), !case.is_v4, true),
        table => (table, false, false),
    });
    figures.extend(in_order.into_iter().map(|(case, above)| of_case(case, *above)));
    Part {
        bench: "packet".to_owned(),
        method: method(&results, runs),
        figures,
        targets: results.targets([SERVICES[0], SERVICES[2]]),
    }
}

const EMPTY: &str = "Empty program";

fn of_case(case: &Case<'_>, above: Summary) -> Figure {
    let family = family(case);
    let kind = if case.kind == Kind::Xdp { "XDP" } else { "tc" };
    let (table, column) = match case.table {
        Table::Baselines => ("Baselines, above the empty program".to_owned(), format!("{kind}, {family}")),
        Table::One => ("One flow at a time, above the empty program".to_owned(), family.to_owned()),
        Table::Clients => {
            let clients = thousands(CLIENTS);
            (format!("{clients} clients in turn, above the empty program"), family.to_owned())
        }
        Table::Many => ("65,536 flows in turn, above the empty program".to_owned(), family.to_owned()),
        Table::Full => ("Full flow map, above the empty program".to_owned(), family.to_owned()),
        Table::Services(services) => (services_of(family), thousands(services)),
        Table::Again => (services_of(family), format!("{}, again", thousands(SERVICES[0]))),
    };
    figure(table, case.row.clone(), column, above)
}

fn services_of(family: &str) -> String {
    format!("Numbers of services, {family}, above the empty program")
}

fn figure(table: String, row: String, column: String, value: Summary) -> Figure {
    Figure { table, row, column, unit: Unit::Nanoseconds, better: Better::Less, value }
}

/// With commas.
pub(crate) fn thousands(number: u32) -> String {
    if number < 1000 { number.to_string() } else { format!("{},{:03}", number / 1000, number % 1000) }
}

fn method(results: &Results<'_>, runs: u32) -> String {
    let hit = results.hit();
    let scale = hit / REFERENCE_HIT;
    format!(
        "\
Each number is what one program takes for one TCP frame with 64 bytes of payload, by `BPF_PROG_TEST_RUN`. That counts
neither drivers nor the network stack, nor what a real packet's memory costs before a program first reads it: the frame,
the program and, with one flow, its entries are in the cache. Redirects are decided, routes looked up and headers
written, but nothing is sent. It is the cost of the programs, to be compared with the baselines, and not a packet rate.

A test run repeats a program on the packet as it left it, and the second repetition would meet a translated packet. So
each program runs behind a wrapper that writes all headers anew, puts the number of the repetition into addresses or
ports where cases have many flows, and goes over by a tail call. Right after it the same wrapper runs with an empty
program behind it; the difference, *above the empty program*, is what the program itself costs. The time is that of the
thread's clock around the call, over the repetitions. All cases run in turn in each of {runs} runs, on one CPU. Values
are the difference of the smallest times, because noise only adds; in parentheses are the quartiles of the differences of
each run, which is another statistic: most values lie below them. Look-ups of 65,536 keys or flows in turn depend on how
much of the caches others leave, so that their smallest times are a matter of luck: theirs, and limits that follow from
them, are the medians of the differences, with their quartiles in square brackets. Parsing, look-ups of one key and packets
that are not for a service take so little time that they are measured four times in each run.

Baselines are programs of a few instructions: parsing Ethernet, IP and TCP without options; one look-up or insertion of the
packet's ends after that, in a map with the keys (IPv4: 16 bytes, IPv6: 40 bytes) and values of the flow map; one FIB look-up
that finds a route and its neighbour, and a call of its helper for an interface that does not forward. A map that was
filled by a program has its entries in memory in the order of the keys; in one that is *scattered* each was put anew, in no
order.

Flows are open, and both sides were heard, where packets are *established* or *answers*: each of their entries was put
anew to say so, in no order, and their memory is scattered, too: the limit for 65,536 flows is from look-ups of scattered
entries. (Of entries in order, it would be from the row above.) A CPU that asked for a route within the last 32 jiffies does
not ask again, so nearly all packets to and from remote backends find theirs known with one client; with {clients} *clients in
turn* those that go to the clients do not. New flows to remote backends find theirs known as well, but for the first ones. Endpoints are marked as local or remote, as the agent marks those with
a `nodeName`. The flow map has room for {large} entries of each family;
*new flows* are removed after each run of {new} of them. A *full* one has {small} entries, and each new flow pushes others
out. Services are ClusterIPs of both families with one backend each, beside nine that the packets are for, unless they go
to all services in turn.

A flow that is opened right after others were removed gets their memory, which the caches still hold. So programs with
each number of services are loaded once, each with maps of its own, and go through the same cases in the same order. Those
with {few} services that open no flows are loaded *again*: by how much the same program differs there with packets that are
not for a service tells the resolution: in this run {xdp:.1} ns at XDP and {tc:.1} ns at tc, where {coarsest} ns stand for all that is more.
Costs do not grow with services if the ratio is within the limit, or else if the difference is within the resolution; the
row says so.

Limits in nanoseconds were set for a machine where a hit in a hash with keys of 16 bytes adds {REFERENCE_HIT} ns to parsing. Here it
adds {hit:.1} ns, so they are {scale:.2} times that. New flows are compared with as many insertions as entries were counted
per new flow: into a plain hash while there is room, into a full LRU hash when there is none.",
        new = crate::cases::REPEAT_NEW,
        few = thousands(SERVICES[0]),
        clients = thousands(CLIENTS),
        xdp = results.resolution(Kind::Xdp, SERVICES[0]),
        tc = results.resolution(Kind::Tc, SERVICES[0]),
        coarsest = COARSEST,
        large = thousands(LARGE),
        small = thousands(SMALL),
    )
}
