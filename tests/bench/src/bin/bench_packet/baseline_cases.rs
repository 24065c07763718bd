//! The baselines as cases, on the packet of a client outside.

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
use proxy_packets::{Device, Frame, Host, PacketFamily, helpers::ACK, sys::Kind};

use crate::{
    asm::passes,
    baselines::{Baseline, Layout, Maps, Route, program},
    cases::{After, BaselineSort, Case, MANY, REPEAT_NEW, Sort, Table},
    fixture::{LARGE, SMALL},
    wrapper::{Packet, Vary, Wrapper},
};

/// Flows that the flow map has when there are many: so many times [`MANY`] entries.
const FILLED: u32 = 6;

/// The maps of all baselines; programs hold on to theirs.
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
    let round_robin = with(vec![Vary::word(ports, 0)]);

    let program = |baseline: Baseline<'_>| -> Result<OwnedFd> { Ok(program(kind, layout, baseline)?) };
    let device = Device::Uplink.index()?;
    let place = (kind, F::IS_V4, device);
    let case = |sort: BaselineSort, row: &str, packet: &Packet, baseline: Baseline<'_>| {
        let label = (Table::Baselines, Sort::Baseline(sort), row.to_owned());
        Case::new(label, place, packet, program(baseline)?.as_fd(), passes(kind)).context(row.to_owned())
    };
    let fill = |map: &OwnedFd, packet: &Packet, entries: u32| -> Result<()> {
        case(BaselineSort::Insert, "filling a map", packet, Baseline::Insert(map.as_fd()))?.run(entries)
    };
    let removes = |map: &OwnedFd| -> Result<After<'static>> {
        let remove = program(Baseline::Remove(map.as_fd()))?;
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

    let hit = Baseline::Hit(maps.few.as_fd());
    let mut cases = vec![
        case(BaselineSort::Parse, "parse", &one, Baseline::Parse)?,
        case(BaselineSort::Hit, "parse, hash hit among 5,000 entries", &one, hit)?,
    ];
    let elsewhere = Packet { frame: frame.reply().build()?, ..one.clone() };
    cases.push(case(BaselineSort::Miss, "parse, hash miss", &elsewhere, Baseline::Miss(maps.few.as_fd()))?);
    for (sort, row, baseline) in [
        (BaselineSort::Many, MANY_ROW, Baseline::Hit(maps.many.as_fd())),
        (BaselineSort::ManyScattered, SCATTERED_ROW, Baseline::Hit(maps.scattered.as_fd())),
        (BaselineSort::ManyWhole, WHOLE_ROW, Baseline::Whole(maps.scattered.as_fd())),
    ] {
        cases.push(case(sort, row, &round_robin, baseline)?.through_entries());
    }
    let fib = Baseline::Fib(device, Route::Neighbour);
    cases.push(case(BaselineSort::Fib, "parse, FIB look-up, route and neighbour", &one, fib)?);
    let fib = Baseline::Fib(still(Device::Bridge)?, Route::None);
    cases.push(case(BaselineSort::FibNone, "parse, FIB call without a look-up", &one, fib)?);
    for (sort, row, map) in [
        (BaselineSort::Insert, "parse, hash insertion", &maps.fresh),
        (BaselineSort::InsertLru, "parse, LRU insertion", &maps.fresh_lru),
    ] {
        let insert = program(Baseline::Insert(map.as_fd()))?;
        let label = (Table::Baselines, Sort::Baseline(sort), row.to_owned());
        let mut case = Case::new(label, place, &fresh, insert.as_fd(), passes(kind))?;
        // The entries that the test of the case inserted: of one and two packets, as it removes.
        let undo = removes(map)?;
        if let After::Undo(undo) = &undo {
            proxy_packets::sys::run(undo.fd(), kind, &case.frame, proxy_packets::sys::at(device), 3)?;
        }
        case = case.cleaned_by(undo);
        cases.push(case);
    }
    let row = "parse, LRU insertion into a full map";
    let mut full = case(BaselineSort::InsertFull, row, &fresh, Baseline::Insert(maps.full.as_fd()))?;
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

/// Writes all entries again, in random order, as [`establish`](crate::fixture::establish) does with flows. A new value
/// gets new memory in an LRU map, so that from then on neighbouring keys do not have neighbouring entries.
fn scatter<F: PacketFamily>(map: &OwnedFd) -> Result<()> {
    let map = Map::LruHashMap(MapData::from_fd(map.try_clone()?)?);
    let mut map: HashMap<MapData, FlowKey<F>, Flow<F>> = map.try_into()?;
    let entries: std::collections::HashMap<_, _> = map.iter().collect::<Result<_, _>>()?;
    ensure!(entries.len() == (FILLED * MANY) as usize, "{} entries in the baseline's map", entries.len());
    for (key, value) in entries {
        map.insert(key, value, 0)?;
    }
    Ok(())
}

fn u16_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}
