//! Writing new addresses and ports into a packet.

use proxy_common::{
    V4, V6, checksum,
    layout::flow::{Mac, Tuple},
    packet::{
        ETHERNET, Parse,
        field::{ethernet, ipv4, ipv6, ports},
    },
};

use crate::context::Bounds;

/// At least the length of the headers in front of the transport header; packets with longer headers get no
/// reply.
pub(crate) const LONGEST_MASK: usize = 0x1ff;

/// Writes a word at an address that need not be aligned.
///
/// # Safety
/// The bytes are writable.
#[inline(always)]
pub(crate) unsafe fn write<T>(at: *mut u8, value: T) {
    // SAFETY: the caller's promise; the kernel allows unaligned words in packets.
    unsafe { at.cast::<T>().write(value) }
}

/// A family's network header.
pub(crate) trait Header: Parse {
    /// Writes addresses (and the header's checksum, where there is one) and takes `hops` off the hop limit.
    ///
    /// # Safety
    /// `header` points to a writable network header of `from`'s packet.
    unsafe fn write(header: *mut u8, from: &Tuple<Self>, to: &Tuple<Self>, hops: u8);
}

impl Header for V4 {
    #[inline(always)]
    unsafe fn write(header: *mut u8, from: &Tuple<Self>, to: &Tuple<Self>, hops: u8) {
        let at = |offset: usize| header.wrapping_add(offset);
        // SAFETY: all within the header.
        unsafe {
            let mut change = checksum::addresses(from, to);
            if hops != 0 {
                // TTL is the first byte of its 16-bit word.
                let word = at(ipv4::TTL).cast::<u16>().read();
                let less = word.wrapping_sub(u16::from_ne_bytes([hops, 0]));
                change += checksum::difference(word as u32, less as u32);
                write(at(ipv4::TTL), less);
            }
            let sum = at(ipv4::CHECKSUM).cast::<u16>().read();
            write(at(ipv4::CHECKSUM), checksum::update(sum, change));
            write(at(ipv4::SOURCE), to.src);
            write(at(ipv4::DESTINATION), to.dst);
        }
    }
}

impl Header for V6 {
    #[inline(always)]
    unsafe fn write(header: *mut u8, _: &Tuple<Self>, to: &Tuple<Self>, hops: u8) {
        let at = |offset: usize| header.wrapping_add(offset);
        // SAFETY: all within the header.
        unsafe {
            if hops != 0 {
                write(at(ipv6::HOP_LIMIT), at(ipv6::HOP_LIMIT).read().wrapping_sub(hops));
            }
            // By words: the compiler would copy whole arrays with a call.
            write(at(ipv6::SOURCE), to.src[0]);
            write(at(ipv6::SOURCE + 4), to.src[1]);
            write(at(ipv6::SOURCE + 8), to.src[2]);
            write(at(ipv6::SOURCE + 12), to.src[3]);
            write(at(ipv6::DESTINATION), to.dst[0]);
            write(at(ipv6::DESTINATION + 4), to.dst[1]);
            write(at(ipv6::DESTINATION + 8), to.dst[2]);
            write(at(ipv6::DESTINATION + 12), to.dst[3]);
        }
    }
}

/// Writes network addresses, and ports at offset `transport`, but no transport checksum; false if the packet is
/// shorter than its headers.
#[inline(always)]
pub(crate) fn headers<F: Header>(
    bounds: Bounds,
    network: usize,
    transport: usize,
    from: &Tuple<F>,
    to: &Tuple<F>,
    hops: u8,
) -> bool {
    let (Some(header), Some(transport)) = (bounds.at(network, F::HEADER), bounds.at(transport, ports::END))
    else {
        return false;
    };
    // SAFETY: both headers were just checked.
    unsafe {
        F::write(header, from, to, hops);
        write(transport.wrapping_add(ports::SOURCE), to.sport);
        write(transport.wrapping_add(ports::DESTINATION), to.dport);
    }
    true
}

/// Writes the MACs of an Ethernet header; false if the packet has none.
#[inline(always)]
pub(crate) fn macs(bounds: Bounds, destination: Option<Mac>, source: Option<Mac>) -> bool {
    let Some(header) = bounds.at(0, ETHERNET) else { return false };
    let put = |offset: usize, mac: Mac| {
        // SAFETY: within the header just checked.
        unsafe {
            write(header.wrapping_add(offset), mac.0[0]);
            write(header.wrapping_add(offset + 2), mac.0[1]);
            write(header.wrapping_add(offset + 4), mac.0[2]);
        }
    };
    if let Some(mac) = destination {
        put(ethernet::DESTINATION, mac);
    }
    if let Some(mac) = source {
        put(ethernet::SOURCE, mac);
    }
    true
}

/// Swaps source and destination MAC; false if the packet has no Ethernet header.
#[inline(always)]
pub(crate) fn swap_macs(bounds: Bounds) -> bool {
    let Some(header) = bounds.at(0, ETHERNET) else { return false };
    // SAFETY: within the header just checked.
    let mac = |offset: usize| unsafe {
        let word = |at: usize| header.wrapping_add(offset + at).cast::<u16>().read();
        Mac([word(0), word(2), word(4)])
    };
    let (destination, source) = (mac(ethernet::DESTINATION), mac(ethernet::SOURCE));
    macs(bounds, Some(source), Some(destination))
}
