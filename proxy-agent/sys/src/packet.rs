//! Packet sockets: what is sent by an interface past the stack's protocols.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use crate::descriptor;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// A socket that sends by one interface, and receives nothing. The kernel makes the link-layer header.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
    ifindex: u32,
    /// The interface's own, if it is Ethernet.
    mac: Option<Mac>,
}

impl PacketSocket {
    /// Opens it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(ifindex: u32) -> io::Result<Self> {
        const ARPHRD_ETHER: u16 = 1;
        // SAFETY: no pointers; the call returns a new descriptor.
        let socket = unsafe {
            descriptor(libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0).into())
        }?;
        let mut address = link_address(ifindex, 0, [0; 6]);
        let mut length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: an open socket, and an address of the length that is given, which outlives both calls.
        let result = unsafe {
            // For a bound socket, the kernel reports the interface's own address.
            match libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) {
                0 => libc::getsockname(socket.as_raw_fd(), (&raw mut address).cast(), &raw mut length),
                failed => failed,
            }
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let [a, b, c, d, e, f, ..] = address.sll_addr;
        let mac = (address.sll_hatype == ARPHRD_ETHER).then_some([a, b, c, d, e, f]);
        Ok(Self { socket, ifindex, mac })
    }

    /// The interface's own address; `None` if the interface is not Ethernet.
    pub fn mac(&self) -> Option<Mac> {
        self.mac
    }

    /// Sends a packet of this EtherType.
    ///
    /// # Errors
    /// The kernel's.
    pub fn send(&self, ethertype: u16, to: Mac, payload: &[u8]) -> io::Result<()> {
        let address = link_address(self.ifindex, ethertype, to);
        let length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: an open socket; the payload and the address have the lengths that are given, and outlive the call.
        let sent = unsafe {
            let (start, address) = (payload.as_ptr().cast(), (&raw const address).cast());
            libc::sendto(self.socket.as_raw_fd(), start, payload.len(), 0, address, length)
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn link_address(ifindex: u32, ethertype: u16, to: Mac) -> libc::sockaddr_ll {
    let mut address = [0; 8];
    address[..to.len()].copy_from_slice(&to);
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ethertype.to_be(),
        sll_ifindex: ifindex as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: to.len() as u8,
        sll_addr: address,
    }
}
