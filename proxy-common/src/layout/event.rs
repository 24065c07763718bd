//! Events for `proxy-agent monitor` and `proxy-agent top`.
//!
//! * `watches`: ARRAY, written by these commands. The first element has the time at which the last watch ends;
//!   without a watch the programs read only this element. Each of the others is a watch.
//! * `watch_rings`: ARRAY_OF_MAPS with a ring buffer of [`Event`]s for each watch with events.
//! * `watch_rates`: ARRAY_OF_MAPS with an LRU_PERCPU_HASH of [`RateKey`]s for each watch with rates.
//! * `watch_reports`: PERCPU_ARRAY of [`Reported`] for each watch.
//! * `event`: PERCPU_ARRAY: scratch memory for an event, one element for packets and one for sockets.

use super::counter::Counter;
use crate::{Family, V4, V6};

/// An address of either family: IPv4 in the first word.
pub type Words = [u32; 4];

/// A family whose addresses fit in [`Words`].
pub trait EventFamily: Family {
    /// 4 or 6.
    const VERSION: u8;
    /// The address in words.
    fn words(addr: &Self::Addr) -> Words;
    /// The reverse.
    fn of_words(words: Words) -> Self::Addr;
}

impl EventFamily for V4 {
    const VERSION: u8 = 4;

    #[inline(always)]
    fn words(addr: &u32) -> Words {
        [*addr, 0, 0, 0]
    }

    #[inline(always)]
    fn of_words([addr, ..]: Words) -> u32 {
        addr
    }
}

impl EventFamily for V6 {
    const VERSION: u8 = 6;

    #[inline(always)]
    fn words(addr: &[u32; 4]) -> Words {
        *addr
    }

    #[inline(always)]
    fn of_words(words: Words) -> [u32; 4] {
        words
    }
}

/// A decision: the index of the [`Counter`] that counts a reject or drop, or [`TRANSLATED`].
pub type Decision = u8;

/// A new flow, or a socket that got an endpoint.
pub const TRANSLATED: Decision = 63;

const _: () = assert!(Counter::COUNT < TRANSLATED as usize);

/// A decision. Ports in network byte order; unknown fields are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// Time by `CLOCK_MONOTONIC`, in nanoseconds.
    pub time: u64,
    /// Decision, frontend and endpoint.
    pub key: RateKey,
    /// The client's address, before translation.
    pub client: Words,
    /// The source that the endpoint sees.
    pub source: Words,
    /// The client's port.
    pub client_port: u16,
    /// The source's port.
    pub source_port: u16,
    /// For a socket: process id.
    pub pid: u32,
    /// For a socket: name of the process.
    pub comm: [u8; 16],
}

/// The filter of a watch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct EventFilter {
    /// One bit per [`Decision`].
    pub decisions: u64,
    /// Client, frontend or endpoint, if `version` is not 0.
    pub address: Words,
    /// 0: any address.
    pub version: u32,
    /// Maximum number of events that each CPU reports in a window of [`WINDOW_BITS`].
    pub limit: u32,
    /// Port of client, frontend or endpoint; 0: any.
    pub port: u16,
    /// 0: any.
    pub protocol: u8,
    /// 1: [`RateKey`]s are counted, and no events reported.
    pub counts: u8,
    /// Token of the watch: differs from that of another watch.
    pub token: u32,
}

impl EventFilter {
    /// Whether the watch reports or counts an event.
    #[inline(always)]
    pub fn matches(&self, event: &Event) -> bool {
        let key = &event.key;
        if self.decisions >> (key.decision & TRANSLATED) & 1 == 0 {
            return false;
        }
        if self.protocol != 0 && self.protocol != key.protocol {
            return false;
        }
        if self.port != 0
            && self.port != event.client_port
            && self.port != key.frontend_port
            && self.port != key.endpoint_port
        {
            return false;
        }
        self.version == 0
            || self.version == key.version as u32
                && (V6::same(&self.address, &event.client)
                    || V6::same(&self.address, &key.frontend)
                    || V6::same(&self.address, &key.endpoint))
    }
}

/// A window of time is so many bits of nanoseconds: 1.07 s.
pub const WINDOW_BITS: u32 = 30;

/// Per CPU: how many events were reported in a window of time, and how many were lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Reported {
    /// Number of the window.
    pub window: u64,
    /// Events that were reported in it.
    pub count: u64,
    /// Lost events since the beginning: too many in a window, or the reader is slow.
    pub lost: u64,
}

/// Key of the counters for rates. The value is a `u64`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct RateKey {
    /// The frontend.
    pub frontend: Words,
    /// The endpoint; zero without one.
    pub endpoint: Words,
    /// The frontend's port.
    pub frontend_port: u16,
    /// The endpoint's port.
    pub endpoint_port: u16,
    /// The decision.
    pub decision: Decision,
    /// 4 or 6.
    pub version: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// 1: for sockets, 0: for packets.
    pub is_socket: u8,
}

/// Maximum number of watches at a time.
pub const WATCHES: u32 = 8;

/// An element of `watches`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Watch {
    /// Expiry by `CLOCK_MONOTONIC`, in nanoseconds; 0: no watch. The command renews it, so that the watch of a
    /// killed command expires.
    pub until: u64,
    /// The filter.
    pub filter: EventFilter,
}

/// Bytes of a ring buffer: two thousand events.
pub const RING_BYTES: u32 = 1 << 18;

/// Maximum number of pairs of frontend and endpoint that are counted separately.
pub const RATES: u32 = 1 << 14;

/// Arguments of the socket programs beside two addresses: ports in network byte order, protocol and decision in
/// one word, because a function in the kernel takes five words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketDecision {
    /// The frontend's port.
    pub frontend_port: u16,
    /// The endpoint's port; 0: none.
    pub endpoint_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// The decision.
    pub decision: Decision,
    /// 4 or 6.
    pub version: u8,
}

impl SocketDecision {
    /// Encodes it as a word.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.frontend_port as u64
            | (self.endpoint_port as u64) << 16
            | (self.protocol as u64) << 32
            | (self.decision as u64) << 40
            | (self.version as u64) << 48
    }

    /// Decodes it from a word.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self {
            frontend_port: word as u16,
            endpoint_port: (word >> 16) as u16,
            protocol: (word >> 32) as u8,
            decision: (word >> 40) as u8,
            version: (word >> 48) as u8,
        }
    }
}

/// Half of an address, as an argument.
#[inline(always)]
pub const fn halves(words: &Words) -> [u64; 2] {
    [words[0] as u64 | (words[1] as u64) << 32, words[2] as u64 | (words[3] as u64) << 32]
}

/// The reverse.
#[inline(always)]
pub const fn from_halves(low: u64, high: u64) -> Words {
    [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32]
}

super::plain!(Event, EventFilter, Reported, RateKey, Watch);

const _: () = {
    assert!(size_of::<Event>() == 104 && size_of::<Watch>() == 48 && size_of::<EventFilter>() == 40);
    assert!(size_of::<Reported>() == 24 && size_of::<RateKey>() == 40);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_asks_for_all_that_is_given() {
        let key = RateKey {
            frontend: [2, 0, 0, 0],
            endpoint: [3, 0, 0, 0],
            frontend_port: 20,
            endpoint_port: 30,
            decision: TRANSLATED,
            version: 4,
            protocol: 6,
            is_socket: 0,
        };
        let event = Event { key, client: [1, 0, 0, 0], client_port: 10, ..Event::default() };
        let all = EventFilter { decisions: u64::MAX, ..EventFilter::default() };
        for (filter, expected) in [
            (all, true),
            (EventFilter { decisions: 1 << TRANSLATED, ..all }, true),
            (EventFilter { decisions: !(1 << TRANSLATED), ..all }, false),
            (EventFilter { port: 10, ..all }, true),
            (EventFilter { port: 30, protocol: 6, ..all }, true),
            (EventFilter { port: 30, protocol: 17, ..all }, false),
            (EventFilter { port: 40, ..all }, false),
            (EventFilter { version: 4, address: [1, 0, 0, 0], ..all }, true),
            (EventFilter { version: 4, address: [3, 0, 0, 0], ..all }, true),
            (EventFilter { version: 6, address: [3, 0, 0, 0], ..all }, false),
            (EventFilter { version: 4, address: [4, 0, 0, 0], ..all }, false),
        ] {
            assert_eq!(filter.matches(&event), expected, "{filter:?}");
        }
    }

    #[test]
    fn words_carry_what_was_put_in() {
        let decision = SocketDecision {
            frontend_port: 0xf001,
            endpoint_port: 0xf002,
            protocol: 17,
            decision: TRANSLATED,
            version: 6,
        };
        assert_eq!(SocketDecision::from_word(decision.word()), decision);
        let words = [1, 0xffff_ffff, 3, 0x8000_0000];
        let [low, high] = halves(&words);
        assert_eq!(from_halves(low, high), words);
    }
}
