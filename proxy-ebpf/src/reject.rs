//! Replies that tc generates: rejects, and replies to pings of cluster IPs. The program turns the packet into
//! the reply.
//!
//! Replies are built in the CPU's [`FamilyMaps::draft`], which the decision no longer uses: the stack has no
//! room for them.
//!
//! A limit: when a packet is `CHECKSUM_PARTIAL` and the reply leaves by a device that computes the checksum,
//! the device writes it into the quoted header of TCP packets, or into the reset. Pods' interfaces compute no
//! checksum, and no such packet comes from a wire; it takes a client in another virtual machine of the same
//! host.

mod headers;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, BPF_F_INVALIDATE_HASH, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT},
    helpers::generated::{
        bpf_csum_diff, bpf_jiffies64, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
    },
};
use proxy_common::{
    Family, checksum,
    decide::Verdict,
    layout::counter::Counter,
    packet::{
        ICMP, PROTOCOL_TCP, Packet, TCP, WORD,
        field::{icmp as icmp_field, ports, tcp as tcp_field},
        tcp_flags,
    },
};

pub(crate) use self::headers::ReplyHeaders;
use self::headers::{QUOTED, word};
use crate::{
    context::{Skb, redirect},
    family::KernelFamily,
    maps::REJECTS,
    rewrite,
    settings::REJECT_WITH_RESET,
    tables::count,
};

/// The kind of reply.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum GeneratedReply {
    /// No reply.
    None = 0,
    /// Port unreachable.
    Unreachable = 1,
    /// A TCP reset.
    Reset = 2,
    /// An echo reply.
    Echo = 3,
    /// Time exceeded in transit.
    TimeExceeded = 4,
    /// Fragmentation needed, or packet too big.
    TooBig = 5,
}

/// A reply to a packet, with the properties of the packet that it needs.
#[derive(Clone, Copy)]
pub(crate) struct ReplyRequest {
    pub(crate) reply: GeneratedReply,
    /// IP protocol number.
    pub(crate) protocol: u8,
    /// With [`GeneratedReply::TooBig`]: the MTU.
    pub(crate) mtu: u16,
    /// Offset of the transport header.
    pub(crate) transport: u32,
}

impl GeneratedReply {
    /// The reply that a verdict requires.
    #[inline(always)]
    pub(crate) fn of<F: Family>(verdict: Verdict, packet: &Packet<F>) -> Self {
        let is_tcp = packet.protocol == PROTOCOL_TCP;
        match verdict {
            Verdict::Echo => Self::Echo,
            Verdict::Reset => Self::Reset,
            Verdict::Reject if is_tcp && REJECT_WITH_RESET.load() != 0 => Self::Reset,
            Verdict::Reject => Self::Unreachable,
            Verdict::TimeExceeded => Self::TimeExceeded,
            Verdict::TooBig => Self::TooBig,
            _ => Self::None,
        }
    }
}

/// Limit of rejects that a CPU sends in 64 jiffies (64 to 640 ms): the node must not become a source of floods.
const LIMIT: u64 = 100;

/// Turns the packet into its reply and sends that: out of the interface by which the packet came in, or, where
/// the packet was leaving (`is_leaving`), into the node as if it came in there.
#[inline(always)]
pub(crate) fn reply<F: KernelFamily + ReplyHeaders, const LINK: usize>(
    skb: *mut __sk_buff,
    request: ReplyRequest,
    is_leaving: bool,
) -> i32 {
    let ReplyRequest { reply, .. } = request;
    let done = match reply {
        GeneratedReply::None => return TC_ACT_SHOT,
        GeneratedReply::Echo => echo::<F, LINK>(skb, request.transport as usize),
        _ if !may_reject(reply) => {
            count(Counter::RejectLimited);
            return TC_ACT_SHOT;
        }
        GeneratedReply::Unreachable | GeneratedReply::TimeExceeded | GeneratedReply::TooBig => {
            error::<F, LINK>(skb, &request)
        }
        GeneratedReply::Reset => reset::<F, LINK>(skb, request.transport as usize),
    };
    if !done || !swap_macs::<LINK>(skb) {
        count(Counter::RewriteFailed);
        return TC_ACT_SHOT;
    }
    if !matches!(reply, GeneratedReply::Echo) {
        count(Counter::RejectSent);
    }
    let flags = if is_leaving { BPF_F_INGRESS } else { 0 };
    redirect(Skb(skb).ifindex(), flags) as i32
}

/// The same for ICMP errors that a packet is too big, which Linux does not limit (`icmpv4_mask_allow`,
/// `icmpv6_mask_allow`): without them connections hang. Each costs its sender a large packet.
const LIMIT_OF_TOO_BIG: u64 = 10_000;

/// Whether the limit allows another reject. ICMP errors that a packet is too big are counted separately.
#[inline(always)]
fn may_reject(reply: GeneratedReply) -> bool {
    let (kind, limit) = match reply {
        GeneratedReply::TooBig => (1, LIMIT_OF_TOO_BIG),
        _ => (0, LIMIT),
    };
    let Some(sent) = REJECTS.get_ptr_mut(kind) else { return false };
    // SAFETY: this CPU's own value, and no arguments.
    unsafe {
        let window = (bpf_jiffies64() >> 6) << 32;
        let before = if *sent >> 32 == window >> 32 { *sent } else { window };
        if before as u32 as u64 >= limit {
            return false;
        }
        *sent = before + 1;
    }
    true
}

/// Scratch memory: longer than any reply with the headers that it quotes.
#[inline(always)]
fn scratch<F: KernelFamily>() -> Option<*mut u8> {
    F::draft().map(|draft| draft.cast::<u8>())
}

/// Reads `length` bytes of the packet to scratch memory.
#[inline(always)]
fn load(skb: *mut __sk_buff, offset: usize, to: *mut u8, length: usize) -> bool {
    // SAFETY: callers have so many bytes there; the helper checks the packet.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset as u32, to.cast(), length as u32) == 0 }
}

/// The sum of `length` bytes, a multiple of 4.
#[inline(always)]
fn sum(at: *mut u8, length: usize, seed: u32) -> u32 {
    // SAFETY: callers have so many bytes there.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, at.cast(), length as u32, seed) };
    checksum::fold(checksum::fold(sum as u32))
}

/// The sum of the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1) for the data behind a network header.
#[inline(always)]
fn pseudo_header<F: ReplyHeaders>(header: *mut u8, protocol: u8, length: u16) -> u32 {
    let rest = (protocol as u16).to_be() as u32 + length.to_be() as u32;
    sum(header.wrapping_add(F::ADDRESSES), 2 * size_of::<F::Addr>(), rest)
}

/// Flags for writing replies.
const STORE: u64 = (BPF_F_RECOMPUTE_CSUM | BPF_F_INVALIDATE_HASH) as u64;

/// Makes the packet as long as the reply and writes it.
#[inline(always)]
fn store<const LINK: usize>(skb: *mut __sk_buff, from: *const u8, length: usize) -> bool {
    // SAFETY: callers have so many bytes there; the helpers check the packet.
    unsafe {
        bpf_skb_change_tail(skb, (LINK + length) as u32, 0) == 0
            && bpf_skb_store_bytes(skb, LINK as u32, from.cast(), length as u32, STORE) == 0
    }
}

/// Reads the network header without options or extension headers, and `length` bytes of the transport header,
/// into scratch memory behind the room for the reply. False if the source is no address that may get a reply.
#[inline(always)]
fn quote<F: KernelFamily + ReplyHeaders, const LINK: usize>(
    skb: *mut __sk_buff,
    transport: usize,
    protocol: u8,
    to: *mut u8,
    length: usize,
) -> bool {
    if !load(skb, LINK, to, F::HEADER) || !load(skb, transport, to.wrapping_add(F::HEADER), length) {
        return false;
    }
    // SAFETY: just written.
    let source = unsafe {
        // Receivers of the quote expect the ports behind the header.
        F::shorten(to, protocol);
        word::<F::Addr>(to.wrapping_add(F::ADDRESSES))
    };
    F::is_host(&source)
}

/// Sends an ICMP error about the packet.
// A separate function: a chain of calls has 512 bytes of stack, and the caller needs most of it.
#[inline(never)]
fn error<F: KernelFamily + ReplyHeaders, const LINK: usize>(
    skb: *mut __sk_buff,
    request: &ReplyRequest,
) -> bool {
    let Some(header) = scratch::<F>() else { return false };
    let icmp = header.wrapping_add(F::HEADER);
    let length = ICMP + F::HEADER + QUOTED;
    let transport = request.transport as usize;
    if !quote::<F, LINK>(skb, transport, request.protocol, icmp.wrapping_add(ICMP), QUOTED) {
        return false;
    }
    // SAFETY: all within the scratch memory.
    unsafe {
        F::reply(header, icmp.wrapping_add(ICMP), F::ICMP, length as u16);
        F::error(icmp, request.reply, request.mtu);
        let seed = if F::HAS_PSEUDO_HEADER { pseudo_header::<F>(header, F::ICMP, length as u16) } else { 0 };
        rewrite::write(icmp.wrapping_add(icmp_field::CHECKSUM), !sum(icmp, length, seed) as u16);
        if Skb(skb).gso_size() == 0 {
            return store::<LINK>(skb, header, F::HEADER + length);
        }
    }
    padded::<F, LINK>(skb, header, icmp, length)
}

/// Writes an error about a GSO packet. The device computes that packet's checksum and writes it at the offset
/// of the transport header's field, even though the packet has changed: the error has options there that no
/// receiver reads.
#[inline(always)]
fn padded<F: KernelFamily + ReplyHeaders, const LINK: usize>(
    skb: *mut __sk_buff,
    header: *mut u8,
    icmp: *const u8,
    length: usize,
) -> bool {
    let at = LINK + F::HEADER + F::PADDING;
    // SAFETY: all within the scratch memory; the helpers check the packet.
    unsafe {
        if bpf_skb_change_tail(skb, (at + length) as u32, 0) != 0
            || bpf_skb_store_bytes(skb, at as u32, icmp.cast(), length as u32, STORE) != 0
        {
            return false;
        }
        F::pad(header);
        let length = (F::HEADER + F::PADDING) as u32;
        bpf_skb_store_bytes(skb, LINK as u32, header.cast(), length, STORE) == 0
    }
}

/// The reset that a closed port sends (RFC 9293 section 3.10.7.1).
// A separate function: a chain of calls has 512 bytes of stack, and the caller needs most of it.
#[inline(never)]
fn reset<F: KernelFamily + ReplyHeaders, const LINK: usize>(skb: *mut __sk_buff, transport: usize) -> bool {
    let Some(header) = scratch::<F>() else { return false };
    let tcp = header.wrapping_add(F::HEADER);
    let from = tcp.wrapping_add(TCP);
    if !quote::<F, LINK>(skb, transport, PROTOCOL_TCP, from, TCP) {
        return false;
    }
    let request = from.wrapping_add(F::HEADER);
    // SAFETY: all within the scratch memory. Each field is read just before it is written: few fit into
    // registers.
    unsafe {
        let flags = request.wrapping_add(tcp_field::FLAGS).read();
        if flags & tcp_flags::RST != 0 {
            return false;
        }
        F::reply(header, from, PROTOCOL_TCP, TCP as u16);
        let at = |offset: usize| tcp.wrapping_add(offset);
        // Both ports at once, swapped.
        rewrite::write(
            at(ports::SOURCE),
            word::<u32>(request.wrapping_add(ports::SOURCE)).rotate_left(u16::BITS),
        );
        rewrite::write(at(tcp_field::ACKNOWLEDGMENT), 0u32);
        if flags & tcp_flags::ACK != 0 {
            rewrite::write(
                at(tcp_field::SEQUENCE),
                word::<u32>(request.wrapping_add(tcp_field::ACKNOWLEDGMENT)),
            );
            rewrite::write(at(tcp_field::DATA_OFFSET), length_and_flags(tcp_flags::RST));
        } else {
            let next = u32::from_be(word(request.wrapping_add(tcp_field::SEQUENCE)));
            let next = next.wrapping_add((flags & tcp_flags::SYN != 0) as u32);
            rewrite::write(at(tcp_field::SEQUENCE), 0u32);
            rewrite::write(at(tcp_field::ACKNOWLEDGMENT), next.to_be());
            rewrite::write(at(tcp_field::DATA_OFFSET), length_and_flags(tcp_flags::RST | tcp_flags::ACK));
        }
        // The word includes the urgent pointer.
        rewrite::write(at(tcp_field::CHECKSUM), 0u32);
        let seed = pseudo_header::<F>(header, PROTOCOL_TCP, TCP as u16);
        rewrite::write(at(tcp_field::CHECKSUM), !sum(tcp, TCP, seed) as u16);
    }
    store::<LINK>(skb, header, F::HEADER + TCP)
}

/// The word of a TCP header without options with its length and flags, and a window of 0.
#[inline(always)]
const fn length_and_flags(flags: u8) -> u32 {
    const LENGTH: u8 = (TCP / WORD) as u8;
    u32::from_ne_bytes([LENGTH << 4, flags, 0, 0])
}

/// Turns the request into its reply: swaps the addresses and changes the type. The reply keeps all else, data
/// included.
#[inline(always)]
fn echo<F: KernelFamily + ReplyHeaders, const LINK: usize>(skb: *mut __sk_buff, transport: usize) -> bool {
    let bounds = Skb(skb).bounds();
    let (Some(header), Some(icmp)) = (bounds.at(LINK, F::HEADER), bounds.at(transport, ICMP)) else {
        return false;
    };
    // SAFETY: within the headers just checked.
    unsafe {
        let src = header.wrapping_add(F::ADDRESSES);
        let dst = src.wrapping_add(size_of::<F::Addr>());
        let mut offset = 0;
        while offset < size_of::<F::Addr>() {
            let (a, b) = (
                src.wrapping_add(offset).cast::<u32>().read(),
                dst.wrapping_add(offset).cast::<u32>().read(),
            );
            rewrite::write(src.wrapping_add(offset), b);
            rewrite::write(dst.wrapping_add(offset), a);
            offset += 4;
        }
        let before = icmp.cast::<u16>().read();
        let after = u16::from_ne_bytes([F::ECHO_REPLY, 0]);
        let field = icmp.wrapping_add(icmp_field::CHECKSUM);
        let change = checksum::difference(before as u32, after as u32);
        rewrite::write(field, checksum::update(field.cast::<u16>().read(), change));
        rewrite::write(icmp, after);
    }
    true
}

#[inline(always)]
fn swap_macs<const LINK: usize>(skb: *mut __sk_buff) -> bool {
    LINK == 0 || rewrite::swap_macs(Skb(skb).bounds())
}
