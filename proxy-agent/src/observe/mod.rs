//! What the agent tells those who watch it: health checks and metrics over HTTP.

pub mod endpoints;
pub mod health;
pub mod http;
pub mod metrics;

pub use health::Health;
pub use metrics::Metrics;
