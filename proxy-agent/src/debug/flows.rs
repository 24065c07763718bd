//! `debug flows`: translated flows of packets.

use std::{collections::HashMap, net::SocketAddr};

use anyhow::Result;
use proxy_common::{
    V4, V6,
    layout::{
        config::Timeouts,
        flow::{Flow, FlowDraft, FlowKey, FlowState, flags},
    },
};
use serde::Serialize;

use super::names::{Names, protocol_text};
use crate::datapath::{
    address::{UserFamily, protocol_of},
    flows::state_name,
    maps::{self, MapFamily},
    pins::Pins,
};
use crate::{
    clock::Clock,
    output::{Row, or_dash},
};

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FlowRow {
    pub(super) service: Option<String>,
    protocol: &'static str,
    client: SocketAddr,
    vip: SocketAddr,
    pub(super) backend: SocketAddr,
    /// The source that the backend sees.
    source: SocketAddr,
    state: &'static str,
    flags: Vec<&'static str>,
    /// Since the last packet, roughly: entries are refreshed every 256 jiffies (0.25 to 2.6 s).
    age_seconds: Option<u64>,
    /// Until it is removed, if no more packets come; the agent may take half a minute longer.
    expires_seconds: Option<u64>,
}

impl Row for FlowRow {
    const HEADER: &'static [&'static str] =
        &["SERVICE", "PROTOCOL", "CLIENT", "VIP", "BACKEND", "SOURCE", "STATE", "FLAGS", "AGE", "EXPIRES"];

    fn cells(&self) -> Vec<String> {
        vec![
            or_dash(self.service.as_ref()),
            self.protocol.to_owned(),
            self.client.to_string(),
            self.vip.to_string(),
            self.backend.to_string(),
            self.source.to_string(),
            self.state.to_owned(),
            or_dash((!self.flags.is_empty()).then(|| self.flags.join(","))),
            or_dash(self.age_seconds.map(|seconds| format!("{seconds}s"))),
            or_dash(self.expires_seconds.map(|seconds| format!("{seconds}s"))),
        ]
    }
}

pub(super) fn read(pins: &Pins) -> Result<Vec<FlowRow>> {
    let names = Names::read(pins)?;
    let life = Life { clock: Clock::read(), timeouts: maps::settings(pins)?.timeouts };
    let mut rows = family::<V4>(pins, &names, life)?;
    rows.extend(family::<V6>(pins, &names, life)?);
    rows.sort_by(|a, b| (&a.service, a.vip, a.client).cmp(&(&b.service, b.vip, b.client)));
    Ok(rows)
}

/// The clock and timeouts for a flow's age and lifetime.
#[derive(Clone, Copy)]
struct Life {
    clock: Option<Clock>,
    timeouts: Timeouts,
}

/// Confirmed and unconfirmed flows. One that is confirmed in between shows as confirmed; a client may have a new flow beside an expired
/// one.
fn family<F: MapFamily>(pins: &Pins, names: &Names, life: Life) -> Result<Vec<FlowRow>> {
    let pending = F::pending(pins)?.entries()?;
    let confirmed: HashMap<_, _> = F::flows(pins)?.entries()?.into_iter().collect();
    let is_moved = |key: &FlowKey<F>, flow: &Flow<F>| {
        confirmed.get(key).is_some_and(|confirmed| confirmed.tuple.same(&flow.tuple))
    };
    let pending = pending.into_iter().filter(|(key, flow)| !is_moved(key, flow)).collect();
    let mut rows = rows(pending, names, life);
    rows.extend(self::rows(confirmed, names, life));
    Ok(rows)
}

/// One row per flow, which has two entries: the one for requests is shown, or made again from the other.
fn rows<F: UserFamily>(entries: HashMap<FlowKey<F>, Flow<F>>, names: &Names, life: Life) -> Vec<FlowRow> {
    let (answers, mut requests): (HashMap<_, _>, HashMap<_, _>) =
        entries.into_iter().partition(|(_, flow)| flow.flags & flags::REVERSE != 0);
    for (key, flow) in answers {
        let mut draft = FlowDraft::default();
        draft.begin(&key, &flow);
        draft.make_opposite();
        let request = requests.entry(draft.opposite_key).or_insert(draft.opposite);
        // Noted there alone.
        if flow.state == FlowState::SynReceived as u8 && request.tuple.same(&draft.opposite.tuple) {
            request.state = flow.state;
        }
    }
    requests.iter().map(|(key, flow)| row(key, flow, names, life)).collect()
}

fn row<F: UserFamily>(key: &FlowKey<F>, flow: &Flow<F>, names: &Names, life: Life) -> FlowRow {
    let age_seconds = life.clock.map(|clock| clock.seconds_since(flow.last_seen));
    let timeout = u64::from(life.timeouts.of(key.protocol, flow.state, flow.flags));
    FlowRow {
        service: names.get(flow.service),
        protocol: protocol_text(protocol_of(key.protocol)),
        client: F::to_socket(&key.tuple.src, key.tuple.sport),
        vip: F::to_socket(&key.tuple.dst, key.tuple.dport),
        backend: F::to_socket(&flow.tuple.dst, flow.tuple.dport),
        source: F::to_socket(&flow.tuple.src, flow.tuple.sport),
        state: state_name(key.protocol, flow.state),
        flags: flag_texts(flow.flags),
        age_seconds,
        expires_seconds: age_seconds.map(|age| timeout.saturating_sub(age)),
    }
}

fn flag_texts(bits: u8) -> Vec<&'static str> {
    let known = [
        (flags::SNAT, "snat"),
        (flags::HAIRPIN, "hairpin"),
        (flags::SWITCHED, "switched"),
        (flags::BY_SOURCE, "by-source"),
    ];
    known.into_iter().filter(|(bit, _)| bits & bit != 0).map(|(_, text)| text).collect()
}

#[cfg(test)]
mod tests {
    use proxy_common::{
        layout::{
            flow::{FlowState, LookupPoint, Tuple},
            id::Id,
            name::ServiceName,
        },
        packet::PROTOCOL_TCP,
    };

    use super::*;

    fn draft(client_port: u16) -> FlowDraft<V4> {
        let ip = |text: &str| V4::from_ip(text.parse().unwrap()).unwrap();
        let tuple = Tuple {
            src: ip("192.0.2.9"),
            dst: ip("192.168.0.1"),
            sport: client_port.to_be(),
            dport: 30016u16.to_be(),
        };
        let key = FlowKey::new(tuple, PROTOCOL_TCP, LookupPoint::Forward);
        let to = Tuple {
            src: ip("192.168.0.1"),
            dst: ip("10.244.1.5"),
            sport: 20001u16.to_be(),
            dport: 80u16.to_be(),
        };
        let flow = Flow {
            tuple: to,
            service: Id::new(1, 1),
            state: FlowState::Established as u8,
            flags: flags::SNAT,
            ..Flow::default()
        };
        let mut draft = FlowDraft::default();
        draft.begin(&key, &flow);
        draft.make_opposite();
        draft
    }

    #[test]
    fn a_handshake_is_shown_as_far_as_it_is() {
        let mut draft = draft(1000);
        draft.flow.state = FlowState::New as u8;
        draft.opposite.state = FlowState::SynReceived as u8;
        let entries = HashMap::from([(draft.key, draft.flow), (draft.opposite_key, draft.opposite)]);
        let names: Names = std::iter::empty::<(Id, ServiceName)>().collect();
        let rows = rows(entries, &names, Life { clock: None, timeouts: Timeouts::DEFAULT });
        assert_eq!(rows.iter().map(|row| row.state).collect::<Vec<_>>(), ["syn-received"]);
    }

    #[test]
    fn a_flow_is_one_row_even_if_half_of_it_is_lost() {
        let names: Names = [(Id::new(1, 1), ServiceName::new("default/web", 6, 4))].into_iter().collect();
        let (whole, half) = (draft(1000), draft(2000));
        let entries = HashMap::from([
            (whole.key, whole.flow),
            (whole.opposite_key, whole.opposite),
            (half.opposite_key, half.opposite),
        ]);
        let mut lines: Vec<String> = rows(entries, &names, Life { clock: None, timeouts: Timeouts::DEFAULT })
            .iter()
            .map(|row| row.cells().join(" "))
            .collect();
        lines.sort();
        let expected = |port| {
            format!(
                "default/web TCP 192.0.2.9:{port} 192.168.0.1:30016 10.244.1.5:80 192.168.0.1:20001 established snat - -"
            )
        };
        assert_eq!(lines, [expected(1000), expected(2000)]);
    }
}
