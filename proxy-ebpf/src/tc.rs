//! The tc programs: parse, decide, apply. They end with "next program", so that a CNI's own still run.

mod checksums;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{TC_ACT_SHOT, bpf_redir_neigh},
    helpers::generated::{bpf_redirect, bpf_redirect_neigh, bpf_skb_change_head, bpf_skb_pull_data},
    programs::TcContext,
};
use proxy_common::{
    V4, V6,
    decide::{self, Translation, Verdict},
    layout::{counter::Counter, flow::Mac},
    packet::{ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Packet, TCP, Unparsed},
};

use self::checksums::{TcFamily, update_checksum};
use crate::{
    log::Note,
    maps::DEVICES,
    refuse::{Answer, answer},
    rewrite,
    tables::{Kernel, KernelFamily, count},
};

/// The same value for TCX (next program) and clsact (as if the filter did not match).
const NEXT: i32 = -1;

/// Longest headers up to the ports and TCP's flags: IPv6, or IPv4 with all options.
const LONGEST: usize = ETHERNET + 60 + TCP;

/// Which question a hook asks of the core.
pub(crate) trait Hook {
    /// The packet is on its way out: what answers it goes in.
    const IS_LEAVING: bool;
    /// Frames may be seen that are for another host: an interface in promiscuous mode takes them all.
    const MAY_OVERHEAR: bool;

    fn decide<F: KernelFamily>(
        kernel: &Kernel,
        packet: &Packet<F>,
        ifindex: u32,
        out: &mut Translation<F>,
    ) -> Verdict;
}

macro_rules! hooks {
    ($($hook:ident: leaving $is_leaving:literal, overhearing $may_overhear:literal, |$kernel:ident, $packet:ident, $ifindex:ident, $out:ident| $decide:expr;)*) => { $(
        pub(crate) struct $hook;

        impl Hook for $hook {
            const IS_LEAVING: bool = $is_leaving;
            const MAY_OVERHEAR: bool = $may_overhear;

            #[inline(always)]
            fn decide<F: KernelFamily>(
                $kernel: &Kernel,
                $packet: &Packet<F>,
                $ifindex: u32,
                $out: &mut Translation<F>,
            ) -> Verdict {
                $decide
            }
        }
    )* };
}

hooks! {
    FromPod: leaving false, overhearing false, |kernel, packet, ifindex, out| decide::from_pod(kernel, packet, ifindex, out);
    FromUplink: leaving false, overhearing true, |kernel, packet, ifindex, out| decide::from_uplink(kernel, packet, ifindex, out);
    ToClient: leaving true, overhearing false, |kernel, packet, _ifindex, out| decide::to_client(kernel, packet, out);
    ToOutside: leaving true, overhearing false, |kernel, packet, _ifindex, out| decide::to_outside(kernel, packet, out);
}

/// Runs a hook on a device whose frames have `LINK` bytes before the network header.
#[inline(always)]
pub(crate) fn run<H: Hook, const LINK: usize>(ctx: &TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context is readable.
    let protocol = unsafe { (*skb).protocol };
    match u16::from_be(protocol as u16) {
        ETHERTYPE_IPV4 => family::<V4, H, LINK>(ctx),
        ETHERTYPE_IPV6 => family::<V6, H, LINK>(ctx),
        _ => NEXT,
    }
}

fn family<F: KernelFamily + TcFamily, H: Hook, const LINK: usize>(ctx: &TcContext) -> i32 {
    let done = work::<F, H, LINK>(ctx);
    let asked = done.answer();
    if asked != Answer::None {
        return answer::<F, LINK>(ctx.skb.skb, asked, done.transport(), H::IS_LEAVING);
    }
    Note::of(done.note()).log::<F>(ctx);
    done.result()
}

/// What became of a packet, in one word: what is returned in a register needs no stack.
///
/// From the lowest bit on: 32 bits for the kernel, 8 for a [`Note`], 8 for an [`Answer`], 16 for the offset of the packet's
/// transport header.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Done(u64);

impl Done {
    #[inline(always)]
    fn with(result: i32, note: Note) -> Self {
        Self(result as u32 as u64 | (note.bits() as u64) << 32)
    }

    /// To be answered.
    #[inline(always)]
    fn asked(answer: Answer, transport: usize) -> Self {
        Self(TC_ACT_SHOT as u64 | (answer as u64) << 40 | (transport as u64) << 48)
    }

    #[inline(always)]
    fn result(self) -> i32 {
        self.0 as u32 as i32
    }

    #[inline(always)]
    fn note(self) -> u8 {
        (self.0 >> 32) as u8
    }

    #[inline(always)]
    fn answer(self) -> Answer {
        match (self.0 >> 40) as u8 {
            1 => Answer::Unreachable,
            2 => Answer::Reset,
            3 => Answer::Echo,
            _ => Answer::None,
        }
    }

    #[inline(always)]
    fn transport(self) -> u32 {
        // The longest headers end before. Without the mask old verifiers take it for any offset, and the compiler, which
        // knows better, would leave it out.
        core::hint::black_box((self.0 >> 48) as u32) & 0x7f
    }
}

// A record needs room on the stack, of which a chain of calls has 512 bytes: made when this frame is gone.
#[cfg_attr(feature = "kernel-log", inline(never))]
#[cfg_attr(not(feature = "kernel-log"), inline(always))]
fn work<F: KernelFamily + TcFamily, H: Hook, const LINK: usize>(ctx: &TcContext) -> Done {
    let next = Done::with(NEXT, Note::Nothing);
    const PACKET_OTHERHOST: u32 = 3;
    // SAFETY: the context is readable.
    let (ifindex, pkt_type) = unsafe { ((*ctx.skb.skb).ifindex, (*ctx.skb.skb).pkt_type) };
    if H::MAY_OVERHEAR && pkt_type == PACKET_OTHERHOST && !is_bridge_port(ifindex) {
        return next;
    }
    let packet = match parse::<F, LINK>(ctx) {
        Ok(packet) => packet,
        Err(Unparsed::Fragment) => {
            count(Counter::Fragment);
            return next;
        }
        Err(Unparsed::NotOurs | Unparsed::Short) => return next,
    };
    let kernel = Kernel::new(ctx.as_ptr());
    let mut translation = Translation::default();
    let verdict = H::decide(&kernel, &packet, ifindex, &mut translation);
    match verdict {
        Verdict::Pass => next,
        Verdict::Reject | Verdict::Reset | Verdict::Echo => {
            Done::asked(Answer::of(verdict, &packet), packet.transport)
        }
        Verdict::Drop => Done::with(TC_ACT_SHOT, Note::dropped::<F>(&packet.tuple)),
        Verdict::Translate | Verdict::Forward | Verdict::Switch | Verdict::Return => {
            let mut note = Note::Nothing;
            let result = apply::<F, LINK>(ctx, &packet, verdict, &translation, ifindex, &mut note);
            Done::with(result, note)
        }
    }
}

/// At a port of a bridge every frame is for another: for the bridge, as well.
#[inline(always)]
fn is_bridge_port(ifindex: u32) -> bool {
    // SAFETY: the agent replaces whole elements.
    unsafe { DEVICES.get(ifindex) }.is_some_and(|device| device.bridge != 0)
}

#[inline(always)]
fn bounds(ctx: &TcContext) -> (*mut u8, *mut u8) {
    (ctx.data() as *mut u8, ctx.data_end() as *mut u8)
}

/// Parses; pulls headers that lie outside the linear part in first.
#[inline(always)]
fn parse<F: KernelFamily, const LINK: usize>(ctx: &TcContext) -> Result<Packet<F>, Unparsed> {
    let (data, end) = bounds(ctx);
    // SAFETY: the bounds of the packet.
    let parsed = unsafe { F::parse(data, end, LINK) };
    if !matches!(parsed, Err(Unparsed::Short)) {
        return parsed;
    }
    let length = ctx.len();
    let wanted = if length < LONGEST as u32 { length } else { LONGEST as u32 };
    // SAFETY: the context, and a length within the packet.
    if unsafe { bpf_skb_pull_data(ctx.skb.skb, wanted) } != 0 {
        return Err(Unparsed::Short);
    }
    let (data, end) = bounds(ctx);
    // SAFETY: the bounds of the packet.
    unsafe { F::parse(data, end, LINK) }
}

#[inline(always)]
fn apply<F: KernelFamily + TcFamily, const LINK: usize>(
    ctx: &TcContext,
    packet: &Packet<F>,
    verdict: Verdict,
    translation: &Translation<F>,
    ifindex: u32,
    note: &mut Note,
) -> i32 {
    let skb = ctx.skb.skb;
    let to = &translation.to;
    let hops = matches!(verdict, Verdict::Forward) as u8;
    if !update_checksum(skb, LINK, packet, to) || !F::store_addresses(skb, LINK, to) {
        return failed();
    }
    // The helpers may have moved the packet.
    let (data, end) = bounds(ctx);
    // SAFETY: the bounds of the packet.
    if !unsafe { rewrite::headers(data, end, LINK, packet, to, hops) } {
        return failed();
    }
    *note = Note::translated::<F>(&packet.tuple, to);
    match verdict {
        Verdict::Switch => {
            // SAFETY: the bounds of the packet.
            if LINK != 0 && !unsafe { rewrite::macs(data, end, Some(translation.mac), None) } {
                return failed();
            }
            NEXT
        }
        Verdict::Return => {
            // SAFETY: the bounds of the packet.
            if LINK != 0 && !unsafe { rewrite::swap_macs(data, end) } {
                return failed();
            }
            // SAFETY: plain arguments.
            unsafe { bpf_redirect(ifindex, 0) as i32 }
        }
        Verdict::Forward => {
            if LINK == 0 && !add_ethernet(ctx) {
                return failed();
            }
            let mut neighbour = F::neighbour(&translation.route.next_hop);
            let size = size_of::<bpf_redir_neigh>() as i32;
            // SAFETY: parameters of the size that is given.
            unsafe { bpf_redirect_neigh(translation.route.ifindex, &mut neighbour, size, 0) as i32 }
        }
        _ => NEXT,
    }
}

/// A packet that is half rewritten must not go on.
#[inline(always)]
fn failed() -> i32 {
    count(Counter::RewriteFailed);
    TC_ACT_SHOT
}

/// `bpf_redirect_neigh` drops frames without an Ethernet header, even though it replaces what is in it.
#[inline(always)]
fn add_ethernet(ctx: &TcContext) -> bool {
    const ANY_UNICAST: Mac = Mac([u16::from_ne_bytes([2, 0]), 0, u16::from_ne_bytes([0, 1])]);
    // SAFETY: the context.
    if unsafe { bpf_skb_change_head(ctx.skb.skb, ETHERNET as u32, 0) } != 0 {
        return false;
    }
    let (data, end) = bounds(ctx);
    // SAFETY: the bounds of the packet.
    unsafe { rewrite::macs(data, end, Some(ANY_UNICAST), Some(ANY_UNICAST)) }
}
