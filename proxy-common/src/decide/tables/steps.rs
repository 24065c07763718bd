//! The steps of a decision, for `debug trace` and tests.

use super::Route;
use crate::decide::verdict::DropReason;
use crate::{
    Family,
    layout::{
        affinity::Affinity,
        backend::Backend,
        flow::{Flow, Tuple},
        frontend::Target,
        set::{BackendSet, SetPolicy},
    },
};

/// A step of the core, for display. Costs nothing where [`Tables::step`](super::Tables::step) is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<F: Family> {
    /// By the filter, the destination is certainly no frontend.
    NoFrontendSurely,
    /// A known flow.
    KnownFlow(Flow<F>),
    /// A flow whose backend is gone or whose connection has ended.
    StaleFlow(Flow<F>),
    /// A frontend with exactly this address.
    Frontend(Target),
    /// A nodePort at one of the node's addresses.
    NodePort(Target),
    /// No frontend.
    NoFrontend,
    /// A cluster IP, but no port of its Service.
    UndefinedPort(Target),
    /// A cluster IP, and the client is outside.
    ClusterIpFromOutside(Target),
    /// A packet to a frontend that belongs to no flow and opens none: the kernel handles it.
    NoRequest,
    /// A datagram to a frontend that is a reply to a packet that this node sent from there.
    ReplyToNode,
    /// The set for this frontend and client.
    BackendSet(SetPolicy, BackendSet),
    /// The backend that was chosen.
    Backend(Backend<F>),
    /// The client's previous backend.
    Kept(Affinity<F>),
    /// The route to the backend.
    Route(Route<F>),
    /// Client and backend are the same pod.
    Hairpin,
    /// Dropped.
    Drop(DropReason),
    /// Replies are recognised by this tuple, as the backend sends it.
    Answer(Tuple<F>),
}
