//! The baselines: the cost of the parts that every such program is made of, without our program around them.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use proxy_common::packet::PROTOCOL_TCP;
use proxy_packets::sys::{self, Kind, MapKind};

use crate::asm::{Helper, Program, Size};

/// Sizes of keys and values of the flow maps: the baselines' maps have the same.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) is_v4: bool,
    pub(crate) key: usize,
    pub(crate) value: usize,
}

impl Layout {
    pub(crate) fn map(self, kind: MapKind, max_entries: u32) -> io::Result<OwnedFd> {
        sys::create_map(kind, self.key, self.value, max_entries)
    }

    /// The words of a value, and where they are: it is a multiple of 4 bytes long.
    fn words(self) -> impl Iterator<Item = (Size, i16)> {
        let value = self.value;
        (0..value)
            .step_by(8)
            .map(move |at| (if value - at < 8 { Size::Word } else { Size::Double }, at as i16))
    }
}

/// The entries to find.
#[derive(Clone, Copy)]
#[repr(i32)]
pub(crate) enum Route {
    /// `BPF_FIB_LKUP_RET_SUCCESS`: a route and its neighbour.
    Neighbour = 0,
    /// `BPF_FIB_LKUP_RET_FWD_DISABLED`: the interface does not forward, so nothing was looked up.
    None = 5,
}

/// A baseline's work on a packet, after it parsed Ethernet, IP and TCP.
#[derive(Clone, Copy)]
pub(crate) enum Baseline<'m> {
    Parse,
    /// Looks the packet's ends up, finds them, and reads a word of the value.
    Hit(BorrowedFd<'m>),
    /// The same, and reads all of the value.
    Whole(BorrowedFd<'m>),
    /// The same without finding them.
    Miss(BorrowedFd<'m>),
    /// Inserts them.
    Insert(BorrowedFd<'m>),
    /// Removes them.
    Remove(BorrowedFd<'m>),
    /// Asks for the route to the destination, from the interface with this index.
    Fib(u32, Route),
}

const KEY: i16 = -64;
const VALUE: i16 = -144;
const DATA: u8 = 7;

/// Builds the program of a baseline.
pub(crate) fn program(kind: Kind, layout: Layout, baseline: Baseline<'_>) -> io::Result<OwnedFd> {
    let mut program = Program::new(kind);
    parse(&mut program, layout);
    match baseline {
        Baseline::Parse => {}
        Baseline::Hit(map) => {
            key(&mut program, layout, map);
            program.call(Helper::MapLookup).expect_some(0);
            // The value does not matter, but the access must exist.
            program.load(Size::Word, 1, 0, 0);
        }
        Baseline::Whole(map) => {
            key(&mut program, layout, map);
            program.call(Helper::MapLookup).expect_some(0);
            for (size, at) in layout.words() {
                program.load(size, 1, 0, at);
            }
        }
        Baseline::Miss(map) => {
            key(&mut program, layout, map);
            program.call(Helper::MapLookup).expect(0, 0);
        }
        Baseline::Insert(map) => {
            program.set(1, 0);
            for (size, at) in layout.words() {
                program.store(size, 10, VALUE + at, 1);
            }
            key(&mut program, layout, map);
            program.copy(3, 10).add(3, VALUE.into()).set(4, 0).call(Helper::MapUpdate).expect(0, 0);
        }
        Baseline::Remove(map) => {
            key(&mut program, layout, map);
            program.call(Helper::MapDelete).expect(0, 0);
        }
        Baseline::Fib(ifindex, route) => fib(&mut program, layout, ifindex, route),
    }
    program.pass().build()
}

/// Checks that there are all headers of a TCP segment without options; the ports are in 8 then.
fn parse(program: &mut Program, layout: Layout) {
    program.copy(6, 1);
    program.packet(DATA, 6, if layout.is_v4 { 54 } else { 74 });
    let (ether_type, version, protocol, ports) =
        if layout.is_v4 { (0x0800u16, 0x45, 23, 34) } else { (0x86dd, 0x60, 20, 54) };
    program.load(Size::Half, 1, DATA, 12).expect(1, ether_type.to_be().into());
    program.load(Size::Byte, 1, DATA, 14);
    if !layout.is_v4 {
        // The rest is the traffic class.
        program.shift_right(1, 4).expect(1, version >> 4);
    } else {
        program.expect(1, version);
    }
    program.load(Size::Byte, 1, DATA, protocol).expect(1, PROTOCOL_TCP.into());
    program.load(Size::Word, 8, DATA, ports);
}

/// Makes the key of the packet's ends, as flows have it, and leaves it and the map as arguments.
fn key(program: &mut Program, layout: Layout, map: BorrowedFd<'_>) {
    let (addresses, words) = if layout.is_v4 { (26, 2) } else { (22, 8) };
    for word in 0..words {
        program.load(Size::Word, 1, DATA, addresses + 4 * word);
        program.store(Size::Word, 10, KEY + 4 * word, 1);
    }
    program.store(Size::Word, 10, KEY + 4 * words, 8);
    program.set(1, PROTOCOL_TCP.into()).store(Size::Word, 10, KEY + 4 * words + 4, 1);
    program.map(1, map).copy(2, 10).add(2, KEY.into());
}

/// `struct bpf_fib_lookup` (linux/bpf.h), and the helper.
fn fib(program: &mut Program, layout: Layout, ifindex: u32, route: Route) {
    const PARAMS: i16 = -64;
    const AF_INET: i32 = 2;
    const AF_INET6: i32 = 10;
    program.set(1, 0);
    for at in (0..64).step_by(8) {
        program.store(Size::Double, 10, PARAMS + at, 1);
    }
    program.set(1, if layout.is_v4 { AF_INET } else { AF_INET6 }).store(Size::Byte, 10, PARAMS, 1);
    program.set(1, ifindex as i32).store(Size::Word, 10, PARAMS + 8, 1);
    let (from, words) = if layout.is_v4 { (26, 1) } else { (22, 4) };
    for word in 0..words {
        program.load(Size::Word, 1, DATA, from + 4 * word);
        program.store(Size::Word, 10, PARAMS + 16 + 4 * word, 1);
        program.load(Size::Word, 1, DATA, from + 4 * (words + word));
        program.store(Size::Word, 10, PARAMS + 32 + 4 * word, 1);
    }
    program.copy(1, 6).copy(2, 10).add(2, PARAMS.into()).set(3, 64).set(4, 0);
    program.call(Helper::FibLookup).expect(0, route as i32);
}

/// The baseline's maps of one hook and family.
pub(crate) struct Maps {
    /// One entry among some thousands.
    pub(crate) few: OwnedFd,
    /// As large as the flow map, filled like it.
    pub(crate) many: OwnedFd,
    /// The same, with entries that do not lie in the order of their keys.
    pub(crate) scattered: OwnedFd,
    /// A map of the same size, for entries that are inserted and removed again.
    pub(crate) fresh: OwnedFd,
    /// The same with LRU.
    pub(crate) fresh_lru: OwnedFd,
    /// With LRU, and full.
    pub(crate) full: OwnedFd,
}

impl Maps {
    pub(crate) fn new(layout: Layout, large: u32, full: u32) -> io::Result<Self> {
        Ok(Self {
            few: layout.map(MapKind::Hash, 8192)?,
            many: layout.map(MapKind::LruHash, large)?,
            scattered: layout.map(MapKind::LruHash, large)?,
            fresh: layout.map(MapKind::Hash, large)?,
            fresh_lru: layout.map(MapKind::LruHash, large)?,
            full: layout.map(MapKind::LruHash, full)?,
        })
    }
}
