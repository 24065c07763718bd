//! `sockets_v4`, `sockets_v6`: entries in a map that all sockets share, with a bound for each network namespace.

use super::SocketPeer;
use crate::{Family, V4, V6};

/// The direction in which a socket's entry translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum SocketDirection {
    /// VIP to backend: the socket keeps its backend from datagram to datagram.
    Send = 0,
    /// Backend to VIP: the source that a reply shows.
    Receive = 1,
}

/// An address that a socket sends to or receives from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SocketKey<F: Family> {
    /// The kernel's cookie of the socket.
    pub cookie: u64,
    /// The destination or the source of the datagram.
    pub addr: F::Addr,
    /// Network byte order.
    pub port: u16,
    /// A [`SocketDirection`].
    pub direction: u16,
    pad: F::Pad,
}

impl<F: Family> SocketKey<F> {
    /// A key; the port in network byte order.
    #[inline(always)]
    pub fn new(cookie: u64, addr: F::Addr, port: u16, direction: SocketDirection) -> Self {
        Self { cookie, addr, port, direction: direction as u16, pad: F::Pad::default() }
    }

    /// Whether socket, address and direction are the same. Compares words.
    #[inline(always)]
    pub fn same(&self, other: &Self) -> bool {
        (self.cookie == other.cookie)
            & F::same(&self.addr, &other.addr)
            & (self.port == other.port)
            & (self.direction == other.direction)
    }

    /// The bucket of its network namespace.
    #[inline(always)]
    pub fn bucket(&self) -> u32 {
        let ends = (self.port as u32) << 1 | self.direction as u32;
        let cookie = (self.cookie as u32).wrapping_add((self.cookie >> 32) as u32);
        // Products carry upwards only, and addresses of a network differ in their high bits, so shifts come
        // between them.
        let mut mixed = cookie.wrapping_mul(0x9e37_79b1) ^ F::fold(&self.addr);
        mixed = (mixed ^ mixed >> 16).wrapping_add(ends).wrapping_mul(0x85eb_ca6b);
        mixed = (mixed ^ mixed >> 13).wrapping_mul(0xc2b2_ae35);
        (mixed >> 16) & (SharedKey::BUCKETS - 1)
    }
}

/// A slot in the map. Each network namespace has a fixed number of slots, and no two namespaces share one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SharedKey {
    /// Cookie of the network namespace.
    pub netns: u64,
    /// A bucket of the namespace.
    pub bucket: u32,
    /// A slot in the bucket.
    pub way: u32,
}

impl SharedKey {
    /// Buckets of a network namespace.
    pub const BUCKETS: u32 = 1024;
    /// Slots in a bucket. With 1,000 entries in a namespace 4 in 1,000 find their bucket full.
    pub const WAYS: u32 = 4;
    /// Maximum number of entries of a network namespace.
    pub const PER_NETNS: u32 = Self::BUCKETS * Self::WAYS;

    /// The first slot of a bucket.
    #[inline(always)]
    pub const fn new(netns: u64, bucket: u32) -> Self {
        Self { netns, bucket, way: 0 }
    }

    /// Another slot of the bucket.
    #[inline(always)]
    pub fn set_way(&mut self, way: u32) {
        self.way = way;
    }
}

/// The entry in a slot: socket and address, and the translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SharedPeer<F: Family> {
    /// Socket and address.
    pub key: SocketKey<F>,
    /// The translation.
    pub peer: SocketPeer<F>,
    pad: F::Pad,
}

impl<F: Family> SharedPeer<F> {
    /// An entry.
    #[inline(always)]
    pub fn new(key: SocketKey<F>, peer: SocketPeer<F>) -> Self {
        Self { key, peer, pad: F::Pad::default() }
    }
}

super::super::plain!(SocketKey<F>, SharedKey, SharedPeer<F>);

const _: () = {
    assert!(size_of::<SocketKey<V4>>() == 16 && size_of::<SocketKey<V6>>() == 32);
    assert!(size_of::<SharedKey>() == 16);
    assert!(size_of::<SharedPeer<V4>>() == 32 && size_of::<SharedPeer<V6>>() == 64);
};
