//! Targets, computed from the baselines of the same run.

use proxy_figures::{Better, Summary, Target, Unit};
use proxy_packets::sys::Kind;

use crate::{
    cases::{BaselineSort, CLIENTS, Case, MANY as FLOWS, Sort, Table},
    report::thousands,
};

/// The cost of a hash hit on the machine that limits in nanoseconds were set for; elsewhere they are scaled by it.
pub(crate) const REFERENCE_HIT: f64 = 15.0;

/// The cost of the FIB helper there, at the loopback interface.
const REFERENCE_FIB: f64 = 12.0;

const DNAT: f64 = 25.0;
const SNAT: f64 = 45.0;
const OTHER_AT_POD: f64 = 15.0;
const OTHER_AT_UPLINK: f64 = 8.0;
/// Over one insertion per entry.
const NEW: f64 = 2.5;
/// Limits for new flows of nodePorts with a local and with a remote backend, in nanoseconds, where an insertion takes
/// [`REFERENCE_INSERTION`].
const NEW_LOCAL: f64 = 850.0;
const NEW_REMOTE: f64 = 1000.0;
/// The cost of an insertion into an LRU hash with room, on the machine of those limits.
const REFERENCE_INSERTION: f64 = 190.0;
/// The limit for a packet of a known flow whose client was not heard lately, in nanoseconds, where a FIB look-up takes
/// [`REFERENCE_LOOK_UP`].
const CLIENT: f64 = 130.0;
/// The cost of a FIB look-up that finds a route and its neighbour, on the same machine.
const REFERENCE_LOOK_UP: f64 = 110.0;
/// IPv6 over IPv4.
const FAMILIES: f64 = 1.35;
/// The same for new flows of nodePorts.
const FAMILIES_NEW: f64 = 1.3;
/// Over plain look-ups in a table of the same size, whose entries are as scattered.
const MANY: f64 = 1.3;
/// The largest number of services over the smallest.
const FLAT: f64 = 1.1;
/// Nanoseconds: however badly the same program is measured twice, two programs that differ by more do differ.
pub(crate) const COARSEST: f64 = 3.0;

/// All cases with their times above the empty program.
pub(crate) struct Results<'r> {
    pub(crate) cases: &'r [Case<'r>],
    pub(crate) above: &'r [Summary],
}

impl Results<'_> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Case<'_>, f64)> {
        self.cases.iter().zip(self.above).map(|(case, above)| (case, above.value))
    }

    fn baseline(&self, sort: BaselineSort, kind: Kind, is_v4: bool) -> f64 {
        let is_it =
            |case: &Case<'_>| case.sort == Sort::Baseline(sort) && case.kind == kind && case.is_v4 == is_v4;
        self.iter().find(|(case, _)| is_it(case)).map_or(f64::NAN, |(_, above)| above)
    }

    /// The time that something adds to parsing.
    fn added(&self, sort: BaselineSort, kind: Kind, is_v4: bool) -> f64 {
        self.baseline(sort, kind, is_v4) - self.baseline(BaselineSort::Parse, kind, is_v4)
    }

    /// The time that a hit adds in a hash with keys of 16 bytes.
    pub(crate) fn hit(&self) -> f64 {
        self.added(BaselineSort::Hit, Kind::Xdp, true)
    }

    fn other(&self, table: Table, row: &str, is_v4: bool) -> Option<f64> {
        let is_it = |case: &Case<'_>| case.table == table && case.row == row && case.is_v4 == is_v4;
        self.iter().find(|(case, _)| is_it(case)).map(|(_, above)| above)
    }

    /// All targets.
    pub(crate) fn targets(&self, services: [u32; 2]) -> Vec<Target> {
        let mut targets = Vec::new();
        targets.extend(self.iter().filter_map(|(case, above)| self.scaled(case, above)));
        targets.extend(self.iter().filter_map(|(case, above)| self.new_flow(case, above)));
        targets.extend(self.iter().filter_map(|(case, above)| self.clients(case, above)));
        targets.extend(self.iter().filter_map(|(case, above)| self.many(case, above)));
        targets.extend(self.iter().filter_map(|(case, above)| self.families(case, above)));
        targets.extend(self.iter().filter_map(|(case, above)| self.flat(case, above, services)));
        targets
    }

    /// Limits in nanoseconds, for IPv4; for IPv6 they follow from [`Results::families`].
    fn scaled(&self, case: &Case<'_>, above: f64) -> Option<Target> {
        if case.table != Table::One || !case.is_v4 {
            return None;
        }
        let limit = match case.sort {
            Sort::NotOurs if case.row.ends_with("a pod") => OTHER_AT_POD,
            Sort::NotOurs => OTHER_AT_UPLINK,
            Sort::Established { snat: false } => DNAT,
            Sort::Established { snat: true } => SNAT,
            _ => return None,
        };
        let scale = self.hit() / REFERENCE_HIT;
        let added = |sort| self.added(sort, case.kind, case.is_v4);
        let reason = match case.sort {
            Sort::Established { snat: true } => Some(format!(
                "a packet whose route is not known adds {:.0} ns for the FIB look-up of the route and its neighbour. The \
                 limit has room for {:.0} ns; the helper takes {:.0} ns here where it looks nothing up, because the interface \
                 does not forward",
                added(BaselineSort::Fib),
                REFERENCE_FIB * scale,
                added(BaselineSort::FibNone),
            )),
            Sort::Established { snat: false } => self.other(case.table, &case.row, false).map(|v6| {
                let rest = |above: f64, is_v4| above - self.added(BaselineSort::Hit, case.kind, is_v4);
                let why = if case.kind == Kind::Tc {
                    ", because there the kernel need not be told of the packet's sum, which is a call of its own at tc"
                } else {
                    ""
                };
                format!(
                    "the look-up adds {:.0} ns. All else takes {:.0} ns; with IPv6 it takes {:.0} ns{why}",
                    self.added(BaselineSort::Hit, case.kind, true),
                    rest(above, true),
                    rest(v6, false),
                )
            }),
            _ => None,
        };
        Some(nanoseconds(format!("{}, IPv4 ({limit} ns scaled)", case.row), limit * scale, above, reason))
    }

    fn new_flow(&self, case: &Case<'_>, above: f64) -> Option<Target> {
        let (Sort::New { entries }, true) = (case.sort, case.is_v4) else { return None };
        if case.table == Table::One && case.row.contains("NodePort") {
            return Some(self.against_peers(case, above));
        }
        let (insertion, state) = match case.table {
            Table::One => (BaselineSort::Insert, ""),
            Table::Full => (BaselineSort::InsertFull, ", full flow map"),
            _ => return None,
        };
        let limit = NEW * entries * self.added(insertion, case.kind, case.is_v4);
        let what = format!("{}, IPv4{state} ({NEW} x {entries:.0} insertions)", case.row);
        Some(nanoseconds(what, limit, above, None))
    }

    /// New flows of nodePorts, whose limits follow from what peers take.
    fn against_peers(&self, case: &Case<'_>, above: f64) -> Target {
        let added = |sort| self.added(sort, case.kind, case.is_v4);
        let limit = if case.row.contains("remote") { NEW_REMOTE } else { NEW_LOCAL };
        let scale = added(BaselineSort::InsertLru) / REFERENCE_INSERTION;
        let reason = format!(
            "two insertions take {:.0} ns. Three look-ups find that no flow has the packet's ends or those of its answers, and \
             three more find the frontend, {:.0} to {:.0} ns each where the cache has their buckets",
            2.0 * added(BaselineSort::InsertLru),
            added(BaselineSort::Miss),
            added(BaselineSort::Hit),
        );
        let what = format!("{}, IPv4 ({limit} ns scaled by an insertion)", case.row);
        nanoseconds(what, limit * scale, above, Some(reason))
    }

    /// Packets of many clients.
    fn clients(&self, case: &Case<'_>, above: f64) -> Option<Target> {
        (case.table == Table::Clients && case.is_v4).then(|| {
            let added = |sort| self.added(sort, case.kind, case.is_v4);
            let limit = CLIENT * added(BaselineSort::Fib) / REFERENCE_LOOK_UP;
            let known = self.other(Table::One, &case.row, case.is_v4).unwrap_or(f64::NAN);
            let reason = format!(
                "with one client it takes {known:.0} ns, and the FIB look-up alone {:.0} ns",
                added(BaselineSort::Fib),
            );
            let clients = thousands(CLIENTS);
            let what = format!("{}, IPv4, {clients} clients ({CLIENT} ns scaled by a FIB look-up)", case.row);
            nanoseconds(what, limit, above, Some(reason))
        })
    }

    fn many(&self, case: &Case<'_>, above: f64) -> Option<Target> {
        (case.table == Table::Many).then(|| {
            let limit = MANY * self.baseline(BaselineSort::ManyScattered, case.kind, case.is_v4);
            let what = format!("{}, {}, 65,536 flows ({MANY} x look-ups)", case.row, family(case));
            let reason = self.why_many(case);
            nanoseconds(what, limit, above, reason)
        })
    }

    fn why_many(&self, case: &Case<'_>) -> Option<String> {
        let baseline = |sort| self.baseline(sort, case.kind, case.is_v4);
        let [scattered, whole] = [BaselineSort::ManyScattered, BaselineSort::ManyWhole].map(baseline);
        let rest = self.other(Table::One, &case.row, case.is_v4)? - baseline(BaselineSort::Hit);
        Some(format!(
            "look-ups alone take {scattered:.0} ns, with all of the value {whole:.0} ns. With one flow at a time the program \
             takes {rest:.0} ns beside its look-up; that makes {:.0} ns",
            whole + rest,
        ))
    }

    fn families(&self, case: &Case<'_>, above: f64) -> Option<Target> {
        if case.table != Table::One || case.is_v4 {
            return None;
        }
        let of_v4 = self.other(case.table, &case.row, true)?;
        let ratio = above / of_v4;
        let [v4, v6] = [true, false].map(|is_v4| self.added(BaselineSort::Fib, case.kind, is_v4));
        let reason = if case.row.contains("remote") {
            format!(
                "the FIB look-up alone adds {v6:.0} ns for IPv6, {:.2} times what it adds for IPv4",
                v6 / v4
            )
        } else {
            format!(
                "{:.0} ns more, for 40 bytes of addresses, ports and protocol instead of 16",
                above - of_v4
            )
        };
        let is_new = matches!(case.sort, Sort::New { .. }) && case.row.contains("NodePort");
        let limit = if is_new { FAMILIES_NEW } else { FAMILIES };
        Some(ratio_of(format!("{}: IPv6 over IPv4", case.row), limit, ratio, Some(reason)))
    }

    fn flat(&self, case: &Case<'_>, above: f64, [few, many]: [u32; 2]) -> Option<Target> {
        if case.table != Table::Services(many) || case.row.ends_with("services in turn") {
            return None;
        }
        let before = self.other(Table::Services(few), &case.row, case.is_v4)?;
        let what =
            format!("{}, {}: {} services over {}", case.row, family(case), thousands(many), thousands(few));
        let (resolution, difference) = (self.resolution(case.kind, few), above - before);
        if is_within(before, above, resolution) {
            let what =
                format!("{what}: {:.2}, but a difference that is within the resolution", above / before);
            return Some(nanoseconds(what, resolution, difference, None));
        }
        // New flows were measured with as few services in the other table.
        let again = [Table::Again, Table::One].map(|table| self.other(table, &case.row, case.is_v4));
        let again = again.into_iter().flatten().next().map_or_else(String::new, |again| {
            format!("; the same with {} services, loaded once more, takes {again:.1} ns", thousands(few))
        });
        let mistaken = case.mistaken.map_or_else(String::new, |mistaken| {
            format!(
                ". Of {} non-service packets {} are looked up for nothing, because the filter takes them for a service's",
                thousands(FLOWS),
                thousands(mistaken as u32),
            )
        });
        let reason =
            format!("{difference:.1} ns more, with a resolution of {resolution:.1} ns{again}{mistaken}");
        Some(ratio_of(what, FLAT, above / before, Some(reason)))
    }

    /// By how many nanoseconds the same program differs that was loaded and measured twice, at most: of those that go
    /// through many destinations without finding anything. Never more than [`COARSEST`].
    pub(crate) fn resolution(&self, kind: Kind, few: u32) -> f64 {
        let is_small = |case: &Case<'_>| case.kind == kind && case.sort == Sort::NotOurs;
        let again = self.iter().filter(|(case, _)| case.table == Table::Again && is_small(case));
        let differences = again.filter_map(|(case, above)| {
            let first = self.other(Table::Services(few), &case.row, case.is_v4)?;
            Some((above - first).abs())
        });
        differences.fold(0.0, f64::max).min(COARSEST)
    }
}

/// Whether the difference exceeds the allowed ratio, but is below the resolution.
fn is_within(few: f64, many: f64, resolution: f64) -> bool {
    many > FLAT * few && many - few <= resolution
}

/// The family's name.
pub(crate) fn family(case: &Case<'_>) -> &'static str {
    if case.is_v4 { "IPv4" } else { "IPv6" }
}

fn nanoseconds(what: String, limit: f64, measured: f64, reason: Option<String>) -> Target {
    Target { what, unit: Unit::Nanoseconds, better: Better::Less, limit, measured, reason }
}

fn ratio_of(what: String, limit: f64, measured: f64, reason: Option<String>) -> Target {
    Target { what, unit: Unit::Ratio, better: Better::Less, limit, measured, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_below_the_resolution() {
        let cases = [
            // Flat by the ratio: no need to ask for the resolution.
            (10.0, 11.0, 2.0, false),
            (10.0, 9.0, 2.0, false),
            (6.0, 7.5, 2.0, true),
            (6.0, 8.0, 2.0, true),
            (6.0, 8.1, 2.0, false),
            (500.0, 600.0, 2.0, false),
        ];
        for (few, many, resolution, within) in cases {
            assert_eq!(is_within(few, many, resolution), within, "{few} and {many}");
        }
    }
}
