//! The time that socket hooks add, in the form of all benchmarks.

use std::time::Duration;

use proxy_figures::{Better, Figure, Part, Summary, Target, Unit};

use crate::sockets::{Calls, Pair, Pairs, Row};

impl Calls {
    fn title(self) -> &'static str {
        match self {
            Self::UdpSocket => "UDP: socket, connect, close",
            Self::TcpSocket => "TCP: socket, connect, accept, close",
            Self::UdpConnect => "UDP: connect of one socket",
            Self::Datagrams => "UDP: request and reply, sockets not connected",
        }
    }

    /// The most that hooks may add, and what the calls take without them, on the machine where that was set: in nanoseconds.
    fn limit(self) -> Option<(f64, f64)> {
        match self {
            Self::UdpSocket => Some((700.0, 8_500.0)),
            Self::TcpSocket => Some((1_000.0, 36_000.0)),
            Self::UdpConnect | Self::Datagrams => None,
        }
    }
}

/// Adds method, tables and targets.
pub(crate) fn add(part: &mut Part, pairs: &Pairs, rounds: usize, slice: Duration) {
    part.method += &method(rounds, slice);
    for (row, pairs) in pairs {
        let figure = |column: &str, value| Figure {
            table: "Socket hooks: CPU time of system calls".to_owned(),
            row: title(*row),
            column: column.to_owned(),
            unit: Unit::Nanoseconds,
            better: Better::Less,
            value,
        };
        part.figures.push(figure("without hooks", without(pairs)));
        part.figures.push(figure("added by hooks", added(pairs)));
        part.targets.extend(target(*row, pairs));
    }
}

fn without(pairs: &[Pair]) -> Summary {
    Summary::median(pairs.iter().map(|pair| pair.without))
}

fn added(pairs: &[Pair]) -> Summary {
    Summary::median(pairs.iter().map(|pair| pair.with - pair.without))
}

/// Limits are scaled by what the calls take here.
fn target(row: Row, pairs: &[Pair]) -> Option<Target> {
    let (limit, reference) = row.calls.limit().filter(|_| row.is_service)?;
    Some(Target {
        what: format!("added by socket hooks, {}", title(row)),
        unit: Unit::Nanoseconds,
        better: Better::Less,
        limit: limit * without(pairs).value / reference,
        measured: added(pairs).value,
        reason: None,
    })
}

fn title(row: Row) -> String {
    format!("{}, {}", row.calls.title(), if row.is_service { "to a Service" } else { "elsewhere" })
}

fn method(rounds: usize, slice: Duration) -> String {
    let [(udp, udp_takes), (tcp, tcp_takes)] =
        [Calls::UdpSocket, Calls::TcpSocket].map(|calls| calls.limit().unwrap_or_default());
    format!(
        "\n\nSocket hooks: two processes in the network namespace of a pod, one in the pod's cgroup with the hooks and one in a \
         cgroup without, make the same system calls in turn for {} ms, another one first in each of {rounds} rounds. The time is \
         the thread's CPU time, in which loopback delivers and closes, too; *added* is the median of the differences of each \
         round. The Service's address, its endpoint's and the other one are all of the namespace's loopback device. Limits are \
         those for a machine where the calls take {udp_takes:.0} ns (UDP, {udp:.0} ns may be added) and {tcp_takes:.0} ns \
         (TCP, {tcp:.0} ns), scaled by what they take here.",
        slice.as_millis()
    )
}
