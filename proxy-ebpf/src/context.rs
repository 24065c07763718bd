//! Contexts of the packet programs, and access to the bytes of packets.
//!
//! The verifier makes these functions safe: it tracks the origin of a pointer, and refuses a program that reads
//! or writes outside of the context or of the packet's bounds.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    helpers::generated::{bpf_redirect, bpf_skb_load_bytes, bpf_skb_store_bytes},
};
use proxy_common::packet::{Bytes, Packet, Parse, Unparsed, read};

use crate::rewrite::write;

/// A packet at tc.
///
/// Invariant: the pointer is the context that the kernel gave the program.
#[derive(Clone, Copy)]
pub(crate) struct Skb(pub(crate) *mut __sk_buff);

/// A frame at XDP.
///
/// Invariant: the pointer is the context that the kernel gave the program.
#[derive(Clone, Copy)]
pub(crate) struct Frame(pub(crate) *mut xdp_md);

/// Getters of a context's fields.
macro_rules! fields {
    ($($(#[doc = $doc:literal])+ $field:ident;)*) => { $(
        $(#[doc = $doc])+
        #[inline(always)]
        pub(crate) fn $field(self) -> u32 {
            // SAFETY: the context.
            unsafe { (*self.0).$field }
        }
    )* };
}

impl Skb {
    fields! {
        /// The interface at whose hook the program runs.
        ifindex;
        /// The interface that the packet came in by; 0 if it is from this node.
        ingress_ifindex;
        /// Bytes of the frame.
        len;
        /// `PACKET_HOST`, `PACKET_OTHERHOST` and so on: the receiver of the frame.
        pkt_type;
        /// EtherType, network byte order.
        protocol;
        /// Payload of each segment of a GSO packet; 0 for other packets.
        gso_size;
        /// Whether the skb has a VLAN tag beside the frame.
        vlan_present;
        /// The VLAN tag.
        vlan_tci;
        /// Where the linear part starts.
        data;
        /// Where it ends.
        data_end;
    }

    /// The linear part.
    #[inline(always)]
    pub(crate) fn bounds(self) -> Bounds {
        Bounds { data: self.data() as usize as *mut u8, end: self.data_end() as usize as *mut u8 }
    }

    /// Writes a value, with these flags of `bpf_skb_store_bytes`.
    #[inline(always)]
    pub(crate) fn store<T: Copy>(self, offset: usize, value: &T, flags: u64) -> bool {
        let (from, size) = ((&raw const *value).cast(), size_of::<T>() as u32);
        // SAFETY: the context, and so many bytes; the helper checks the packet.
        unsafe { bpf_skb_store_bytes(self.0, offset as u32, from, size, flags) == 0 }
    }
}

impl Bytes for Skb {
    #[inline(always)]
    fn load<T: Copy>(&self, offset: usize) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        let size = size_of::<T>() as u32;
        // SAFETY: the context, and so many bytes on the stack, all of which are written when the helper
        // succeeds.
        unsafe {
            let result = bpf_skb_load_bytes(self.0.cast(), offset as u32, value.as_mut_ptr().cast(), size);
            (result == 0).then(|| value.assume_init())
        }
    }
}

impl Frame {
    fields! {
        /// The interface that the frame came in by.
        ingress_ifindex;
        /// Where the first buffer starts.
        data;
        /// Where it ends.
        data_end;
    }

    /// The first buffer.
    #[inline(always)]
    pub(crate) fn bounds(self) -> Bounds {
        Bounds { data: self.data() as usize as *mut u8, end: self.data_end() as usize as *mut u8 }
    }
}

/// The bytes of a packet that a program may access directly, until it calls a helper that may move them.
///
/// Invariant: both ends are those of a context.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    data: *mut u8,
    end: *mut u8,
}

impl Bounds {
    /// A pointer to so many bytes at an offset.
    #[inline(always)]
    pub(crate) fn at(self, offset: usize, length: usize) -> Option<*mut u8> {
        let at = self.data.wrapping_add(offset);
        (at.wrapping_add(length) <= self.end).then_some(at)
    }

    /// Reads a value at an offset. `T` must consist of integers.
    #[inline(always)]
    pub(crate) fn load<T: Copy>(self, offset: usize) -> Option<T> {
        // SAFETY: so many bytes of the packet.
        self.at(offset, size_of::<T>()).map(|at| unsafe { read(at) })
    }

    /// Writes a value at an offset; false if the packet is too short.
    #[inline(always)]
    pub(crate) fn store<T>(self, offset: usize, value: T) -> bool {
        // SAFETY: so many bytes of the packet.
        self.at(offset, size_of::<T>()).map(|at| unsafe { write(at, value) }).is_some()
    }

    /// As [`Parse::parse`].
    #[inline(always)]
    pub(crate) fn parse<F: Parse>(self, network: usize) -> Result<Packet<F>, Unparsed> {
        // SAFETY: the bounds of the packet.
        unsafe { F::parse(self.data, self.end, network) }
    }

    /// As [`Parse::parse_without_options`].
    #[inline(always)]
    pub(crate) fn parse_without_options<F: Parse>(self, network: usize) -> Option<Packet<F>> {
        // SAFETY: the bounds of the packet.
        unsafe { F::parse_without_options(self.data, self.end, network) }
    }
}

/// Sends the packet out of an interface, or with `BPF_F_INGRESS` passes it in as received there; returns the
/// program's result.
#[inline(always)]
pub(crate) fn redirect(ifindex: u32, flags: u32) -> i64 {
    // SAFETY: plain arguments.
    unsafe { bpf_redirect(ifindex, flags as u64) }
}
