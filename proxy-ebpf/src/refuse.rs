//! What tc answers itself: refusals, and pings to cluster IPs. The packet is turned into its own answer.
//!
//! Answers are made in the CPU's [`FamilyMaps::pair`], which the decision is done with: the stack has no room for them.
//!
//! A limit: when a checksum was left to the device (`CHECKSUM_PARTIAL`) and the answer leaves by a device that computes
//! it, what is computed lands in the quoted header of TCP packets, or in the reset. Pods' interfaces compute nothing, and
//! from a wire no such packet comes; it takes a client in another virtual machine of the same host.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, BPF_F_INVALIDATE_HASH, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT},
    helpers::generated::{
        bpf_csum_diff, bpf_jiffies64, bpf_redirect, bpf_skb_change_tail, bpf_skb_load_bytes,
        bpf_skb_store_bytes,
    },
};
use proxy_common::{
    Family, V4, V6, checksum,
    decide::Verdict,
    layout::counter::Counter,
    packet::{ICMP, IPV4, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, Packet, TCP, tcp_flags},
};

use crate::{
    maps::REFUSALS,
    rewrite::{self, Header},
    settings::REJECT_WITH_RESET,
    tables::{KernelFamily, count},
};

/// Which answer.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Answer {
    /// None.
    None = 0,
    /// Port unreachable.
    Unreachable = 1,
    /// A TCP reset.
    Reset = 2,
    /// An echo reply.
    Echo = 3,
}

impl Answer {
    /// The answer that a verdict asks for.
    #[inline(always)]
    pub(crate) fn of<F: Family>(verdict: Verdict, packet: &Packet<F>) -> Self {
        let is_tcp = packet.protocol == PROTOCOL_TCP;
        match verdict {
            Verdict::Echo => Self::Echo,
            Verdict::Reset => Self::Reset,
            Verdict::Reject if is_tcp && REJECT_WITH_RESET.load() != 0 => Self::Reset,
            Verdict::Reject => Self::Unreachable,
            _ => Self::None,
        }
    }
}

/// Refusals that a CPU sends in 64 jiffies (64 to 640 ms) at most: nobody makes the node a source of floods.
const LIMIT: u64 = 100;

/// Hop limit of answers.
const HOPS: u8 = 64;

/// Bytes of the transport header that a refusal quotes (RFC 792; more is allowed, this is what hosts need).
const QUOTED: usize = 8;

/// A family's answers.
pub(crate) trait Answers: Header {
    /// Bytes of a refusal from the network header on.
    const REFUSAL: usize = 2 * Self::HEADER + ICMP + QUOTED;
    /// Echo reply, as type in a header's first byte.
    const ECHO_REPLY: u8;

    /// Is it an address that answers may be sent to? Not to groups, nor to hosts without an address.
    fn is_host(addr: &Self::Addr) -> bool;
    /// Writes a network header: the answer to the packet whose header is `from`, with a payload of `length` bytes.
    ///
    /// # Safety
    /// `header` points to so many writable bytes as the family's header has, `from` to so many readable ones.
    unsafe fn answer(header: *mut u8, from: *const u8, protocol: u8, length: u16);
    /// Where such a header has its addresses, the source first.
    const ADDRESSES: usize;
    /// Writes the header of a refusal, all but its checksum; returns where that sum begins.
    ///
    /// # Safety
    /// `header` points to [`ICMP`] writable bytes.
    unsafe fn unreachable(header: *mut u8);
    /// The protocol number of refusals.
    const PROTOCOL: u8;
    /// Is the pseudo header part of the family's ICMP checksum?
    const HAS_PSEUDO_HEADER: bool;
}

#[inline(always)]
unsafe fn word<T: Copy>(at: *const u8) -> T {
    // SAFETY: the caller's promise; scratch memory is aligned to 4, and all words are.
    unsafe { at.cast::<T>().read() }
}

impl Answers for V4 {
    const ECHO_REPLY: u8 = 0;
    const PROTOCOL: u8 = PROTOCOL_ICMP;
    const ADDRESSES: usize = 12;
    const HAS_PSEUDO_HEADER: bool = false;

    #[inline(always)]
    fn is_host(addr: &u32) -> bool {
        let first = u32::from_be(*addr) >> 24;
        first != 0 && first != 127 && first < 224
    }

    #[inline(always)]
    unsafe fn answer(header: *mut u8, from: *const u8, protocol: u8, length: u16) {
        let at = |offset: usize| header.wrapping_add(offset);
        // SAFETY: the caller's promise.
        unsafe {
            rewrite::write(at(0), u32::from_be(0x4500_0000 | (IPV4 as u32 + length as u32)));
            rewrite::write(at(4), 0u32);
            rewrite::write(at(8), u32::from_be((HOPS as u32) << 24 | (protocol as u32) << 16));
            rewrite::write(at(12), word::<u32>(from.wrapping_add(16)));
            rewrite::write(at(16), word::<u32>(from.wrapping_add(12)));
            let sum = |offset: usize| V4::sum(&word::<u32>(at(offset)));
            let sum = sum(0) + sum(4) + sum(8) + sum(12) + sum(16);
            rewrite::write(at(10), !checksum::fold(sum) as u16);
        }
    }

    #[inline(always)]
    unsafe fn unreachable(header: *mut u8) {
        // SAFETY: the caller's promise. Type 3, code 3: port unreachable.
        unsafe {
            rewrite::write(header, u32::from_be(0x0303_0000));
            rewrite::write(header.wrapping_add(4), 0u32);
        }
    }
}

impl Answers for V6 {
    const ECHO_REPLY: u8 = 129;
    const PROTOCOL: u8 = PROTOCOL_ICMPV6;
    const ADDRESSES: usize = 8;
    const HAS_PSEUDO_HEADER: bool = true;

    #[inline(always)]
    fn is_host(addr: &[u32; 4]) -> bool {
        u32::from_be(addr[0]) >> 24 != 0xff && !V6::same(addr, &V6::UNSPECIFIED) && !V6::is_loopback(addr)
    }

    #[inline(always)]
    unsafe fn answer(header: *mut u8, from: *const u8, protocol: u8, length: u16) {
        let at = |offset: usize| header.wrapping_add(offset);
        let copy = |to: usize, offset: usize| {
            // SAFETY: the caller's promise.
            unsafe { rewrite::write(at(to), word::<u32>(from.wrapping_add(offset))) }
        };
        // SAFETY: the caller's promise.
        unsafe {
            rewrite::write(at(0), u32::from_be(0x6000_0000));
            rewrite::write(at(4), u32::from_be((length as u32) << 16 | (protocol as u32) << 8 | HOPS as u32));
        }
        copy(8, 24);
        copy(12, 28);
        copy(16, 32);
        copy(20, 36);
        copy(24, 8);
        copy(28, 12);
        copy(32, 16);
        copy(36, 20);
    }

    #[inline(always)]
    unsafe fn unreachable(header: *mut u8) {
        // SAFETY: the caller's promise. Type 1, code 4: port unreachable (RFC 4443 section 3.1).
        unsafe {
            rewrite::write(header, u32::from_be(0x0104_0000));
            rewrite::write(header.wrapping_add(4), 0u32);
        }
    }
}

/// Turns the packet into its answer and sends that: back out of the interface, or, where the packet was leaving
/// (`is_leaving`), into the node as if it came in there.
#[inline(always)]
pub(crate) fn answer<F: KernelFamily + Answers, const LINK: usize>(
    skb: *mut __sk_buff,
    answer: Answer,
    transport: u32,
    is_leaving: bool,
) -> i32 {
    let transport = transport as usize;
    let done = match answer {
        Answer::None => return TC_ACT_SHOT,
        Answer::Echo => echo::<F, LINK>(skb, transport),
        _ if !may_refuse() => {
            count(Counter::RejectLimited);
            return TC_ACT_SHOT;
        }
        Answer::Unreachable => unreachable::<F, LINK>(skb, transport),
        Answer::Reset => reset::<F, LINK>(skb, transport),
    };
    if !done || !swap_macs::<LINK>(skb) {
        count(Counter::RewriteFailed);
        return TC_ACT_SHOT;
    }
    if !matches!(answer, Answer::Echo) {
        count(Counter::RejectSent);
    }
    let flags = if is_leaving { BPF_F_INGRESS as u64 } else { 0 };
    // SAFETY: the context is readable; plain arguments.
    unsafe { bpf_redirect((*skb).ifindex, flags) as i32 }
}

/// May a refusal be sent, or were there too many already?
#[inline(always)]
fn may_refuse() -> bool {
    let Some(sent) = REFUSALS.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's own value, and no arguments.
    unsafe {
        let window = (bpf_jiffies64() >> 6) << 32;
        let before = if *sent >> 32 == window >> 32 { *sent } else { window };
        if before as u32 as u64 >= LIMIT {
            return false;
        }
        *sent = before + 1;
    }
    true
}

/// Scratch memory: longer than any answer with the headers that it answers.
#[inline(always)]
fn scratch<F: KernelFamily>() -> Option<*mut u8> {
    F::pair().map(|pair| pair.cast::<u8>())
}

/// Reads `length` bytes of the packet.
#[inline(always)]
fn load(skb: *mut __sk_buff, offset: usize, to: *mut u8, length: usize) -> bool {
    // SAFETY: callers have so much room there; the helper checks the packet.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset as u32, to.cast(), length as u32) == 0 }
}

/// The sum of `length` bytes, a multiple of 4.
#[inline(always)]
fn sum(at: *mut u8, length: usize, seed: u32) -> u32 {
    // SAFETY: callers have so many bytes there.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, at.cast(), length as u32, seed) };
    checksum::fold(checksum::fold(sum as u32))
}

/// The sum of the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1) of what follows a network header.
#[inline(always)]
fn pseudo_header<F: Answers>(header: *mut u8, protocol: u8, length: u16) -> u32 {
    let rest = (protocol as u16).to_be() as u32 + length.to_be() as u32;
    sum(header.wrapping_add(F::ADDRESSES), 2 * size_of::<F::Addr>(), rest)
}

/// Makes the packet as long as the answer and writes it.
#[inline(always)]
fn store<const LINK: usize>(skb: *mut __sk_buff, from: *const u8, length: usize) -> bool {
    let flags = (BPF_F_RECOMPUTE_CSUM | BPF_F_INVALIDATE_HASH) as u64;
    // SAFETY: callers have so many bytes there; the helpers check the packet.
    unsafe {
        bpf_skb_change_tail(skb, (LINK + length) as u32, 0) == 0
            && bpf_skb_store_bytes(skb, LINK as u32, from.cast(), length as u32, flags) == 0
    }
}

/// Reads the network header without its options, and `length` bytes of the transport header, into scratch memory behind
/// the room for the answer; false if nobody may be answered.
#[inline(always)]
fn quote<F: KernelFamily + Answers, const LINK: usize>(
    skb: *mut __sk_buff,
    transport: usize,
    to: *mut u8,
    length: usize,
) -> bool {
    const NO_OPTIONS: u8 = 0x45;
    if !load(skb, LINK, to, F::HEADER) || !load(skb, transport, to.wrapping_add(F::HEADER), length) {
        return false;
    }
    // SAFETY: just written.
    let source = unsafe {
        if F::HEADER == IPV4 {
            // Whoever reads the quote looks for the ports behind so many words.
            rewrite::write(to, NO_OPTIONS);
        }
        word::<F::Addr>(to.wrapping_add(F::ADDRESSES))
    };
    F::is_host(&source)
}

// A function of its own: a chain of calls has 512 bytes of stack, and the caller needs most of it.
#[inline(never)]
fn unreachable<F: KernelFamily + Answers, const LINK: usize>(skb: *mut __sk_buff, transport: usize) -> bool {
    let Some(header) = scratch::<F>() else { return false };
    let icmp = header.wrapping_add(F::HEADER);
    let length = ICMP + F::HEADER + QUOTED;
    if !quote::<F, LINK>(skb, transport, icmp.wrapping_add(ICMP), QUOTED) {
        return false;
    }
    // SAFETY: all within the scratch memory.
    unsafe {
        F::answer(header, icmp.wrapping_add(ICMP), F::PROTOCOL, length as u16);
        F::unreachable(icmp);
        let seed =
            if F::HAS_PSEUDO_HEADER { pseudo_header::<F>(header, F::PROTOCOL, length as u16) } else { 0 };
        rewrite::write(icmp.wrapping_add(2), !sum(icmp, length, seed) as u16);
    }
    store::<LINK>(skb, header, F::REFUSAL)
}

/// RFC 9293 section 3.10.7.1: what a closed port answers.
// A function of its own: a chain of calls has 512 bytes of stack, and the caller needs most of it.
#[inline(never)]
fn reset<F: KernelFamily + Answers, const LINK: usize>(skb: *mut __sk_buff, transport: usize) -> bool {
    let Some(header) = scratch::<F>() else { return false };
    let tcp = header.wrapping_add(F::HEADER);
    let from = tcp.wrapping_add(TCP);
    if !quote::<F, LINK>(skb, transport, from, TCP) {
        return false;
    }
    let asked = from.wrapping_add(F::HEADER);
    // SAFETY: all within the scratch memory. Read late and written at once: little of it fits into registers.
    unsafe {
        let flags = asked.wrapping_add(13).read();
        if flags & tcp_flags::RST != 0 {
            return false;
        }
        F::answer(header, from, PROTOCOL_TCP, TCP as u16);
        rewrite::write(tcp, word::<u32>(asked).rotate_left(16));
        rewrite::write(tcp.wrapping_add(8), 0u32);
        // Five words of header; no window.
        if flags & tcp_flags::ACK != 0 {
            rewrite::write(tcp.wrapping_add(4), word::<u32>(asked.wrapping_add(8)));
            rewrite::write(tcp.wrapping_add(12), u32::from_be(0x5000_0000 | (tcp_flags::RST as u32) << 16));
        } else {
            let next = u32::from_be(word(asked.wrapping_add(4)));
            let next = next.wrapping_add((flags & tcp_flags::SYN != 0) as u32);
            let both = (tcp_flags::RST | tcp_flags::ACK) as u32;
            rewrite::write(tcp.wrapping_add(4), 0u32);
            rewrite::write(tcp.wrapping_add(8), next.to_be());
            rewrite::write(tcp.wrapping_add(12), u32::from_be(0x5000_0000 | both << 16));
        }
        rewrite::write(tcp.wrapping_add(16), 0u32);
        let seed = pseudo_header::<F>(header, PROTOCOL_TCP, TCP as u16);
        rewrite::write(tcp.wrapping_add(16), !sum(tcp, TCP, seed) as u16);
    }
    store::<LINK>(skb, header, F::HEADER + TCP)
}

/// The request with addresses exchanged and another type: everything else, data included, is the reply's too.
#[inline(always)]
fn echo<F: KernelFamily + Answers, const LINK: usize>(skb: *mut __sk_buff, transport: usize) -> bool {
    // SAFETY: the context is readable.
    let (data, end) = unsafe { ((*skb).data as usize as *mut u8, (*skb).data_end as usize as *mut u8) };
    let (header, icmp) = (data.wrapping_add(LINK), data.wrapping_add(transport));
    if header.wrapping_add(F::HEADER) > end || icmp.wrapping_add(ICMP) > end {
        return false;
    }
    // SAFETY: within the headers just checked.
    unsafe {
        let (src, dst) = if F::HEADER == IPV4 { (12, 16) } else { (8, 24) };
        let (src, dst) = (header.wrapping_add(src), header.wrapping_add(dst));
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
        let field = icmp.wrapping_add(2);
        let change = checksum::difference(before as u32, after as u32);
        rewrite::write(field, checksum::update(field.cast::<u16>().read(), change));
        rewrite::write(icmp, after);
    }
    true
}

#[inline(always)]
fn swap_macs<const LINK: usize>(skb: *mut __sk_buff) -> bool {
    if LINK == 0 {
        return true;
    }
    // SAFETY: the context is readable, and so are the bounds it gives.
    unsafe {
        let (data, end) = ((*skb).data as usize as *mut u8, (*skb).data_end as usize as *mut u8);
        rewrite::swap_macs(data, end)
    }
}
