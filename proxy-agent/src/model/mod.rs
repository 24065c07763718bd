//! Kubernetes semantics: objects in, plans out. Pure: no I/O, no kernel, no clock.

pub mod budget;
pub mod changes;
pub(crate) mod counts;
mod endpoints;
pub mod explain;
mod intern;
pub mod local;
pub mod objects;
pub mod plan;
pub mod planner;
mod settling;
pub mod store;
mod topology;
