//! Clients under load and the attack that they must survive: connections one after the other, connections that stay, and
//! forged packets. Tests and benchmarks share it.

mod attempt;
mod forge;
mod held;
mod tally;

pub use attempt::{Attempts, Transport};
pub use forge::{Flood, Forger, route_forged_sources};
pub use held::Held;
pub use tally::{Failures, Tally};
