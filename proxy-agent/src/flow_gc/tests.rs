use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use nix::time::{ClockId, clock_gettime};
use proxy_common::{
    V4,
    layout::flow::{Flow, FlowDraft, FlowKey, FlowState, LookupPoint, Tuple},
    packet::{PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP},
};

use super::*;
use crate::datapath::flows::{FlowMap, Slice};

const HZ: u32 = 250;
const NOW: u32 = 1_000_000_000;

/// Both entries of a flow, last seen so many seconds ago.
fn draft(client: u32, protocol: u8, state: FlowState, age: u32) -> FlowDraft<V4> {
    let key = FlowKey::new(Tuple { src: client, dst: 1, sport: 2, dport: 3 }, protocol, LookupPoint::Forward);
    let tuple = Tuple { src: client, dst: 8, sport: 7, dport: 6 };
    let flow = Flow { tuple, state: state as u8, last_seen: NOW.wrapping_sub(age * HZ), ..Flow::default() };
    let mut draft = FlowDraft::default();
    draft.begin(&key, &flow);
    draft.make_opposite();
    draft
}

type Change = Box<dyn FnMut(&FlowKey<V4>, &mut HashMap<FlowKey<V4>, Flow<V4>>) + Send>;

/// A map in memory. `meanwhile` stands for the data path just before the agent reads an entry of a slice again.
#[derive(Clone)]
struct Memory {
    entries: Arc<Mutex<HashMap<FlowKey<V4>, Flow<V4>>>>,
    meanwhile: Arc<Mutex<Change>>,
}

impl Memory {
    fn new(pairs: &[FlowDraft<V4>]) -> Self {
        let entries =
            pairs.iter().flat_map(|draft| [(draft.key, draft.flow), (draft.opposite_key, draft.opposite)]);
        Self {
            entries: Arc::new(Mutex::new(entries.collect())),
            meanwhile: Arc::new(Mutex::new(Box::new(|_, _| ()))),
        }
    }

    fn len(&self) -> usize {
        self.entries.lock().unwrap().len()
    }
}

impl FlowTable<V4> for Memory {
    fn follow(&mut self) -> Result<bool> {
        Ok(false)
    }

    fn is_whole(&self) -> Result<bool> {
        Ok(true)
    }

    fn capacity(&self) -> u32 {
        100
    }

    /// By the clients' addresses: they are positions here.
    fn slice(&mut self, from: Option<u32>, room: usize) -> Result<Slice<V4>> {
        let entries = self.entries.lock().unwrap();
        let position = |key: &FlowKey<V4>| {
            if key.lookup_point == LookupPoint::Forward as u8 { key.tuple.src } else { key.tuple.dst }
        };
        let mut found: Vec<_> = entries
            .iter()
            .map(|(key, flow)| (*key, *flow))
            .filter(|(key, _)| from.is_none_or(|from| position(key) >= from))
            .collect();
        found.sort_by_key(|(key, _)| (position(key), key.lookup_point));
        let next = found.get(room).map(|(key, _)| position(key));
        found.retain(|(key, _)| next.is_none_or(|next| position(key) < next));
        Ok((found, next))
    }

    fn get(&self, key: &FlowKey<V4>) -> Result<Option<Flow<V4>>> {
        let mut entries = self.entries.lock().unwrap();
        (self.meanwhile.lock().unwrap())(key, &mut entries);
        Ok(entries.get(key).copied())
    }

    fn remove(&mut self, key: &FlowKey<V4>) -> Result<()> {
        self.entries.lock().unwrap().remove(key);
        Ok(())
    }
}

fn sweep(map: &Memory) -> Step {
    Walk::new([map.clone()], Timeouts::DEFAULT)
        .step(Clock::fixed(NOW, HZ), 1_000, &ReplyFilter::anonymous())
        .unwrap()
}

#[test]
fn each_state_has_its_time() {
    use FlowState::{
        Closed, ClosingByClient, ClosingByServer, Established, New, Reset, SynReceived, TimeWait,
    };
    for (protocol, state, seconds) in [
        (PROTOCOL_TCP, New, 60),
        (PROTOCOL_TCP, SynReceived, 60),
        (PROTOCOL_TCP, Established, 86_400),
        (PROTOCOL_TCP, ClosingByClient, 3_600),
        (PROTOCOL_TCP, ClosingByServer, 3_600),
        (PROTOCOL_TCP, TimeWait, 12),
        (PROTOCOL_TCP, Closed, 12),
        (PROTOCOL_TCP, Reset, 12),
        (PROTOCOL_UDP, New, 30),
        (PROTOCOL_UDP, FlowState::REPLIED, 30),
        (PROTOCOL_UDP, Established, 120),
        (PROTOCOL_SCTP, New, 30),
        (PROTOCOL_SCTP, Established, 120),
        (PROTOCOL_SCTP, Closed, 12),
    ] {
        for (age, left) in [(0, 2), (seconds - 1, 2), (seconds, 0), (seconds + 99, 0)] {
            let map = Memory::new(&[draft(1, protocol, state, age)]);
            let step = sweep(&map);
            assert_eq!(
                (map.len(), step.expired),
                (left, u64::from(left == 0)),
                "{protocol} {state:?} after {age} s"
            );
        }
    }
}

#[test]
fn all_are_seen_slice_by_slice_and_counted() {
    let pairs: Vec<_> = (1..=40)
        .map(|client| match client % 4 {
            0 => draft(client, PROTOCOL_TCP, FlowState::Established, 10),
            1 => draft(client, PROTOCOL_TCP, FlowState::Closed, 100),
            2 => draft(client, PROTOCOL_UDP, FlowState::New, 1),
            _ => draft(client, PROTOCOL_TCP, FlowState::ClosingByClient, 1),
        })
        .collect();
    let map = Memory::new(&pairs);
    let mut walk = Walk::new([map.clone()], Timeouts::DEFAULT);
    assert_eq!(walk.expected(7), 15, "as many as there may be");
    let (counts, reply_filter) = (Counts::default(), ReplyFilter::anonymous());
    let mut steps = 1;
    while !counts.take(IpFamily::V4, walk.step(Clock::fixed(NOW, HZ), 7, &reply_filter).unwrap()) {
        steps += 1;
    }
    assert!(steps > 5, "{steps}");
    assert_eq!((map.len(), counts.expired.get()), (60, 10));
    for (state, flows) in
        [("new", 10), ("syn-received", 0), ("established", 10), ("half-closed", 10), ("closed", 0)]
    {
        let gauge = counts.flows.get_or_create(&[("ip_family", "IPv4"), ("state", state)]).get();
        assert_eq!(gauge, flows, "{state}");
    }
    assert_eq!(walk.expected(7), 12, "as many as there were");
}

#[test]
fn what_comes_back_to_life_stays() {
    let old = draft(1, PROTOCOL_TCP, FlowState::New, 61);
    let touch = |flow: &mut Flow<V4>| flow.last_seen = NOW;
    // A packet of either side, at each of the agent's looks, first and second.
    for of_opposite in [false, true] {
        for look in 1..=4 {
            let map = Memory::new(&[old]);
            let mut looks = 0;
            *map.meanwhile.lock().unwrap() = Box::new(move |_, entries| {
                looks += 1;
                if looks == look {
                    let key = if of_opposite { old.opposite_key } else { old.key };
                    entries.get_mut(&key).map(touch);
                }
            });
            sweep(&map);
            let entries = map.entries.lock().unwrap();
            let touched = entries.values().filter(|flow| flow.last_seen == NOW).count();
            // Removed before the packet came, which then opens a new flow; else the entry that the packet updated stays.
            let was_late = looks_after_removal(of_opposite, look);
            assert_eq!(touched, usize::from(!was_late), "opposite {of_opposite}, look {look}: {entries:?}");
        }
    }
}

/// The agent looks at both entries, then at that for requests, which it removes, then at that for replies.
fn looks_after_removal(of_opposite: bool, look: u32) -> bool {
    !of_opposite && look == 4
}

#[test]
fn another_flow_s_entry_stays() {
    let old = draft(1, PROTOCOL_UDP, FlowState::New, 31);
    let map = Memory::new(&[old]);
    // The replies belong to another service's flow by now.
    map.entries.lock().unwrap().get_mut(&old.opposite_key).unwrap().tuple.src = 99;
    map.entries.lock().unwrap().get_mut(&old.opposite_key).unwrap().last_seen = NOW;
    assert_eq!(sweep(&map).expired, 1);
    assert_eq!(map.entries.lock().unwrap().keys().collect::<Vec<_>>(), [&old.opposite_key]);
}

#[test]
fn both_maps_are_walked_over_and_counted_together() {
    let syn_received = |client| {
        let mut draft = draft(client, PROTOCOL_TCP, FlowState::New, 1);
        draft.opposite.state = FlowState::SynReceived as u8;
        draft
    };
    let pending = Memory::new(&[
        draft(1, PROTOCOL_TCP, FlowState::New, 1),
        syn_received(2),
        draft(3, PROTOCOL_TCP, FlowState::New, 61),
        draft(4, PROTOCOL_TCP, FlowState::Reset, 1),
    ]);
    // The first client opens another flow, while the one from the same port has expired.
    let flows = Memory::new(&[
        draft(1, PROTOCOL_TCP, FlowState::Closed, 20),
        draft(5, PROTOCOL_TCP, FlowState::TimeWait, 1),
        draft(6, PROTOCOL_TCP, FlowState::Established, 1),
        draft(7, PROTOCOL_UDP, FlowState::REPLIED, 1),
    ]);
    let mut walk = Walk::new([pending.clone(), flows.clone()], Timeouts::DEFAULT);
    let reply_filter = ReplyFilter::anonymous();
    reply_filter.begin();
    for _ in 0..2 {
        let mut expired = 0;
        let census = loop {
            let step = walk.step(Clock::fixed(NOW, HZ), 1_000, &reply_filter).unwrap();
            expired += step.expired;
            if let Some(census) = step.census {
                break census;
            }
            assert!(!walk.is_at_start());
        };
        assert!(walk.is_at_start() && expired <= 2);
        let expected = Census::from([
            ("new", 1),
            ("syn-received", 1),
            ("replied", 1),
            ("reset", 1),
            ("time-wait", 1),
            ("established", 1),
        ]);
        assert_eq!(census, expected);
    }
    assert_eq!((pending.len(), flows.len()), (6, 6), "each in its own map");
    for draft in [syn_received(2), draft(6, PROTOCOL_TCP, FlowState::Established, 1)] {
        assert!(reply_filter.hold(&draft.opposite_key));
    }
}

#[test]
fn half_a_flow_goes_too() {
    let old = draft(1, PROTOCOL_TCP, FlowState::Closed, 20);
    for lost in [old.key, old.opposite_key] {
        let map = Memory::new(&[old]);
        map.entries.lock().unwrap().remove(&lost);
        assert_eq!((sweep(&map).expired, map.len()), (1, 0));
    }
}

#[test]
fn a_map_of_the_kernel() {
    let clock = Clock::read().unwrap();
    let entries = (0..5_000).flat_map(|client| {
        let mut draft = draft(client, PROTOCOL_UDP, FlowState::New, 0);
        draft.flow.last_seen =
            if client % 2 == 0 { clock.now() } else { clock.now().wrapping_sub(40 * 1_000) };
        draft.opposite.last_seen = draft.flow.last_seen;
        [(draft.key, draft.flow), (draft.opposite_key, draft.opposite)]
    });
    // Without the permission there is nothing to test.
    let Some(map) = FlowMap::<V4>::filled(1 << 16, entries) else { return };
    let mut walk = Walk::new([map], Timeouts::DEFAULT);
    let (mut expired, mut steps) = (0, 0);
    let reply_filter = ReplyFilter::anonymous();
    let census = loop {
        let step = walk.step(clock, 256, &reply_filter).unwrap();
        (expired, steps) = (expired + step.expired, steps + 1);
        if let Some(census) = step.census {
            break census;
        }
    };
    assert_eq!((expired, census), (2_500, Census::from([("new", 2_500)])));
    assert!(steps > 20, "{steps}");
}

#[test]
fn fingerprints_stay_while_their_flows_do() {
    let now = Clock::read().unwrap().now();
    let [lives, over] = [1, 2].map(|client| {
        let mut draft = draft(client, PROTOCOL_TCP, FlowState::Established, 0);
        draft.opposite_key.tuple.src = 8 + client;
        (draft.flow.last_seen, draft.opposite.last_seen) = (now, now);
        draft
    });
    let map = Memory::new(&[lives, over]);
    let (_stop, stopped) = channel();
    let walk = || Walk::new([map.clone()], Timeouts::DEFAULT);
    let mut rounds =
        Rounds { v4: walk(), v6: walk(), reply_filter: ReplyFilter::anonymous(), counts: Counts::default() };
    let mut round = |is_whole: bool| {
        if !is_whole {
            // The remainder of a pair whose creation failed halfway.
            rounds.v4.step(Clock::fixed(now, HZ), 1, &rounds.reply_filter).unwrap();
        }
        assert!(rounds.round(&stopped).unwrap());
        [lives, over].map(|draft| rounds.reply_filter.hold(&draft.opposite_key))
    };
    assert_eq!(round(true), [true, true]);
    map.entries.lock().unwrap().retain(|key, _| *key != over.key && *key != over.opposite_key);
    for _ in 0..4 {
        assert_eq!(round(false), [true, true], "that was not all");
    }
    assert_eq!(round(true), [true, true], "a program may have read the number before");
    assert_eq!(round(true), [true, false]);
}

#[test]
fn it_stops_on_request() {
    let (stop, stopped) = channel();
    let walk =
        || Walk::new([Memory::new(&[draft(1, PROTOCOL_TCP, FlowState::Closed, 100)])], Timeouts::DEFAULT);
    let mut rounds =
        Rounds { v4: walk(), v6: walk(), reply_filter: ReplyFilter::anonymous(), counts: Counts::default() };
    let thread = thread::spawn(move || rounds.go_on(&stopped));
    drop(stop);
    thread.join().unwrap();
}

/// `cargo test --release -p proxy-agent --lib flow_gc -- --ignored --nocapture`, as root.
#[test]
#[ignore = "a measurement: prints what a round over a million flows' entries costs"]
fn cost_of_a_round() {
    const ENTRIES: u32 = 1 << 20;
    let reply_filter = ReplyFilter::anonymous();
    let clock = Clock::read().unwrap();
    let flows = |count: u32| {
        (0..count / 2).flat_map(move |client| {
            let mut draft = draft(client, PROTOCOL_TCP, FlowState::Established, 0);
            (draft.flow.last_seen, draft.opposite.last_seen) = (clock.now(), clock.now());
            [(draft.key, draft.flow), (draft.opposite_key, draft.opposite)]
        })
    };
    for count in [0, 1_000, 100_000, 1_000_000] {
        let Some(map) = FlowMap::<V4>::filled(ENTRIES, flows(count)) else { return };
        let mut walk = Walk::new([map], Timeouts::DEFAULT);
        for _ in 0..3 {
            let (mut slices, mut longest) = (0, Duration::ZERO);
            let busy = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
            let before = busy();
            loop {
                let start = busy();
                let step = walk.step(clock, SLICE, &reply_filter).unwrap();
                slices += 1;
                longest = longest.max(busy() - start);
                if step.census.is_some() {
                    break;
                }
            }
            let round = busy() - before;
            let time = EPOCH.max(REST * slices);
            let share = 100.0 * round.as_secs_f64() / time.as_secs_f64();
            println!(
                "{count} entries: {round:?} in {slices} slices, at most {longest:?} each: {share:.2} % of a core"
            );
        }
    }
}
