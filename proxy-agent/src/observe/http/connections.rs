//! The connections of a listener: a bounded number, shared fairly among clients.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
};

use tokio::task::{AbortHandle, JoinSet};

/// Connections at the same time.
const MOST: usize = 64;

/// Runs connections. When there are as many as may be, another one ends the oldest of the client that has the most: probes are
/// answered, however many connections another client holds open.
#[derive(Debug, Default)]
pub(super) struct Connections {
    tasks: JoinSet<()>,
    /// The oldest first.
    open: Vec<(IpAddr, AbortHandle)>,
}

impl Connections {
    /// Runs the conversation with a client.
    pub(super) fn spawn(&mut self, client: IpAddr, conversation: impl Future<Output = ()> + Send + 'static) {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|(_, task)| !task.is_finished());
        if self.open.len() >= MOST {
            self.end_one();
        }
        let task = self.tasks.spawn(conversation);
        self.open.push((source(client), task));
    }

    fn end_one(&mut self) {
        let mut counts = HashMap::new();
        for (source, _) in &self.open {
            *counts.entry(*source).or_insert(0_usize) += 1;
        }
        let most = counts.values().max().copied().unwrap_or_default();
        if let Some(oldest) = self.open.iter().position(|(source, _)| counts[source] == most) {
            self.open.remove(oldest).1.abort();
        }
    }
}

/// Whose connection it is: an IPv6 host may have a whole /64.
fn source(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    fn of(connections: &Connections, client: &str) -> usize {
        let client = source(client.parse().unwrap());
        connections.open.iter().filter(|(source, _)| *source == client).count()
    }

    #[tokio::test]
    async fn the_client_with_most_connections_loses_its_oldest() {
        let mut connections = Connections::default();
        connections.spawn("127.0.0.1".parse().unwrap(), pending());
        for host in 0..500 {
            connections.spawn(format!("2001:db8::{host:x}").parse().unwrap(), pending());
        }
        connections.spawn("192.0.2.1".parse().unwrap(), pending());
        assert_eq!(connections.open.len(), MOST);
        let counts = ["127.0.0.1", "192.0.2.1", "2001:db8::"].map(|client| of(&connections, client));
        assert_eq!(counts, [1, 1, MOST - 2]);
    }

    #[tokio::test]
    async fn those_that_ended_do_not_count() {
        let mut connections = Connections::default();
        let client: IpAddr = "192.0.2.1".parse().unwrap();
        for _ in 0..MOST {
            connections.spawn(client, async {});
        }
        while connections.tasks.join_next().await.is_some() {}
        connections.spawn(client, pending());
        assert_eq!(connections.open.len(), 1);
    }
}
