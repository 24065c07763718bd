//! The tc programs: parse, decide, apply. They end with "next program", so that a CNI's programs still run.

mod apply;
mod checksums;
mod fast;
mod fragment_queue;
mod in_place;
mod outer;
mod slow_path;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT},
    helpers::generated::bpf_skb_pull_data,
    programs::TcContext,
};
use proxy_common::{
    V4, V6,
    decide::{
        self, Translation, Verdict,
        fast_path::{self, FastPath},
    },
    layout::{flow::FlowKey, set::Scope},
    packet::{ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, LONGEST_IPV4, Packet, Part, TCP, Unparsed, VLAN_ID},
};

pub(crate) use self::{
    apply::apply,
    slow_path::{read, slow_path},
};
use self::{checksums::TcFamily, fast::take_fast_path};
use crate::{
    context::{Bounds, Skb},
    family::KernelFamily,
    log::LogEvent,
    maps::interface,
    reject::{GeneratedReply, ReplyRequest, reply},
    report,
    rewrite::LONGEST_MASK,
    scratch::{Scratch, draft, scratch},
    tables::{FlowEntry, Kernel},
};

/// The same value for TCX (next program) and clsact (as if the filter did not match).
const NEXT: i32 = -1;

/// `skb->pkt_type` of a frame for another host.
const PACKET_OTHERHOST: u32 = 3;

/// `skb_shinfo(skb)->gso_size` of a packet whose segments differ in size.
pub(crate) const GSO_BY_FRAGS: u32 = 0xffff;

/// Longest headers up to the ports and TCP's flags: IPv6, or IPv4 with all options.
const LONGEST: usize = ETHERNET + LONGEST_IPV4 + TCP;

/// The core's function for a hook.
pub(crate) trait Hook {
    /// The packet is on its way out: a generated reply goes in.
    const IS_LEAVING: bool;
    /// The hook may see frames for other hosts: an interface in promiscuous mode receives them all.
    const MAY_OVERHEAR: bool;
    /// Whether packets here may have `CHECKSUM_COMPLETE`. Packets from a pod do not: no device computed it for
    /// packets of the pod's own stack, and the kernel clears it for packets that the pod forwards
    /// (`skb_forward_csum`). Nor do replies that leave by an uplink, which are from pods or processes of this
    /// node.
    const MAY_BE_CHECKSUM_COMPLETE: bool;

    fn decide<F: KernelFamily>(
        kernel: &Kernel,
        packet: &Packet<F>,
        ifindex: u32,
        out: &mut Translation<F>,
    ) -> Verdict;

    /// The core's fast path for the hook.
    fn fast_path<F: KernelFamily>(
        kernel: &Kernel,
        packet: &Packet<F>,
        key: &mut FlowKey<F>,
    ) -> FastPath<FlowEntry<F>>;
}

macro_rules! hooks {
    ($($hook:ident: leaving $is_leaving:literal, overhearing $may_overhear:literal, checksum_complete $may_be_checksum_complete:literal, |$kernel:ident, $packet:ident, $ifindex:ident, $out:ident| $decide:expr, |$key:ident| $fast_path:expr;)*) => { $(
        pub(crate) struct $hook;

        impl Hook for $hook {
            const IS_LEAVING: bool = $is_leaving;
            const MAY_OVERHEAR: bool = $may_overhear;
            const MAY_BE_CHECKSUM_COMPLETE: bool = $may_be_checksum_complete;

            #[inline(always)]
            fn decide<F: KernelFamily>(
                $kernel: &Kernel,
                $packet: &Packet<F>,
                $ifindex: u32,
                $out: &mut Translation<F>,
            ) -> Verdict {
                $decide
            }

            #[inline(always)]
            fn fast_path<F: KernelFamily>(
                $kernel: &Kernel,
                $packet: &Packet<F>,
                $key: &mut FlowKey<F>,
            ) -> FastPath<FlowEntry<F>> {
                $fast_path
            }
        }
    )* };
}

hooks! {
    PodIngress: leaving false, overhearing false, checksum_complete false, |kernel, packet, ifindex, out| decide::pod_ingress(kernel, packet, ifindex, out), |key| fast_path::pod_ingress(kernel, packet, key);
    UplinkIngress: leaving false, overhearing true, checksum_complete true, |kernel, packet, ifindex, out| decide::uplink_ingress(kernel, packet, ifindex, out), |key| fast_path::uplink_ingress(kernel, packet, key);
    PodEgress: leaving true, overhearing false, checksum_complete true, |kernel, packet, _ifindex, out| decide::pod_egress(kernel, packet, out), |key| fast_path::pod_egress(kernel, packet, key);
    UplinkEgress: leaving true, overhearing false, checksum_complete false, |kernel, packet, _ifindex, out| decide::uplink_egress(kernel, packet, out), |key| fast_path::uplink_egress(kernel, packet, key);
}

/// Global functions of a program: the verifier checks each once, not for each call with the state of the
/// caller.
#[derive(Clone, Copy)]
pub(crate) struct Steps {
    /// [`packet_path`].
    pub(crate) packet_path: extern "C" fn(*mut __sk_buff) -> u64,
    /// [`slow_path::read`].
    pub(crate) read: extern "C" fn(*mut __sk_buff) -> u64,
    /// [`slow_path::slow_path`].
    pub(crate) slow_path: extern "C" fn(*mut __sk_buff) -> u64,
    /// [`new_flow`].
    pub(crate) new_flow: extern "C" fn(*mut __sk_buff) -> u64,
    /// [`open`].
    pub(crate) open: extern "C" fn(*mut __sk_buff) -> u64,
    /// [`apply::apply`].
    pub(crate) apply: extern "C" fn(*mut __sk_buff) -> u64,
}

/// Runs a hook on a device whose frames have `LINK` bytes before the network header, with the steps for each family.
#[inline(always)]
pub(crate) fn run<H: Hook, const LINK: usize>(ctx: &TcContext, [v4, v6]: [Steps; 2]) -> i32 {
    let skb = ctx.skb.skb;
    if LINK == 0 && !H::IS_LEAVING && outer::has_outer_header(ctx) {
        return outer::receive_without(ctx);
    }
    match u16::from_be(Skb(skb).protocol() as u16) {
        ETHERTYPE_IPV4 if V4::is_served() => family::<V4, H, LINK>(ctx, v4),
        ETHERTYPE_IPV6 if V6::is_served() => family::<V6, H, LINK>(ctx, v6),
        _ => NEXT,
    }
}

// The steps for a packet run one after another, not nested: a chain of calls has 512 bytes of stack.
#[inline(always)]
fn family<F: KernelFamily + TcFamily, H: Hook, const LINK: usize>(ctx: &TcContext, steps: Steps) -> i32 {
    if let Some(result) = take_fast_path::<F, H, LINK>(ctx) {
        return result;
    }
    let skb = ctx.skb.skb;
    let mut outcome = Outcome((steps.packet_path)(skb));
    if outcome.is(Outcome::SLOW_PATH) {
        (steps.read)(skb);
        outcome = Outcome((steps.slow_path)(skb));
    }
    // Flows are opened by requests, which come in.
    if !H::IS_LEAVING && outcome.is(Outcome::NEW_FLOW) {
        outcome = Outcome((steps.new_flow)(skb));
    }
    if !H::IS_LEAVING && outcome.is(Outcome::OPEN) {
        outcome = Outcome((steps.open)(skb));
    }
    if outcome.is(Outcome::APPLY) {
        outcome = Outcome((steps.apply)(skb));
    }
    if let Some(request) = outcome.reply_request() {
        return reply::<F, LINK>(skb, request, H::IS_LEAVING);
    }
    LogEvent::of(outcome.log_event()).log::<F>(ctx);
    outcome.result()
}

/// Result of a step, in one word: a value returned in a register needs no stack.
///
/// From the lowest bit on: 32 bits for the kernel, or of a reply 8 for the packet's protocol and 16 for the
/// MTU; 8 for a [`LogEvent`]; 8 for a [`GeneratedReply`] or the next step; 16 for the offset of the packet's
/// transport header.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Outcome(u64);

impl Outcome {
    /// Next step: parse on the slow path.
    const SLOW_PATH: Self = Self(0xff << 40);
    /// Next step: choose a backend.
    const NEW_FLOW: Self = Self(0xfc << 40);
    /// Next step: open the flow in the CPU's flow draft, with the parameters in [`Scratch`].
    const OPEN: Self = Self(0xfd << 40);
    /// Next step: translate and send by the verdict in the CPU's [`Scratch`].
    const APPLY: Self = Self(0xfe << 40);

    #[inline(always)]
    fn with(result: i32, log_event: LogEvent) -> Self {
        Self(result as u32 as u64 | (log_event.bits() as u64) << 32)
    }

    /// The packet gets a reply.
    #[inline(always)]
    fn with_reply<F: KernelFamily>(reply: GeneratedReply, packet: &Packet<F>, mtu: u32) -> Self {
        let low = packet.protocol as u64 | (mtu as u16 as u64) << 8;
        Self(low | (reply as u64) << 40 | (packet.transport as u64) << 48)
    }

    #[inline(always)]
    fn is(self, other: Self) -> bool {
        self.0 == other.0
    }

    #[inline(always)]
    fn result(self) -> i32 {
        self.0 as u32 as i32
    }

    #[inline(always)]
    fn log_event(self) -> u8 {
        (self.0 >> 32) as u8
    }

    #[inline(always)]
    fn reply_request(self) -> Option<ReplyRequest> {
        let reply = match (self.0 >> 40) as u8 {
            1 => GeneratedReply::Unreachable,
            2 => GeneratedReply::Reset,
            3 => GeneratedReply::Echo,
            4 => GeneratedReply::TimeExceeded,
            5 => GeneratedReply::TooBig,
            _ => return None,
        };
        // The longest headers end before. Without the mask old verifiers assume any offset; without the
        // `black_box` the compiler, which knows the bound, would drop the mask.
        let transport = core::hint::black_box((self.0 >> 48) as u32) & LONGEST_MASK as u32;
        Some(ReplyRequest { reply, protocol: self.0 as u8, mtu: (self.0 >> 8) as u16, transport })
    }
}

/// Calls the core for the packet in `scratch`.
#[inline(always)]
fn decide<F: KernelFamily + TcFamily, H: Hook, const LINK: usize>(
    skb: *mut __sk_buff,
    scratch: &mut Scratch<F>,
) -> Outcome {
    let Scratch { dissected, verdict, out, .. } = scratch;
    let packet = &dissected.packet;
    out.begin();
    let decided = H::decide(&Kernel::of_skb(skb, LINK), packet, Skb(skb).ifindex(), out);
    *verdict = decided;
    Outcome::of(decided, packet, out)
}

impl Outcome {
    /// The outcome for a packet with this verdict.
    #[inline(always)]
    fn of<F: KernelFamily>(decided: Verdict, packet: &Packet<F>, out: &Translation<F>) -> Self {
        match decided {
            Verdict::Pass => Outcome::with(NEXT, LogEvent::Nothing),
            Verdict::Drop => Outcome::with(TC_ACT_SHOT, LogEvent::dropped::<F>(&packet.tuple)),
            Verdict::NewFlow => Outcome::NEW_FLOW,
            Verdict::Open => Outcome::OPEN,
            Verdict::ToStack | Verdict::Redirect | Verdict::Divert | Verdict::Bridge | Verdict::Hairpin => {
                Outcome::APPLY
            }
            request => Outcome::with_reply(GeneratedReply::of(request, packet), packet, out.route.mtu),
        }
    }
}

/// Chooses a backend for the packet in the CPU's scratch.
#[inline(always)]
pub(crate) fn new_flow<F: KernelFamily, const LINK: usize>(skb: *mut __sk_buff, scope: Scope) -> u64 {
    let next = Outcome::with(NEXT, LogEvent::Nothing);
    let Some(Scratch { dissected, verdict, out, .. }) = scratch::<F>() else { return next.0 };
    let packet = &dissected.packet;
    *verdict = decide::new_flow(&Kernel::of_skb(skb, LINK), packet, Skb(skb).ifindex(), scope, out);
    Outcome::of(*verdict, packet, out).0
}

/// Opens the flow of the packet in the CPU's scratch.
#[inline(always)]
pub(crate) fn open<F: KernelFamily>(skb: *mut __sk_buff) -> u64 {
    let next = Outcome::with(NEXT, LogEvent::Nothing);
    let (Some(Scratch { dissected, verdict, out, .. }), Some(draft)) = (scratch::<F>(), draft::<F>()) else {
        return next.0;
    };
    let after = out.opened;
    // The decision left the flow in the draft.
    *verdict = decide::opened(&Kernel::of_skb(skb, 0), draft, after, out);
    // A drop is reported where it is counted.
    if !matches!(*verdict, Verdict::Drop) {
        report::flow_opened::<F>();
    }
    Outcome::of(*verdict, &dissected.packet, out).0
}

/// The packet path without the slow path: nearly all packets that the fast path leaves.
#[inline(always)]
pub(crate) fn packet_path<F: KernelFamily + TcFamily, H: Hook, const LINK: usize>(ctx: &TcContext) -> u64 {
    parse_and_decide::<F, H, LINK>(ctx).0
}

#[inline(always)]
fn parse_and_decide<F: KernelFamily + TcFamily, H: Hook, const LINK: usize>(ctx: &TcContext) -> Outcome {
    let next = Outcome::with(NEXT, LogEvent::Nothing);
    if !is_for_us::<H>(ctx.skb.skb) {
        return next;
    }
    let Some(scratch) = scratch::<F>() else { return next };
    match parse::<F, LINK>(ctx) {
        Ok(packet) => scratch.dissected.packet = packet,
        Err(Unparsed::SlowPath) => return Outcome::SLOW_PATH,
        Err(Unparsed::NotOurs | Unparsed::Short) => return next,
    }
    scratch.dissected.part = Part::Plain;
    decide::<F, H, LINK>(ctx.skb.skb, scratch)
}

/// Whether the program handles the frame. It skips frames for other hosts, which interfaces in promiscuous mode
/// see, and those of a VLAN, which come in again at the VLAN's own interface. A tag with number 0 has a
/// priority and no VLAN.
#[inline(always)]
fn is_for_us<H: Hook>(skb: *mut __sk_buff) -> bool {
    let skb = Skb(skb);
    let (ifindex, pkt_type) = (skb.ifindex(), skb.pkt_type());
    let in_vlan = skb.vlan_present() != 0 && skb.vlan_tci() & VLAN_ID as u32 != 0;
    !in_vlan && (!H::MAY_OVERHEAR || pkt_type != PACKET_OTHERHOST || is_bridge_port(ifindex))
}

/// The same from the skb alone: false also for a priority tag, and for frames that a bridge port receives.
#[inline(always)]
fn is_surely_for_us<H: Hook>(skb: *mut __sk_buff) -> bool {
    let (pkt_type, in_vlan) = (Skb(skb).pkt_type(), Skb(skb).vlan_present() != 0);
    !in_vlan && (!H::MAY_OVERHEAR || pkt_type != PACKET_OTHERHOST)
}

/// Whether the interface is a port of a bridge: there every frame is for another host, including those for the
/// bridge.
#[inline(always)]
fn is_bridge_port(ifindex: u32) -> bool {
    interface(ifindex).is_some_and(|device| device.bridge != 0)
}

#[inline(always)]
fn bounds(ctx: &TcContext) -> Bounds {
    Skb(ctx.skb.skb).bounds()
}

/// Whether it is a GSO packet of SCTP, whose linear part ends behind the SCTP header. Each buffer of its
/// `frag_list` is a segment (`GSO_BY_FRAGS`): pulling bytes of the first one would break the segmentation, and
/// a receiver that takes the packet whole (`sctp_inq_pop`) would lose a chunk.
#[inline(always)]
fn is_gso_by_frags(skb: *mut __sk_buff) -> bool {
    Skb(skb).gso_size() == GSO_BY_FRAGS
}

/// Parses the packet; first pulls headers that lie outside the linear part.
#[inline(always)]
fn parse<F: KernelFamily, const LINK: usize>(ctx: &TcContext) -> Result<Packet<F>, Unparsed> {
    let parsed = bounds(ctx).parse(LINK);
    if !matches!(parsed, Err(Unparsed::Short)) {
        return parsed;
    }
    if is_gso_by_frags(ctx.skb.skb) {
        return Err(Unparsed::SlowPath);
    }
    let length = ctx.len();
    let wanted = if length < LONGEST as u32 { length } else { LONGEST as u32 };
    // SAFETY: the context, and a length within the packet.
    if unsafe { bpf_skb_pull_data(ctx.skb.skb, wanted) } != 0 {
        return Err(Unparsed::Short);
    }
    bounds(ctx).parse(LINK)
}
