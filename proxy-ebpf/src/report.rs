//! Where `proxy-agent monitor` and `proxy-agent top` look on: functions that the kernel can attach programs to (`fentry`, `fexit`), by their
//! names. While nobody looks on they cost a call, and only where a packet or socket is refused or a socket gets an endpoint.
//! New flows are seen at `open_flow4_of_skb` and `open_flow6_of_skb`, which are functions anyway.

use proxy_common::layout::{
    counter::Counter,
    event::{SocketDecision, TRANSLATED, halves},
    socket::SocketPeer,
};

use crate::{
    family::KernelFamily,
    tables::count_index,
};

/// Counts why the packet in the CPU's scratch of a family (4 or 6) is refused or dropped.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn packet_refused(counter: u32, version: u32) -> u64 {
    count_index(counter);
    // An argument that is not used would not be passed.
    version as u64
}

/// What was decided of a socket; counts what is no translation. Two addresses, each in two words: frontend and endpoint; and a
/// [`SocketDecision::word`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn socket_decided(
    frontend_low: u64,
    frontend_high: u64,
    endpoint_low: u64,
    endpoint_high: u64,
    word: u64,
) -> u64 {
    let decision = SocketDecision::from_word(word).decision;
    if decision != TRANSLATED {
        count_index(decision as u32);
    }
    // As above.
    frontend_low ^ frontend_high ^ endpoint_low ^ endpoint_high
}

/// See [`packet_refused`].
#[inline(always)]
pub(crate) fn refused<F: KernelFamily>(counter: Counter) {
    packet_refused(counter as u32, F::VERSION as u32);
}

/// A socket got an endpoint; ports in network byte order.
#[inline(always)]
pub(crate) fn socket_chosen<F: KernelFamily>(
    addr: &F::Addr,
    frontend_port: u16,
    protocol: u8,
    peer: &SocketPeer<F>,
) {
    let decision = SocketDecision {
        frontend_port,
        endpoint_port: peer.port,
        protocol,
        decision: TRANSLATED,
        version: F::VERSION,
    };
    let ([a, b], [c, d]) = (halves(&F::words(addr)), halves(&F::words(&peer.addr)));
    socket_decided(a, b, c, d, decision.word());
}

/// A socket is refused.
#[inline(always)]
pub(crate) fn socket_refused<F: KernelFamily>(
    counter: Counter,
    addr: &F::Addr,
    frontend_port: u16,
    protocol: u8,
) {
    let decision = SocketDecision {
        frontend_port,
        endpoint_port: 0,
        protocol,
        decision: counter as u8,
        version: F::VERSION,
    };
    let [a, b] = halves(&F::words(addr));
    socket_decided(a, b, 0, 0, decision.word());
}
