//! The core's tables in the kernel: maps and helpers.

mod entries;
mod flows;
mod node;
mod packet;
mod services;

use core::ffi::c_void;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_get_prandom_u32, generated::bpf_jiffies64},
};
use proxy_common::{
    Family,
    decide::{Attempt, Claim, DropReason, Found, Route, Tables, Verdict},
    layout::{
        config::Settings,
        counter::Counter,
        flow::{FlowDraft, FlowKey, LookupPoint},
    },
    packet::{
        Bytes, ETHERNET, PROTOCOL_TCP, Packet, SCTP_HEADER, TCP, UDP, WORD,
        field::{sctp, tcp},
    },
};

use crate::{
    context::{Frame, Skb},
    family::KernelFamily,
    maps::COUNTERS,
    report,
    scratch::scratch,
    settings::settings,
    tc::GSO_BY_FRAGS,
};

pub(crate) use self::entries::{AffinityEntry, FlowEntry};

/// The maps, and the context that some helpers take.
pub(crate) struct Kernel {
    pub(crate) ctx: *mut c_void,
    layer: Layer,
}

/// Where the program runs.
#[derive(Clone, Copy)]
enum Layer {
    /// XDP. Packets that get a reply instead of being sent on are left to tc, where the core decides again.
    Xdp,
    /// tc, on a device whose frames have so many bytes before the network header.
    Tc(usize),
    /// A socket hook: no packets. Of an IPv6 socket the requested address may be IPv4, mapped.
    Socket { is_mapped: bool },
}

impl Kernel {
    /// For socket hooks.
    #[inline(always)]
    pub(crate) fn of_socket(ctx: *mut c_void, is_mapped: bool) -> Self {
        Self { ctx, layer: Layer::Socket { is_mapped } }
    }

    /// Whether the address of an IPv6 socket is IPv4, mapped.
    #[inline(always)]
    pub(crate) fn is_mapped(&self) -> bool {
        matches!(self.layer, Layer::Socket { is_mapped: true })
    }

    /// For tc.
    #[inline(always)]
    pub(crate) fn of_skb(skb: *mut __sk_buff, link: usize) -> Self {
        Self { ctx: skb.cast(), layer: Layer::Tc(link) }
    }

    /// For XDP, in front of tc.
    #[inline(always)]
    pub(crate) fn before_tc(ctx: *mut c_void) -> Self {
        Self { ctx, layer: Layer::Xdp }
    }

    /// A packet's size at tc: of a GSO packet, its longest segment.
    #[inline(always)]
    fn size_of_skb<F: Family>(&self, link: usize, packet: &Packet<F>) -> u32 {
        let skb = Skb(self.ctx.cast());
        let (length, segment) = (skb.len(), skb.gso_size());
        if segment == 0 {
            return length.wrapping_sub(link as u32);
        }
        if segment == GSO_BY_FRAGS {
            // Segments differ in size. The first one has at least this chunk, and no other where a long message
            // is sent.
            let chunk = skb.load::<u16>(packet.transport + sctp::CHUNK_LENGTH).unwrap_or_default();
            let first = (packet.transport - link + SCTP_HEADER) as u32 + u16::from_be(chunk) as u32;
            let whole = length.wrapping_sub(link as u32);
            return if first < whole { first } else { whole };
        }
        let header = if packet.protocol == PROTOCOL_TCP {
            let words = skb.load::<u8>(packet.transport + tcp::DATA_OFFSET);
            words.map_or(TCP, |words| (words >> 4) as usize * WORD)
        } else {
            UDP
        };
        (packet.transport - link + header) as u32 + segment
    }

    /// A packet's size at XDP, from its network header: frames may be in several buffers, and padded.
    #[inline(always)]
    fn size_of_frame<F: KernelFamily>(&self) -> u32 {
        let header = Frame(self.ctx.cast()).bounds().at(ETHERNET, F::HEADER);
        // SAFETY: the header was just checked.
        header.map_or(0, |header| unsafe { F::total_length(header) })
    }
}

/// Counts on this CPU.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    count_index(counter as u32);
}

/// The same, by the counter's index.
#[inline(always)]
pub(crate) fn count_index(counter: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter) {
        // SAFETY: this CPU's own value; a nested program may lose a count, no more.
        unsafe { *value += 1 };
    }
}

// Other CPUs write the same entries, and the kernel may recycle them meanwhile. Each access is to one field,
// and a recycled entry does no more harm than a late packet.

impl<F: KernelFamily> Tables<F> for Kernel {
    #[inline(always)]
    fn settings(&self) -> Settings {
        settings(F::snat_sources())
    }

    #[inline(always)]
    fn find_flow(&self, packet: &Packet<F>, lookup_point: LookupPoint) -> Option<FlowEntry<F>> {
        const CONFIRMED: u32 = Found::Confirmed as u32;
        const PENDING: u32 = Found::Pending as u32;
        // The CPU's scratch has the packet already.
        let key = &mut scratch::<F>()?.key;
        *key = FlowKey::new(packet.tuple, packet.protocol, lookup_point);
        let found = match self.layer {
            Layer::Xdp => F::find_of_frame(self.ctx.cast()),
            _ => F::find_of_skb(self.ctx.cast()),
        };
        match found {
            CONFIRMED => F::flow(key).map(FlowEntry),
            // Another CPU may have confirmed it meanwhile.
            PENDING => F::pending(key).or_else(|| F::flow(key)).map(FlowEntry),
            _ => None,
        }
    }

    #[inline(always)]
    fn route_of_flow(&self, ifindex: u32, flow: &FlowEntry<F>, size: u32) -> Option<&'static Route<F>> {
        self.marked_route(ifindex, flow, size)
    }

    #[inline(always)]
    fn defers(&self) -> bool {
        matches!(self.layer, Layer::Tc(_))
    }

    #[inline(always)]
    fn attempt(&self, _: &mut FlowDraft<F>, claim: Claim) -> Attempt {
        const OPENED: u32 = Attempt::Opened as u32;
        const TAKEN: u32 = Attempt::Taken as u32;
        let attempt = match self.layer {
            Layer::Xdp => F::attempt_of_frame(self.ctx.cast(), claim as u32),
            _ => F::attempt_of_skb(self.ctx.cast(), claim as u32),
        };
        match attempt {
            OPENED => Attempt::Opened,
            TAKEN => Attempt::Taken,
            _ => Attempt::NoRoom,
        }
    }

    #[inline(always)]
    fn confirm_flow(&self, _: &mut FlowDraft<F>) -> bool {
        F::confirm() != 0
    }

    #[inline(always)]
    fn open_flow(&self, _: &mut FlowDraft<F>) -> Option<DropReason> {
        DropReason::of_flow(match self.layer {
            Layer::Xdp => F::open_flow_of_frame(self.ctx.cast()),
            _ => F::open_flow_of_skb(self.ctx.cast()),
        })
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { bpf_jiffies64() as u32 }
    }

    #[inline(always)]
    fn count(&self, counter: Counter) {
        count(counter);
    }

    #[inline(always)]
    fn drop(&self, reason: DropReason) -> Verdict {
        match self.layer {
            Layer::Xdp | Layer::Tc(_) => report::rejected::<F>(reason.counter()),
            // A socket event has no packet to report.
            Layer::Socket { .. } => count(reason.counter()),
        }
        Verdict::Drop
    }

    #[inline(always)]
    fn reply(&self, counter: Counter, verdict: Verdict) -> Verdict {
        if !matches!(self.layer, Layer::Xdp) {
            report::rejected::<F>(counter);
        }
        verdict
    }
}
