//! Reports in which network namespaces interfaces, addresses or nftables rules changed: one socket gets the notifications of all
//! namespaces that this one has a name for (`NETLINK_LISTEN_ALL_NSID`), so that no socket has to stay open in a pod's.
#![expect(unsafe_code, reason = "tokio wants a promise about the descriptor")]

use std::{
    collections::BTreeSet,
    io::{self, IoSliceMut},
    os::fd::AsRawFd as _,
};

use netlink_sys::{
    Socket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tokio::io::{Interest, unix::AsyncFd};

// From `linux/rtnetlink.h` and `linux/netfilter/nfnetlink.h`.
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const NFNLGRP_NFTABLES: u32 = 7;

/// Where something changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Names of namespaces, as this one has them.
    pub namespaces: BTreeSet<i32>,
    /// Messages were lost: anywhere.
    pub anywhere: bool,
}

impl Changed {
    /// Nothing did.
    pub fn is_empty(&self) -> bool {
        self.namespaces.is_empty() && !self.anywhere
    }

    /// Whether this namespace is among them.
    pub fn has(&self, namespace: Option<i32>) -> bool {
        self.anywhere || namespace.is_some_and(|name| self.namespaces.contains(&name))
    }
}

/// Listens.
#[derive(Debug)]
pub struct Events {
    routing: AsyncFd<Socket>,
    netfilter: AsyncFd<Socket>,
}

impl Events {
    /// Begins to listen. Needs a tokio runtime.
    ///
    /// # Errors
    /// Without `CAP_NET_BROADCAST`, or without nftables in the kernel.
    pub fn listen() -> io::Result<Self> {
        let routing = open(NETLINK_ROUTE, &[RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR])?;
        Ok(Self { routing, netfilter: open(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES])? })
    }

    /// Waits until something changed in another namespace and adds it. Nothing is lost when it is broken off.
    ///
    /// # Errors
    /// When a socket does not work any more.
    pub async fn next(&self, changed: &mut Changed) -> io::Result<()> {
        loop {
            let received = tokio::select! {
                received = receive(&self.routing) => received,
                received = receive(&self.netfilter) => received,
            };
            match received {
                // The event is of this namespace itself.
                Ok(None) => continue,
                Ok(Some(namespace)) => drop(changed.namespaces.insert(namespace)),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changed.anywhere = true,
                Err(error) => return Err(error),
            }
            return Ok(());
        }
    }
}

fn open(protocol: isize, groups: &[u32]) -> io::Result<AsyncFd<Socket>> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.set_listen_all_namespaces(true)?;
    for group in groups {
        socket.add_membership(*group)?;
    }
    socket.set_non_blocking(true)?;
    // SAFETY: the socket has its descriptor to itself, and closes it when it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}

/// Takes a message; which namespace it is from, if it is another. The message itself is not wanted.
async fn receive(socket: &AsyncFd<Socket>) -> io::Result<Option<i32>> {
    const NETLINK_LISTEN_ALL_NSID: i32 = 8;
    socket
        .async_io(Interest::READABLE, |socket| {
            let mut buffer = [0u8; 1];
            let mut room = nix::cmsg_space!([u8; 64]);
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut room), MsgFlags::empty())?;
            let namespace = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::Unknown(it)
                    if (it.cmsg_header.cmsg_level, it.cmsg_header.cmsg_type)
                        == (libc::SOL_NETLINK, NETLINK_LISTEN_ALL_NSID) =>
                {
                    it.data_bytes.get(..4)?.try_into().ok().map(i32::from_ne_bytes)
                }
                _ => None,
            });
            Ok(namespace)
        })
        .await
}
