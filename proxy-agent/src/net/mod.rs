//! The node's network, and which hooks it needs.

pub(crate) mod absent_family;
pub mod conntrack;
pub mod conntrack_sysctls;
pub mod filters;
pub mod forwarding;
pub mod interfaces;
pub(crate) mod nat_keeper;
pub(crate) mod neighbour;
pub mod netns;
pub mod pods;
pub mod ports;
pub(crate) mod probe;
pub mod processes;
pub mod qdisc;
pub mod reserved_ports;
pub mod routes;
pub mod rules;
pub mod sock_diag;
pub mod topology;
pub mod untracked;
pub mod xfrm;
pub(crate) mod xtables;
