//! Traffic that takes all processors: these tests run one after the other. Needs root.
#![forbid(unsafe_code)]

mod connections_to_outside;
mod flood;
mod growing_flows;
mod shared_ports;
mod source_ports;
