//! Decisions as people and programs read them.

use std::net::SocketAddr;

use k8s_openapi::jiff::Timestamp;
use proxy_common::layout::{counter::Counter, event::Event};
use serde::Serialize;

use super::lookup::{self, Lookup};
use crate::{
    datapath::{
        MonitorVerdict,
        address::protocol_of,
        verdict::{counter, text, verdict},
    },
    debug::names::protocol_text,
    model::objects::Protocol,
};

/// A decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Decision {
    time: Timestamp,
    #[serde(serialize_with = "as_text")]
    pub(super) verdict: MonitorVerdict,
    /// Why, by the name of the counter.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(serialize_with = "protocol_as_text")]
    protocol: Option<Protocol>,
    /// The client of a packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<SocketAddr>,
    /// The process of a socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<Process>,
    frontend: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<SocketAddr>,
    /// The source that the endpoint sees, if that is not the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) service: Option<String>,
}

/// Whose a socket is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Process {
    pid: u32,
    name: String,
}

impl Decision {
    /// `None` if the event is not a decision.
    pub(super) fn new(event: &Event, time: Timestamp, lookup: &Lookup) -> Option<Self> {
        let key = &event.key;
        let service = lookup.service(key.version, &key.frontend, key.frontend_port, key.protocol);
        Self::named(event, time, service)
    }

    fn named(event: &Event, time: Timestamp, service: Option<String>) -> Option<Self> {
        let key = &event.key;
        let is_socket = key.is_socket != 0;
        let socket = |addr, port| lookup::socket(key.version, addr, port);
        let client = (!is_socket).then(|| socket(&event.client, event.client_port));
        let source = socket(&event.source, event.source_port);
        let has_endpoint = key.endpoint_port != 0;
        Some(Self {
            time,
            verdict: verdict(key.decision, is_socket)?,
            reason: counter(key.decision).map(Counter::name),
            protocol: protocol_of(key.protocol),
            client,
            process: (is_socket && event.pid != 0)
                .then(|| Process { pid: event.pid, name: name_of(&event.comm) }),
            frontend: socket(&key.frontend, key.frontend_port),
            endpoint: has_endpoint.then(|| socket(&key.endpoint, key.endpoint_port)),
            source: (has_endpoint && client.is_some_and(|client| client != source)).then_some(source),
            service,
        })
    }

    /// As a line: time (UTC), verdict, protocol, client -> frontend -> endpoint, Service, reason.
    pub(super) fn line(&self) -> String {
        let from = match (&self.client, &self.process) {
            (Some(client), _) => client.to_string(),
            (None, Some(Process { pid, name })) => format!("{name}[{pid}]"),
            // The kernel does not report the owner.
            (None, None) => "socket".to_owned(),
        };
        let mut tuple = format!("{from} -> {}", self.frontend);
        if let Some(endpoint) = self.endpoint {
            tuple.push_str(&format!(" -> {endpoint}"));
        }
        if let Some(source) = self.source {
            tuple.push_str(&format!(" from {source}"));
        }
        let time = self.time.strftime("%H:%M:%S%.3f");
        let service = self.service.as_deref().unwrap_or("-");
        let reason = self.reason.map(|reason| format!("  {reason}")).unwrap_or_default();
        // Padding applies to strings only.
        let (verdict, protocol) = (text(self.verdict), protocol_text(self.protocol));
        format!("{time}  {verdict:<10}  {protocol:<4}  {tuple}  {service}{reason}\n")
    }
}

/// The name of a process: the kernel ends it by a zero.
fn name_of(comm: &[u8]) -> String {
    let end = comm.iter().position(|byte| *byte == 0).unwrap_or(comm.len());
    String::from_utf8_lossy(&comm[..end]).replace(char::is_control, "?")
}

fn as_text<S: serde::Serializer>(verdict: &MonitorVerdict, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text(*verdict))
}

fn protocol_as_text<S: serde::Serializer>(
    protocol: &Option<Protocol>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(protocol_text(*protocol))
}

#[cfg(test)]
mod tests {
    use proxy_common::layout::event::{RateKey, TRANSLATED};

    use super::*;
    use crate::monitor::lookup::words;

    fn event() -> Event {
        let words = |ip: &str| words(ip.parse().unwrap()).1;
        let key = RateKey {
            frontend: words("10.96.0.10"),
            endpoint: words("10.244.1.7"),
            frontend_port: 80u16.to_be(),
            endpoint_port: 8080u16.to_be(),
            decision: TRANSLATED,
            version: 4,
            protocol: 6,
            is_socket: 0,
        };
        Event {
            key,
            client: words("10.244.0.5"),
            source: words("10.244.0.5"),
            client_port: 40_000u16.to_be(),
            source_port: 40_000u16.to_be(),
            ..Event::default()
        }
    }

    fn line(event: &Event, service: Option<&str>) -> String {
        let time = Timestamp::from_millisecond(3_723_004).unwrap();
        Decision::named(event, time, service.map(str::to_owned)).unwrap().line()
    }

    #[test]
    fn a_line_has_the_whole_tuple() {
        let translated = event();
        let from_node = Event { source: words("192.168.0.1".parse().unwrap()).1, ..translated };
        let decision = Counter::NoEndpoints as u8;
        let key = RateKey { endpoint: [0; 4], endpoint_port: 0, decision, ..translated.key };
        let rejected = Event { key, ..translated };
        let mut comm = [0; 16];
        comm[..4].copy_from_slice(b"curl");
        let key = RateKey { is_socket: 1, protocol: 17, ..translated.key };
        let socket = Event { key, pid: 7, comm, ..translated };
        let unknown = Event { pid: 0, ..socket };
        let tuple = "10.244.0.5:40000 -> 10.96.0.10:80";
        for (event, service, expected) in [
            (
                translated,
                Some("default/web:http"),
                format!("translated  TCP   {tuple} -> 10.244.1.7:8080  default/web:http"),
            ),
            (
                from_node,
                Some("default/web"),
                format!("translated  TCP   {tuple} -> 10.244.1.7:8080 from 192.168.0.1:40000  default/web"),
            ),
            (rejected, None, format!("rejected    TCP   {tuple}  -  no_endpoints")),
            (socket, None, "translated  UDP   curl[7] -> 10.96.0.10:80 -> 10.244.1.7:8080  -".to_owned()),
            (unknown, None, "translated  UDP   socket -> 10.96.0.10:80 -> 10.244.1.7:8080  -".to_owned()),
        ] {
            assert_eq!(line(&event, service), format!("01:02:03.004  {expected}\n"));
        }
    }

    #[test]
    fn documents_leave_out_missing_values() {
        let decision = Counter::UndefinedPort as u8;
        let key = RateKey { endpoint_port: 0, decision, ..event().key };
        let event = Event { key, ..event() };
        let decision = Decision::named(&event, Timestamp::UNIX_EPOCH, None).unwrap();
        let expected = serde_json::json!({
            "time": "1970-01-01T00:00:00Z", "verdict": "rejected", "reason": "undefined_port", "protocol": "TCP",
            "client": "10.244.0.5:40000", "frontend": "10.96.0.10:80",
        });
        assert_eq!(serde_json::to_value(&decision).unwrap(), expected);
    }
}
