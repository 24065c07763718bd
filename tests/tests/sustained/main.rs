//! Traffic that takes all processors: these tests run one after the other. Needs root.

mod flood;
mod shared_ports;
mod source_ports;
