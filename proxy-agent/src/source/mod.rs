//! Where Services, EndpointSlices and the rest come from: an API server or a folder of manifests.
//!
//! Both sources convert what they read at once ([`convert`]) and send [`Change`](crate::model::objects::Change)s.
//! They send facts without interpreting them.

pub mod convert;
pub mod kube;
pub mod manifests;
mod state;
pub mod trimmed;

pub use state::{Release, SourceState, Trouble, WatchState};
