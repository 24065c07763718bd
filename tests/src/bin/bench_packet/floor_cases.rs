//! The floors as cases, on the packet of a client outside.

use std::{
    fs,
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use proxy_common::{
    V4, V6,
    layout::flow::{Flow, FlowKey},
};
use proxy_tests::packets::{Device, Frame, Host, PacketFamily, sys::Kind, words::ACK};

use crate::{
    asm::passes,
    cases::{After, Case, FloorSort, MANY, REPEAT_NEW, Sort, Table},
    floors::{Floor, Layout, Maps, Route, program},
    world::{LARGE, SMALL},
    wrapper::{Packet, Vary, Wrapper},
};

/// Flows that the flow map has when there are many: so many times [`MANY`] entries.
const FILLED: u32 = 6;

/// The maps of all floors; programs hold on to theirs.
pub(crate) fn all() -> Result<Vec<Case<'static>>> {
    let mut cases = Vec::new();
    for kind in [Kind::Xdp, Kind::Tc] {
        cases.extend(of::<V4>(kind)?);
        cases.extend(of::<V6>(kind)?);
    }
    Ok(cases)
}

fn of<F: PacketFamily>(kind: Kind) -> Result<Vec<Case<'static>>> {
    let layout = Layout { is_v4: F::IS_V4, key: size_of::<FlowKey<F>>(), value: size_of::<Flow<F>>() };
    let maps = Maps::new(layout, LARGE, SMALL)?;
    // To a host that there is a route to.
    let mut frame = Frame::new(Host::Client.at::<F>(50_000), Host::Remote.at::<F>(8080), ACK);
    frame.payload = vec![0; 64];
    let ports = frame.transport_offset();
    let address = if F::IS_V4 { 28 } else { 36 };
    let one = Packet { frame: frame.build()?, headers: ports + 20, varied: Vec::new() };
    let with = |varied: Vec<Vary>| Packet { varied, ..one.clone() };
    let fresh = with(vec![Vary::word(ports, 0), Vary::word(address, 16)]);
    let in_turn = with(vec![Vary::word(ports, 0)]);

    let program = |floor: Floor<'_>| -> Result<OwnedFd> { Ok(program(kind, layout, floor)?) };
    let device = Device::Uplink.index()?;
    let place = (kind, F::IS_V4, device);
    let case = |sort: FloorSort, row: &str, packet: &Packet, floor: Floor<'_>| {
        let label = (Table::Floors, Sort::Floor(sort), row.to_owned());
        Case::new(label, place, packet, program(floor)?.as_fd(), passes(kind)).context(row.to_owned())
    };
    let fill = |map: &OwnedFd, packet: &Packet, entries: u32| -> Result<()> {
        case(FloorSort::Insert, "filling a map", packet, Floor::Insert(map.as_fd()))?.run(entries)
    };
    let removes = |map: &OwnedFd| -> Result<After<'static>> {
        let remove = program(Floor::Remove(map.as_fd()))?;
        Ok(After::Undo(Wrapper::new(kind, remove.as_fd(), &fresh)?))
    };

    let some = with(vec![Vary { values: 5000, ..Vary::word(ports, 0) }]);
    let original = Vary { first: u16_at(&one.frame, address), values: FILLED, ..Vary::word(address, 16) };
    fill(&maps.few, &some, 5000)?;
    fill(&maps.few, &one, 1)?;
    let filled = with(vec![Vary::word(ports, 0), original]);
    fill(&maps.many, &filled, FILLED * MANY)?;
    fill(&maps.scattered, &filled, FILLED * MANY)?;
    scatter::<F>(&maps.scattered)?;
    fill(&maps.full, &fresh, 2 * SMALL)?;

    let hit = Floor::Hit(maps.few.as_fd());
    let mut cases = vec![
        case(FloorSort::Parse, "parse", &one, Floor::Parse)?,
        case(FloorSort::Hit, "parse, hash hit among 5,000 entries", &one, hit)?,
    ];
    let elsewhere = Packet { frame: frame.reply().build()?, ..one.clone() };
    cases.push(case(FloorSort::Miss, "parse, hash miss", &elsewhere, Floor::Miss(maps.few.as_fd()))?);
    for (sort, row, floor) in [
        (FloorSort::Many, MANY_ROW, Floor::Hit(maps.many.as_fd())),
        (FloorSort::ManyScattered, SCATTERED_ROW, Floor::Hit(maps.scattered.as_fd())),
        (FloorSort::ManyWhole, WHOLE_ROW, Floor::Whole(maps.scattered.as_fd())),
    ] {
        cases.push(case(sort, row, &in_turn, floor)?.through_entries());
    }
    let fib = Floor::Fib(device, Route::Neighbour);
    cases.push(case(FloorSort::Fib, "parse, FIB look-up, route and neighbour", &one, fib)?);
    let fib = Floor::Fib(still(Device::Bridge)?, Route::None);
    cases.push(case(FloorSort::FibNone, "parse, FIB call without a look-up", &one, fib)?);
    for (sort, row, map) in [
        (FloorSort::Insert, "parse, hash insertion", &maps.fresh),
        (FloorSort::InsertLru, "parse, LRU insertion", &maps.fresh_lru),
    ] {
        let insert = program(Floor::Insert(map.as_fd()))?;
        let label = (Table::Floors, Sort::Floor(sort), row.to_owned());
        let mut case = Case::new(label, place, &fresh, insert.as_fd(), passes(kind))?;
        // What the test of the case inserted: one and two packets, as it takes out.
        let undo = removes(map)?;
        if let After::Undo(undo) = &undo {
            proxy_tests::packets::sys::run(
                undo.fd(),
                kind,
                &case.frame,
                proxy_tests::packets::sys::at(device),
                3,
            )?;
        }
        case = case.cleaned_by(undo);
        cases.push(case);
    }
    let row = "parse, LRU insertion into a full map";
    let mut full = case(FloorSort::InsertFull, row, &fresh, Floor::Insert(maps.full.as_fd()))?;
    full.repeat = 2 * REPEAT_NEW;
    cases.push(full);
    Ok(cases)
}

/// The index of a device that does not forward from now on.
fn still(device: Device) -> Result<u32> {
    for family in ["ipv4", "ipv6"] {
        let path = format!("/proc/sys/net/{family}/conf/{}/forwarding", device.name());
        fs::write(&path, "0").context(path)?;
    }
    device.index()
}

/// The row of plain look-ups of as many keys as there are flows.
const MANY_ROW: &str = "parse, 65,536 keys in turn among 393,216 entries";

/// The same, where entries lie as those of established flows do.
const SCATTERED_ROW: &str = "parse, 65,536 keys in turn, entries scattered in memory";

/// The least that a flow map does.
const WHOLE_ROW: &str = "parse, 65,536 keys in turn, entries scattered, and their whole values";

/// Puts all entries anew, in no order, as [`establish`](crate::world::establish) does with flows. A new value gets new
/// memory in an LRU map, so that from then on neighbouring keys do not have neighbouring entries.
fn scatter<F: PacketFamily>(map: &OwnedFd) -> Result<()> {
    let map = Map::LruHashMap(MapData::from_fd(map.try_clone()?)?);
    let mut map: HashMap<MapData, FlowKey<F>, Flow<F>> = map.try_into()?;
    let entries: std::collections::HashMap<_, _> = map.iter().collect::<Result<_, _>>()?;
    ensure!(entries.len() == (FILLED * MANY) as usize, "{} entries in the floor's map", entries.len());
    for (key, value) in entries {
        map.insert(key, value, 0)?;
    }
    Ok(())
}

fn u16_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}
