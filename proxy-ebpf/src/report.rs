//! Events for `proxy-agent monitor` and `proxy-agent top`: new flows, rejects and drops, and sockets that get
//! an endpoint. Without a watch that costs one load and one branch there, and nothing for packets of
//! established flows.

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps, LruPerCpuHashMap, PerCpuArray, RingBuf},
    helpers::generated::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::btf_map,
};
use proxy_common::{
    V4, V6,
    layout::{
        counter::Counter,
        event::{
            Event, EventFamily, RATES, RING_BYTES, RateKey, SocketDecision, TRANSLATED, WATCHES, WINDOW_BITS,
            from_halves, halves,
        },
        maps::{DeclaredMap, table},
        socket::SocketPeer,
    },
};

use crate::{
    family::KernelFamily,
    maps::indexed,
    scratch::{draft, scratch},
    settings::HAS_CURRENT,
    tables::count_index,
};

#[btf_map(name = "watches")]
static WATCH: indexed!(Array, table::Watches) = Array::new();
#[btf_map(name = "watch_rings")]
static WATCH_RINGS: ArrayOfMaps<RingBuf<Event, { RING_BYTES as usize }>, { table::WatchRings::ENTRIES }> =
    ArrayOfMaps::new();
#[btf_map(name = "watch_rates")]
static WATCH_RATES: ArrayOfMaps<
    LruPerCpuHashMap<RateKey, u64, { RATES as usize }>,
    { table::WatchRates::ENTRIES },
> = ArrayOfMaps::new();
#[btf_map(name = "watch_reports")]
static WATCH_REPORTS: indexed!(PerCpuArray, table::WatchReports) = PerCpuArray::new();
#[btf_map(name = "event")]
static EVENT: indexed!(PerCpuArray, table::Event) = PerCpuArray::new();

/// Elements of `event`. Packet programs run with bottom halves off. Socket programs may interrupt each other
/// where the kernel is preemptible; then an event may be wrong.
const PACKET: u32 = 0;
const SOCKET: u32 = 1;

/// Whether a watch exists. The watch of a killed command counts until the agent or the next command removes it.
#[inline(always)]
fn is_watched() -> bool {
    match WATCH.get_ptr(0) {
        // SAFETY: the kernel gave the pointer; one word.
        Some(watch) => unsafe { (&raw const (*watch).until).read_volatile() != 0 },
        None => false,
    }
}

/// Reports that the flow of the CPU's draft was opened.
#[inline(always)]
pub(crate) fn flow_opened<F: KernelFamily>() {
    if is_watched() {
        report_flow(F::VERSION as u32);
    }
}

/// Counts and reports why the packet in the CPU's scratch is rejected or dropped.
#[inline(always)]
pub(crate) fn rejected<F: KernelFamily>(counter: Counter) {
    packet_rejected(counter as u32, F::VERSION as u32);
}

/// Reports that a socket got an endpoint; ports in network byte order.
#[inline(always)]
pub(crate) fn socket_chosen<F: KernelFamily>(
    addr: &F::Addr,
    frontend_port: u16,
    protocol: u8,
    peer: &SocketPeer<F>,
) {
    if !is_watched() {
        return;
    }
    let decision = SocketDecision {
        frontend_port,
        endpoint_port: peer.port,
        protocol,
        decision: TRANSLATED,
        version: F::VERSION,
    };
    let ([a, b], [c, d]) = (halves(&F::words(addr)), halves(&F::words(&peer.addr)));
    report_socket(a, b, c, d, decision.word());
}

/// Counts and reports why a socket is rejected.
#[inline(always)]
pub(crate) fn socket_rejected<F: KernelFamily>(
    counter: Counter,
    addr: &F::Addr,
    frontend_port: u16,
    protocol: u8,
) {
    count_index(counter as u32);
    if !is_watched() {
        return;
    }
    let decision = SocketDecision {
        frontend_port,
        endpoint_port: 0,
        protocol,
        decision: counter as u8,
        version: F::VERSION,
    };
    let [a, b] = halves(&F::words(addr));
    report_socket(a, b, 0, 0, decision.word());
}

// Global functions, which the verifier checks once for all callers.

/// Counts why the packet in the CPU's scratch of a family (4 or 6) is rejected or dropped, and reports it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn packet_rejected(counter: u32, version: u32) -> u64 {
    count_index(counter);
    if is_watched() {
        if version == V4::VERSION as u32 {
            fill_reject::<V4>(counter);
        } else {
            fill_reject::<V6>(counter);
        }
        report(PACKET);
    }
    0
}

/// Reports the flow that the CPU's draft of a family has.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn report_flow(version: u32) -> u64 {
    if version == V4::VERSION as u32 {
        fill_flow::<V4>();
    } else {
        fill_flow::<V6>();
    }
    report(PACKET)
}

/// Reports the decision for a socket. Two addresses, each in two words: frontend and endpoint; and a
/// [`SocketDecision::word`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn report_socket(
    frontend_low: u64,
    frontend_high: u64,
    endpoint_low: u64,
    endpoint_high: u64,
    word: u64,
) -> u64 {
    let what = SocketDecision::from_word(word);
    let Some(event) = event(SOCKET) else { return 0 };
    *event = Event::default();
    event.key.frontend = from_halves(frontend_low, frontend_high);
    event.key.endpoint = from_halves(endpoint_low, endpoint_high);
    event.key.frontend_port = what.frontend_port;
    event.key.endpoint_port = what.endpoint_port;
    event.key.decision = what.decision;
    event.key.version = what.version;
    event.key.protocol = what.protocol;
    event.key.is_socket = 1;
    if HAS_CURRENT.load() != 0 {
        // SAFETY: no arguments; as many bytes as the name has room for.
        unsafe {
            event.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
            bpf_get_current_comm((&raw mut event.comm).cast(), size_of_val(&event.comm) as u32);
        }
    }
    report(SOCKET)
}

/// Reports the CPU's event to each watch whose filter matches.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn report(slot: u32) -> u64 {
    let Some(event) = event(slot) else { return 0 };
    // SAFETY: no arguments.
    event.time = unsafe { bpf_ktime_get_ns() };
    for index in 0..WATCHES {
        report_to(index, slot);
    }
    0
}

/// Reports this element of `event` to one watch, if that has it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn report_to(index: u32, slot: u32) -> u64 {
    if let Some(event) = event(slot) {
        report_event(index, event);
    }
    0
}

#[inline(always)]
fn event(slot: u32) -> Option<&'static mut Event> {
    // SAFETY: this CPU's own element; see [`SOCKET`].
    EVENT.get_ptr_mut(slot).map(|event| unsafe { &mut *event })
}

#[inline(always)]
fn fill_reject<F: KernelFamily>(counter: u32) {
    let (Some(event), Some(scratch)) = (event(PACKET), scratch::<F>()) else { return };
    let packet = &scratch.dissected.packet;
    *event = Event::default();
    event.key.frontend = F::words(&packet.tuple.dst);
    event.key.frontend_port = packet.tuple.dport;
    event.key.decision = counter as u8;
    event.key.version = F::VERSION;
    event.key.protocol = packet.protocol;
    event.client = F::words(&packet.tuple.src);
    event.client_port = packet.tuple.sport;
}

#[inline(always)]
fn fill_flow<F: KernelFamily>() {
    let (Some(event), Some(draft)) = (event(PACKET), draft::<F>()) else { return };
    let (key, sent) = (&draft.key, &draft.flow.tuple);
    *event = Event::default();
    event.key.frontend = F::words(&key.tuple.dst);
    event.key.frontend_port = key.tuple.dport;
    event.key.endpoint = F::words(&sent.dst);
    event.key.endpoint_port = sent.dport;
    event.key.decision = TRANSLATED;
    event.key.version = F::VERSION;
    event.key.protocol = key.protocol;
    event.client = F::words(&key.tuple.src);
    event.client_port = key.tuple.sport;
    event.source = F::words(&sent.src);
    event.source_port = sent.sport;
}

#[inline(always)]
fn report_event(index: u32, event: &Event) {
    let Some(watch) = WATCH.get(index + 1) else { return };
    if event.time >= watch.until || !watch.filter.matches(event) {
        return;
    }
    if watch.filter.counts != 0 {
        if let Some(rates) = WATCH_RATES.get(index) {
            count(rates, &event.key);
        }
        return;
    }
    let Some(reported) = WATCH_REPORTS.get_ptr_mut(index) else { return };
    // SAFETY: this CPU's own element; a program that interrupts this one may lose a count, no more.
    let reported = unsafe { &mut *reported };
    let window = event.time >> WINDOW_BITS;
    if reported.window != window {
        reported.window = window;
        reported.count = 0;
    }
    if reported.count >= watch.filter.limit as u64 {
        reported.lost += 1;
        return;
    }
    reported.count += 1;
    if let Some(ring) = WATCH_RINGS.get(index)
        && ring.output(event, 0).is_err()
    {
        reported.lost += 1;
    }
}

#[inline(always)]
fn count(rates: &LruPerCpuHashMap<RateKey, u64, { RATES as usize }>, key: &RateKey) {
    if let Some(rate) = rates.get_ptr_mut(key) {
        // SAFETY: this CPU's own value; a program that interrupts this one may lose a count, no more.
        unsafe { *rate += 1 };
    } else {
        // If the map is full, the kernel evicts the least recently used entry.
        let _ = rates.insert(key, 1u64, 0);
    }
}
