//! What the agent shows to observers: health checks, status and metrics over HTTP, Kubernetes Events.

mod bind_address;
pub mod drops;
pub mod endpoints;
pub mod events;
pub mod health;
pub mod http;
pub mod listen;
pub mod metrics;
pub mod service_health;
pub mod status;
#[cfg(test)]
mod test_client;

pub use bind_address::BindAddress;
pub use events::Events;
pub use health::{Health, Role};
pub use listen::Listeners;
pub use metrics::Metrics;
pub use service_health::ServiceHealth;
