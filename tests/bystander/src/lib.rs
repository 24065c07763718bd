//! Nodes as CNIs leave them, and traffic of no Service: with the agent it must fare as without.
//!
//! A [`Setup`] lists what translates or filters packets on the nodes besides the agent. [`Battery`] is the traffic: the same list of
//! conversations, run before the agent starts and again while it runs, each with how many of its tries succeeded. The two results
//! must be equal. [`mod@steady`] has conversations that begin before the agent starts and continue while it stops and starts.
//!
//! Port numbers are chosen to look like a Service's wherever that can be: the nodePorts of the cluster's Services as source ports,
//! numbers from `--snat-ports`, and numbers of the nodePort range that no Service has.

mod balancer;
mod battery;
mod expect;
mod raw;
mod setup;
mod steady;

pub use balancer::{BALANCER, BALANCER_PORT, packets_to_balancer, route_balancer};
pub use battery::{Battery, Outcome};
pub use expect::{all_ok, equal};
pub use proxy_harness::cluster::segment::{ACK, FIN, RST, SYN, Segment, Tap};
pub use raw::{multicast, raw_packets};
pub use setup::{
    Fixture, HOST_PORTS, OTHER_CLUSTER_IP, OTHER_NODE_PORT, OUTSIDE_PORTS, OWN_PORTS, Setup, kube_proxy,
    kube_proxy_at,
};
pub use steady::{Steady, steady};
