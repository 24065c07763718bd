//! The slow path: fragments, packets with IPv6 extension headers, and ICMP errors. They are rare, so the
//! program reads and writes all fields by offset.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT},
    programs::TcContext,
};
use proxy_common::{
    Family, checksum,
    decide::{Completion, complete, may_be_for_service},
    layout::{counter::Counter, flow::Tuple},
    packet::{Bytes, Dissected, ICMP, PROTOCOL_SCTP, Part, dissect, field},
};

use super::{
    Hook, LogEvent, NEXT, Outcome, TcFamily,
    checksums::update_checksum,
    decide,
    fragment_queue::{enqueue, release},
};
use crate::{
    context::Skb,
    family::KernelFamily,
    scratch::{Scratch, scratch},
    tables::{Kernel, count},
};

/// The effect of a write on CHECKSUM_COMPLETE.
#[derive(Clone, Copy)]
#[repr(u64)]
enum SkbChecksum {
    /// The sum stays: a checksum in the packet compensates the write.
    Stays = 0,
    /// The sum changes with the write.
    Changes = BPF_F_RECOMPUTE_CSUM as u64,
}

/// Parses such a packet, and finds the ports of a fragment.
#[inline(always)]
pub(crate) fn read<F: KernelFamily>(skb: *mut __sk_buff, link: usize) {
    let Some(Scratch { dissected, completion, .. }) = scratch::<F>() else { return };
    let is_parsed = dissect(&Skb(skb), link, dissected);
    *completion = complete(&Kernel::of_skb(skb, link), dissected, is_parsed);
}

/// Runs a hook on such a packet after [`read`].
#[inline(always)]
pub(crate) fn slow_path<F: KernelFamily + TcFamily, H: Hook, const LINK: usize>(ctx: &TcContext) -> u64 {
    let next = Outcome::with(NEXT, LogEvent::Nothing);
    // Not every hook uses it, and the compiler would not pass an unused argument; the verifier requires it.
    let skb = core::hint::black_box(ctx.skb.skb);
    let Some(scratch) = scratch::<F>() else { return next.0 };
    let completion = scratch.completion;
    let dissected = &scratch.dissected;
    // Fragments that leave come from the host or from one sender, in order.
    let is_over = !H::IS_LEAVING
        && match dissected.part {
            Part::Later if matches!(completion, Completion::Early) => {
                may_be_for_service::<F, _>(&Kernel::of_skb(skb, LINK), &dissected.packet.tuple.dst)
                    && enqueue(skb, &dissected.fragment_key())
            }
            Part::First => release(skb, &dissected.fragment_key()),
            _ => false,
        };
    if is_over {
        return Outcome::with(TC_ACT_SHOT, LogEvent::Nothing).0;
    }
    if !matches!(completion, Completion::Complete) {
        return next.0;
    }
    decide::<F, H, LINK>(skb, scratch).0
}

/// Writes the translation into the packet.
#[inline(always)]
pub(super) fn write<F: KernelFamily + TcFamily>(
    skb: *mut __sk_buff,
    link: usize,
    dissected: &Dissected<F>,
    to: &Tuple<F>,
    hops: u8,
) -> bool {
    let bytes = Skb(skb);
    let packet = &dissected.packet;
    match dissected.part {
        Part::Error => error(&bytes, link, dissected, to, hops),
        Part::Later => {
            count(Counter::FragmentFollowed);
            header(&bytes, link, &packet.tuple, to, hops, SkbChecksum::Changes)
        }
        Part::Plain | Part::Whole | Part::First => {
            update_checksum(skb, link, packet, to)
                && F::store_addresses(skb, link, to)
                && header(&bytes, link, &packet.tuple, to, hops, SkbChecksum::Stays)
                && ports(&bytes, packet.transport, to, SkbChecksum::Stays)
        }
    }
}

/// Writes a network header's addresses and hop limit.
#[inline(always)]
fn header<F: KernelFamily + TcFamily>(
    bytes: &Skb,
    at: usize,
    from: &Tuple<F>,
    to: &Tuple<F>,
    hops: u8,
    sum: SkbChecksum,
) -> bool {
    let Some(mut words) = bytes.load::<F::Words>(at) else { return false };
    // SAFETY: a header's bytes.
    unsafe { F::write((&raw mut words).cast(), from, to, hops) };
    bytes.store(at, &words, sum as u64)
}

/// Writes the ports of a transport header.
#[inline(always)]
fn ports<F: Family>(bytes: &Skb, at: usize, to: &Tuple<F>, sum: SkbChecksum) -> bool {
    bytes.store(at, &[to.sport, to.dport], sum as u64)
}

/// Translates an ICMP error: the quoted packet becomes the one that the receiver of the error sent, and the
/// error's destination becomes that receiver's address.
///
/// As in the kernel's NAT, its source becomes that of the flow's packets in this direction where that is
/// changed.
#[inline(always)]
fn error<F: KernelFamily + TcFamily>(
    bytes: &Skb,
    network: usize,
    dissected: &Dissected<F>,
    to: &Tuple<F>,
    hops: u8,
) -> bool {
    let packet = &dissected.packet;
    let (quoted, quote) = (packet.tuple.reversed(), to.reversed());
    let reporter = if F::same(&to.src, &packet.tuple.src) { dissected.reporter } else { to.src };
    let outer = Tuple::<F> { src: dissected.reporter, dst: packet.tuple.dst, sport: 0, dport: 0 };
    let sent = Tuple::<F> { src: reporter, dst: to.dst, sport: 0, dport: 0 };
    // The change of the message's sum by the quote. The checksum of an IPv4 header compensates its addresses.
    let mut change = checksum::ports(&quoted, &quote);
    if F::HAS_PSEUDO_HEADER {
        change += checksum::fold(checksum::addresses(&quoted, &quote));
        change += checksum::fold(checksum::addresses(&outer, &sent));
    }
    let field = packet.checksum_offset();
    // A short quote has no checksum. SCTP's covers the whole packet, and receivers do not check it in a quote.
    if packet.protocol != PROTOCOL_SCTP
        && let Some(before) = bytes.load::<u16>(field)
        && before != 0
    {
        let translated = checksum::addresses(&quoted, &quote) + checksum::ports(&quoted, &quote);
        let after = checksum::update(before, translated);
        change = checksum::fold(change) + checksum::difference(before as u32, after as u32);
        if !bytes.store(field, &after, SkbChecksum::Changes as u64) {
            return false;
        }
    }
    let at = dissected.icmp + field::icmp::CHECKSUM;
    let Some(sum) = bytes.load::<u16>(at) else { return false };
    count(Counter::IcmpError);
    bytes.store(at, &checksum::update(sum, change), SkbChecksum::Changes as u64)
        && header(bytes, dissected.icmp + ICMP, &quoted, &quote, 0, SkbChecksum::Changes)
        && ports(bytes, packet.transport, &quote, SkbChecksum::Changes)
        && header(bytes, network, &outer, &sent, hops, SkbChecksum::Changes)
}
