//! The agent as a program: ports, health, metrics, restarts.

use super::{Rule, Topic};

pub(super) const RULES: &[Rule] = &[];
