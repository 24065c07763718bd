//! The programs of `proxy-agent monitor` and `proxy-agent top`, in an object of their own. The command that looks on attaches them to
//! functions of the running programs (`report.rs`), and the kernel detaches them when it ends, however it ends.
//!
//! | program | at |
//! |---|---|
//! | `flow_opened4`, `flow_opened6` | `fexit` of `open_flow4_of_skb`, `open_flow6_of_skb` |
//! | `packet_refused` | `fentry` of `packet_refused` |
//! | `socket_decided` | `fentry` of `socket_decided` |
#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "entry points are `pub`, and no library"
)]

use aya_ebpf::{
    btf_maps::{Array, LruPerCpuHashMap, PerCpuArray, RingBuf},
    helpers::generated::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::btf_map,
};
use proxy_common::{
    V4, V6,
    decide::Scratch,
    layout::{
        event::{
            Event, EventFamily, EventFilter, RateKey, Reported, SocketDecision, TRANSLATED, WINDOW_BITS,
            from_halves,
        },
        flow::Pair,
    },
};

/// Room for two thousand events.
const RING_BYTES: usize = 1 << 18;
/// Frontends with their endpoints that are counted apart.
const RATES_ENTRIES: usize = 1 << 15;

#[btf_map(name = "filter")]
static FILTER: Array<EventFilter, 1> = Array::new();
#[btf_map(name = "events")]
static EVENTS: RingBuf<Event, RING_BYTES> = RingBuf::new();
#[btf_map(name = "reported")]
static REPORTED: PerCpuArray<Reported, 1> = PerCpuArray::new();
#[btf_map(name = "rates")]
static RATES: LruPerCpuHashMap<RateKey, u64, RATES_ENTRIES> = LruPerCpuHashMap::new();

// Those of the programs that are looked at.
#[btf_map(name = "pair_v4")]
static PAIR_V4: PerCpuArray<Pair<V4>, 1> = PerCpuArray::new();
#[btf_map(name = "pair_v6")]
static PAIR_V6: PerCpuArray<Pair<V6>, 1> = PerCpuArray::new();
#[btf_map(name = "scratch_v4")]
static SCRATCH_V4: PerCpuArray<Scratch<V4>, 1> = PerCpuArray::new();
#[btf_map(name = "scratch_v6")]
static SCRATCH_V6: PerCpuArray<Scratch<V6>, 1> = PerCpuArray::new();

/// An argument of the function that is looked at; behind the last one, with `fexit`, what it returned.
#[inline(always)]
fn argument(ctx: *mut u64, index: usize) -> u64 {
    // SAFETY: so many words the kernel gives; it checks the index when it loads the program.
    unsafe { ctx.add(index).read_volatile() }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "fexit")]
pub fn flow_opened4(ctx: *mut u64) -> i32 {
    flow_opened(ctx, PAIR_V4.get_ptr(0))
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "fexit")]
pub fn flow_opened6(ctx: *mut u64) -> i32 {
    flow_opened(ctx, PAIR_V6.get_ptr(0))
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "fentry")]
pub fn packet_refused(ctx: *mut u64) -> i32 {
    let decision = argument(ctx, 0);
    if argument(ctx, 1) == V4::VERSION as u64 {
        refused(decision, SCRATCH_V4.get_ptr(0))
    } else {
        refused(decision, SCRATCH_V6.get_ptr(0))
    }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "fentry")]
pub fn socket_decided(ctx: *mut u64) -> i32 {
    let what = SocketDecision::from_word(argument(ctx, 4));
    let mut event = Event {
        frontend: from_halves(argument(ctx, 0), argument(ctx, 1)),
        endpoint: from_halves(argument(ctx, 2), argument(ctx, 3)),
        frontend_port: what.frontend_port,
        endpoint_port: what.endpoint_port,
        decision: what.decision,
        version: what.version,
        protocol: what.protocol,
        is_socket: 1,
        ..Event::default()
    };
    // SAFETY: no arguments; as many bytes as the name has room for.
    unsafe {
        event.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        bpf_get_current_comm((&raw mut event.comm).cast(), size_of_val(&event.comm) as u32);
    }
    report(&mut event)
}

/// The CPU's pair has the flow.
#[inline(always)]
fn flow_opened<F: EventFamily>(ctx: *mut u64, pair: Option<*const Pair<F>>) -> i32 {
    // Else it is dropped, and seen there.
    const OPENED: u32 = 0;
    if argument(ctx, 1) as u32 != OPENED {
        return 0;
    }
    let Some(pair) = pair else { return 0 };
    // SAFETY: this CPU's own element; the program that writes to it waits for this one.
    let (key, sent) = unsafe { (&(*pair).key, &(*pair).flow.tuple) };
    let seen = &key.tuple;
    report(&mut Event {
        client: F::words(&seen.src),
        frontend: F::words(&seen.dst),
        source: F::words(&sent.src),
        endpoint: F::words(&sent.dst),
        client_port: seen.sport,
        frontend_port: seen.dport,
        source_port: sent.sport,
        endpoint_port: sent.dport,
        decision: TRANSLATED,
        version: F::VERSION,
        protocol: key.protocol,
        ..Event::default()
    })
}

/// The CPU's scratch has the packet.
#[inline(always)]
fn refused<F: EventFamily>(decision: u64, scratch: Option<*const Scratch<F>>) -> i32 {
    let Some(scratch) = scratch else { return 0 };
    // SAFETY: as above; of the packet only numbers are read.
    let packet = unsafe { &(*scratch).dissected.packet };
    let tuple = &packet.tuple;
    report(&mut Event {
        client: F::words(&tuple.src),
        frontend: F::words(&tuple.dst),
        client_port: tuple.sport,
        frontend_port: tuple.dport,
        decision: decision as u8,
        version: F::VERSION,
        protocol: packet.protocol,
        ..Event::default()
    })
}

/// Reports what is observed, and counts it.
#[inline(always)]
fn report(event: &mut Event) -> i32 {
    let Some(filter) = FILTER.get(0) else { return 0 };
    // More bits there are not.
    event.decision &= 63;
    if !filter.matches(event) {
        return 0;
    }
    if filter.counts != 0 {
        count(&RateKey::from(&*event));
    }
    if filter.limit == 0 {
        return 0;
    }
    let Some(reported) = REPORTED.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's own element; a program that interrupts this one may lose a count, no more.
    let reported = unsafe { &mut *reported };
    // SAFETY: no arguments.
    event.time = unsafe { bpf_ktime_get_ns() };
    let window = event.time >> WINDOW_BITS;
    if reported.window != window {
        reported.window = window;
        reported.count = 0;
    }
    if reported.count >= filter.limit as u64 {
        reported.lost += 1;
        return 0;
    }
    reported.count += 1;
    if EVENTS.output(&*event, 0).is_err() {
        reported.lost += 1;
    }
    0
}

#[inline(always)]
fn count(key: &RateKey) {
    if let Some(rate) = RATES.get_ptr_mut(key) {
        // SAFETY: this CPU's own value; a program that interrupts this one may lose a count, no more.
        unsafe { *rate += 1 };
    } else {
        // Without room the one that was not used for longest goes.
        let _ = RATES.insert(key, &1, 0);
    }
}

/// Lets the programs call GPL-only helpers.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
