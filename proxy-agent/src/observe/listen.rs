//! Listeners that another agent can share for a moment, so that health checks are answered without a gap when it takes over.
//!
//! A port is this agent's alone until it hands over: only then its sockets get `SO_REUSEPORT`, without which no other process can bind there.

use std::{
    io,
    net::SocketAddr,
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::sys::socket::{
    setsockopt,
    sockopt::{Ipv6V6Only, ReusePort},
};
use proxy_sys::socket::choose_listener;
use tokio::net::{TcpListener, TcpSocket};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// The listeners of this agent. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Listeners(Arc<State>);

#[derive(Debug, Default)]
struct State {
    joins: AtomicBool,
    shares: AtomicBool,
    open: Mutex<Vec<Weak<TcpListener>>>,
}

/// A listener.
#[derive(Debug)]
pub struct Listener {
    socket: Arc<TcpListener>,
    /// Whose it is.
    state: Arc<State>,
}

impl From<TcpListener> for Listener {
    fn from(socket: TcpListener) -> Self {
        Self { socket: Arc::new(socket), state: Arc::default() }
    }
}

impl Listener {
    /// The socket.
    pub fn socket(&self) -> &TcpListener {
        &self.socket
    }

    /// If another agent shares the port: has the kernel give it all new connections. True if so. Those whose handshake has begun still
    /// come here; a listener that is closed resets them.
    pub(super) fn leave_to_successor(&self) -> bool {
        /// The successor's socket is the second one of those that share a port, because it came last.
        const SUCCESSOR: u32 = 1;
        self.state.shares.load(Ordering::Relaxed) && choose_listener(self.socket.as_fd(), SUCCESSOR).is_ok()
    }
}

impl Listeners {
    /// From now on, ports are shared with the agent that hands over.
    pub fn join(&self) {
        self.0.joins.store(true, Ordering::Relaxed);
    }

    /// Lets the agent that takes over listen where this one does.
    ///
    /// # Errors
    /// The first one of the kernel; the other listeners are shared all the same.
    pub fn share(&self) -> io::Result<()> {
        self.0.shares.store(true, Ordering::Relaxed);
        let open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        let results: Vec<_> =
            open.iter().filter_map(Weak::upgrade).map(|listener| share(&listener)).collect();
        Ok(results.into_iter().collect::<nix::Result<()>>()?)
    }

    /// Listens.
    ///
    /// # Errors
    /// When the address is not available.
    pub fn bind(&self, address: SocketAddr) -> io::Result<Listener> {
        self.bind_with(address, false)
    }

    /// Listens on one family only: `[::]` leaves IPv4 to `0.0.0.0`.
    ///
    /// # Errors
    /// When the address is not available.
    pub fn bind_one_family(&self, address: SocketAddr) -> io::Result<Listener> {
        self.bind_with(address, true)
    }

    fn bind_with(&self, address: SocketAddr, one_family: bool) -> io::Result<Listener> {
        let listener = match listen(address, one_family, false) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && self.0.joins.load(Ordering::Relaxed) =>
            {
                listen(address, one_family, true)
            }
            result => result,
        };
        let listener = Arc::new(listener?);
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|listener| listener.strong_count() > 0);
        open.push(Arc::downgrade(&listener));
        Ok(Listener { socket: listener, state: self.0.clone() })
    }
}

fn share(listener: &TcpListener) -> nix::Result<()> {
    setsockopt(listener, ReusePort, &true)
}

fn listen(address: SocketAddr, one_family: bool, shared: bool) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    if one_family && address.is_ipv6() {
        setsockopt(&socket, Ipv6V6Only, &true)?;
    }
    // Connections of a server that was here before do not keep the port.
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(shared)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_is_shared_at_a_hand_over_only() {
        let old = Listeners::default();
        let first = old.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = first.socket().local_addr().unwrap();
        let new = Listeners::default();
        new.join();
        assert_eq!(new.bind(address).unwrap_err().kind(), io::ErrorKind::AddrInUse, "not handed over");
        old.share().unwrap();
        let refused = Listeners::default().bind(address).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse, "does not take over");
        assert!(!first.leave_to_successor(), "there is none");
        let second = new.bind(address).unwrap();
        assert!(first.leave_to_successor());
        for _ in 0..32 {
            let client = tokio::net::TcpStream::connect(address).await.unwrap();
            let (accepted, _) = second.socket().accept().await.unwrap();
            assert_eq!(accepted.peer_addr().unwrap(), client.local_addr().unwrap());
        }
        drop(first);
        let client = tokio::net::TcpStream::connect(address).await.unwrap();
        let (accepted, _) = second.socket().accept().await.unwrap();
        assert_eq!(accepted.peer_addr().unwrap(), client.local_addr().unwrap());
        assert!(!second.leave_to_successor(), "not handed over");
        // The next one.
        new.share().unwrap();
        let newest = Listeners::default();
        newest.join();
        let third = newest.bind(address).unwrap();
        assert!(second.leave_to_successor());
        for _ in 0..32 {
            let client = tokio::net::TcpStream::connect(address).await.unwrap();
            let (accepted, _) = third.socket().accept().await.unwrap();
            assert_eq!(accepted.peer_addr().unwrap(), client.local_addr().unwrap());
        }
    }
}
