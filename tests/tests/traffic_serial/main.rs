//! Traffic that takes all processors: these tests run one after the other. Needs root.

mod connections_to_outside;
mod flood;
mod shared_ports;
mod source_ports;
