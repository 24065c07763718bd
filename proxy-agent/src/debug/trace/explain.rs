//! The core's steps in words.

use proxy_common::{
    decide::{DropReason, Route, RouteKind, Step},
    layout::{
        flow::{Flow, flags},
        frontend::{FRONTEND_CLUSTER_IP, FRONTEND_SOURCE_RANGES, Target},
        id::Id,
        set::SetPolicy,
    },
    packet::PROTOCOL_SCTP,
};

use super::{
    Client, Question,
    explore::{Explorer, Path},
    routing::Routing,
};
use crate::{
    datapath::address::{UserFamily, protocol_of},
    datapath::flows::state_name,
    debug::names::protocol_text,
};

impl Question {
    /// The destination and protocol.
    pub(super) fn destination(&self) -> String {
        format!("{} {}", self.to, protocol_text(protocol_of(self.protocol)))
    }
}

impl<M, R: Routing> Explorer<'_, M, R> {
    /// The packet or connection that is traced.
    pub(super) fn headline(&self, path: Path) -> String {
        let client = match self.client {
            Client::Pod => "a pod of this node",
            Client::Node => "this node itself",
            Client::Outside => "outside",
        };
        let Question { from, .. } = self.question;
        format!("{from} ({client}) to {}: {}", self.question.destination(), path.text())
    }

    /// The text for a step; `None` for internal steps.
    pub(super) fn explain<F: UserFamily>(&self, step: &Step<F>) -> Option<String> {
        let Question { to, .. } = self.question;
        Some(match step {
            Step::NoFrontendSurely => {
                format!("by the filter, {} belongs to no service", self.question.destination())
            }
            Step::NoFrontend => format!("no frontend {}", self.question.destination()),
            Step::Frontend(target) => {
                format!(
                    "{} is {} of {}",
                    self.question.destination(),
                    kind(*target),
                    self.service(target.service())
                )
            }
            Step::NodePort(target) => format!(
                "{} is an address for node ports, and {} is a node port of {}",
                to.ip(),
                to.port(),
                self.service(target.service()),
            ),
            Step::KnownFlow(flow) => self.known_flow(flow),
            Step::StaleFlow(flow) => format!(
                "the known flow to {} has ended, or its backend is gone: a new one is selected",
                F::to_socket(&flow.tuple.dst, flow.tuple.dport)
            ),
            Step::UndefinedPort(target) if self.is_unseen() => format!(
                "{} is a cluster IP of {}, and untranslated packets go no further",
                to.ip(),
                self.whole_service(target.service())
            ),
            Step::UndefinedPort(target) => format!(
                "{} is a cluster IP of {}, but it has no such port",
                to.ip(),
                self.whole_service(target.service())
            ),
            Step::ClusterIpFromOutside(_) => {
                "it is a cluster IP, and the client is outside the cluster: left alone".to_owned()
            }
            Step::NoRequest => {
                "it opens no connection, and belongs to no known flow: left to the kernel".to_owned()
            }
            Step::ReplyToNode => {
                "it is a reply to a packet that this node sent from there: left to the kernel".to_owned()
            }
            Step::BackendSet(set_policy, set) => match set.count() {
                0 if set.lacks_local_endpoints() => {
                    format!(
                        "it has endpoints, but none {} here: the traffic policy is Local",
                        for_whom(*set_policy)
                    )
                }
                0 => format!("it has no endpoints {}", for_whom(*set_policy)),
                1 => format!("it has 1 endpoint {}", for_whom(*set_policy)),
                count if set.has_session_affinity() => format!(
                    "it has {count} endpoints {}: a client keeps the one it had (session affinity), else one is chosen at random",
                    for_whom(*set_policy)
                ),
                count => {
                    format!("it has {count} endpoints {}: one is chosen at random", for_whom(*set_policy))
                }
            },
            Step::Backend(_) => return None,
            Step::Kept(kept) => format!(
                "session affinity: the client keeps the endpoint it had, {}",
                F::to_socket(&kept.addr, kept.port)
            ),
            Step::Route(route) => self.route(route),
            Step::Hairpin => format!(
                "client and backend are the same pod: the source becomes {}, so that the reply comes back here",
                to.ip()
            ),
            Step::Drop(reason) => format!("dropped: {}", drop_text(*reason)),
            Step::Answer(answer) if F::to_ip(&answer.dst) != self.question.from.ip() => {
                let (first, last) = (self.settings.snat_first, self.settings.snat_last);
                format!(
                    "sent with source {}; if something of this node has that port, with another of {first}-{last}",
                    F::to_socket(&answer.dst, answer.dport)
                )
            }
            Step::Answer(answer) => format!(
                "its replies, {} to {}, get their source back",
                F::to_socket(&answer.src, answer.sport),
                F::to_socket(&answer.dst, answer.dport),
            ),
        })
    }

    fn known_flow<F: UserFamily>(&self, flow: &Flow<F>) -> String {
        let (from, to) = (
            F::to_socket(&flow.tuple.src, flow.tuple.sport),
            F::to_socket(&flow.tuple.dst, flow.tuple.dport),
        );
        let whose = if flow.flags & flags::REVERSE != 0 { "a reply in" } else { "part of" };
        let state = state_name(self.question.protocol, flow.state);
        let service = self.service(flow.service);
        format!("it is {whose} a known flow ({state}) of {service}: sent as {from} to {to}")
    }

    fn route<F: UserFamily>(&self, route: &Route<F>) -> String {
        let device = self.routing.interface(route.ifindex);
        let via = F::to_ip(&route.next_hop);
        match route.kind {
            RouteKind::Local => "routed to this node itself".to_owned(),
            RouteKind::Neighbour => format!("routed by {device}, next hop {via}"),
            RouteKind::Unresolved => {
                format!("routed by {device}, next hop {via} (its MAC is not known yet: the kernel will ask)")
            }
            RouteKind::TooBig => format!("routed by {device}, but longer than its {} bytes", route.mtu),
            RouteKind::Stack => format!("routed by {device}, handed to the kernel's IP stack"),
            RouteKind::None => "no route".to_owned(),
        }
    }

    /// Whether no program sees the client's packets. Socket hooks are not called for SCTP.
    pub(super) fn is_unseen(&self) -> bool {
        self.client == Client::Node && self.question.protocol == PROTOCOL_SCTP
    }

    /// The name of a service port's Service.
    pub(super) fn whole_service(&self, id: Id) -> String {
        let name = self.service(id);
        name.split_once(':').map_or(name.clone(), |(service, _)| service.to_owned())
    }

    /// A service port's name.
    pub(super) fn service(&self, id: Id) -> String {
        self.names.get(id).unwrap_or_else(|| "a service that is gone".to_owned())
    }
}

fn kind(target: Target) -> &'static str {
    if target.flags() & FRONTEND_CLUSTER_IP != 0 {
        "the cluster IP"
    } else if target.flags() & FRONTEND_SOURCE_RANGES != 0 {
        "a load balancer's address, with source ranges,"
    } else {
        "an external address"
    }
}

pub(super) fn for_whom(set_policy: SetPolicy) -> &'static str {
    match set_policy {
        SetPolicy::ClusterIp => "for the cluster IP",
        SetPolicy::External => "for clients outside",
        SetPolicy::Cluster => "for clients in the cluster",
        SetPolicy::Serving => "that serve",
    }
}

pub(super) fn drop_text(reason: DropReason) -> &'static str {
    match reason {
        DropReason::SnatExhausted => "no source port is free towards the backend",
        DropReason::NoRoute => "no route",
        DropReason::NoSnatAddress => "the interface has no address to send from",
        DropReason::NoLocalEndpoints => "the traffic policy is Local, and all endpoints are on other nodes",
        DropReason::SourceDenied => "the client is in none of the load balancer's source ranges",
        DropReason::Unallocated => "the address is in the service range, but no service has it",
        DropReason::Loop => {
            "it is a load balancer's address, no Service has the port, and it would leave by an uplink again"
        }
        DropReason::ConnectionUnknown => "no known flow has it, and it would leave by an uplink again",
        DropReason::HopLimit => "the hop limit ran out",
        DropReason::TooBig => "it is too big for the way on",
        DropReason::FlowMapFull => "the flow map is full",
        DropReason::BadSlot => "the set names a backend that does not exist: a defect",
    }
}
