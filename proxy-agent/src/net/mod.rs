//! What the node's network looks like, and what that means for the hooks.

pub mod conntrack;
pub mod filters;
pub mod forwarding;
pub mod interfaces;
pub mod netns;
pub mod pods;
pub mod processes;
pub mod reserved_ports;
pub mod rules;
pub mod sock_diag;
pub mod topology;
pub mod untracked;
pub mod xfrm;
