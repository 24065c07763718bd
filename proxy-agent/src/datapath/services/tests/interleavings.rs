//! All interleavings of what the agent does with a reader that chooses a backend.
//!
//! The agent is the only one that writes, so that its stores are one sequence of states of the memory, recorded here. A reader has three
//! loads: the set's word, a slot, the backend's state. Each may see any state from the one before on, as long as no grace period ends
//! in between. Which stores other CPUs may see in another order than they were made is checked by loom: `proxy_common::shared`.

use std::{cell::RefCell, rc::Rc};

use super::*;
use crate::datapath::array::steps::observed;

/// What readers see at a time.
#[derive(Clone)]
struct State {
    sets: Vec<BackendSet>,
    backends: Vec<Backend<V4>>,
    alive: Vec<BackendState>,
}

impl State {
    /// The set of a service port and a policy.
    fn set(&self, id: Id, set_policy: SetPolicy) -> BackendSet {
        self.sets[BackendSet::index(id, set_policy) as usize]
    }

    fn state(&self, backend: Id) -> BackendState {
        self.alive[BackendState::position(backend).0 as usize]
    }
}

/// The memory that a node's services and readers share.
struct Readable {
    sets: MmapArray<BackendSet>,
    backends: MmapArray<Backend<V4>>,
    alive: MmapArray<BackendState>,
}

impl Readable {
    fn state(&self) -> State {
        fn all<T: aya::Pod>(array: &MmapArray<T>) -> Vec<T> {
            (0..array.len()).map(|index| array.read(index).unwrap()).collect()
        }
        State { sets: all(&self.sets), backends: all(&self.backends), alive: all(&self.alive) }
    }
}

/// Records what readers may see while a node's services change.
struct Recorder {
    node: Node,
    memory: Rc<Readable>,
    states: Rc<RefCell<Vec<State>>>,
}

impl Recorder {
    fn new() -> Self {
        let (backends, backends_read) = MmapArray::anonymous_twice(64);
        let (sets, sets_read) = MmapArray::anonymous_twice(4 * SetPolicy::STRIDE);
        let (alive, alive_read) = MmapArray::anonymous_twice(4);
        let memory = Readable { sets: sets_read, backends: backends_read, alive: alive_read };
        Self { node: Node::over(backends, sets, alive), memory: Rc::new(memory), states: Rc::default() }
    }

    /// Does something with the services, and returns the number of the last state.
    fn record(&mut self, run: impl FnOnce(&mut Node)) -> usize {
        let (memory, states) = (Rc::clone(&self.memory), Rc::clone(&self.states));
        observed(move || states.borrow_mut().push(memory.state()), || run(&mut self.node));
        self.states.borrow_mut().push(self.memory.state());
        self.states.borrow().len() - 1
    }
}

/// Calls `check` with the states in which a reader may make its three loads, the first one from `first` on; those of readers that run at
/// the end of a grace period excepted.
fn interleavings(
    first: usize,
    last: usize,
    grace: Option<usize>,
    mut check: impl FnMut(usize, usize, usize),
) {
    for set in first..=last {
        let end = grace.filter(|grace| set <= *grace).unwrap_or(last);
        for slot in set..=end {
            for state in slot..=end {
                check(set, slot, state);
            }
        }
    }
}

/// The mistakes that a reader may see: two endpoints of a Service are replaced by two others, and another Service comes, which gets
/// the slots of the former as soon as it may. `grace`: whether the agent waits for readers before that.
fn mistakes(grace: bool) -> Vec<String> {
    const POLICY: SetPolicy = SetPolicy::ClusterIp;
    let mut recorder = Recorder::new();
    let mut web = port("web", Protocol::Udp, &[Frontend::ClusterIp(at("10.96.0.1:80"))]);
    let db = PortPlan {
        internal: endpoints("67"),
        external: endpoints("67"),
        cluster: endpoints("67"),
        serving: endpoints("67"),
        ..port("db", Protocol::Udp, &[Frontend::ClusterIp(at("10.96.0.2:80"))])
    };
    let first = recorder.record(|node| node.apply(&web));
    let old = recorder.memory.state();
    for list in [&mut web.internal, &mut web.external, &mut web.cluster, &mut web.serving] {
        *list = endpoints("23");
    }
    let waited = recorder.record(|node| node.apply(&web));
    let last = recorder.record(|node| {
        let freed = node.services.take_quarantine();
        assert!(freed.iter().any(|freed| matches!(freed, Freed::Slots(..))));
        node.services.give_back(freed);
        node.apply(&db);
    });
    let id = recorder.node.id(&web);
    let states = recorder.states.borrow();
    let (old, new) = (old.set(id, POLICY), states[last].set(id, POLICY));
    let reused = recorder.node.set(&db, POLICY);
    assert!(
        old != new && reused.base() == old.base(),
        "the other Service gets the slots: {old:?} {reused:?}"
    );
    let mut mistakes = Vec::new();
    interleavings(first, last, grace.then_some(waited), |at_set, at_slot, at_state| {
        let set = states[at_set].set(id, POLICY);
        let allowed = if set == old { endpoints("12") } else { endpoints("23") };
        for slot in set.base()..set.base() + set.count() {
            let backend = states[at_slot].backends[slot as usize];
            let endpoint = SocketAddr::new(V4::to_ip(&backend.addr), u16::from_be(backend.port));
            let state = states[at_state].state(backend.id);
            // One that left the set may be dead by now: its flow chooses again.
            let may_be_dead = set == old && endpoint == endpoints("1")[0];
            if !allowed.contains(&endpoint) {
                mistakes.push(format!("{at_set} {at_slot}: {endpoint} of {set:?}"));
            } else if !may_be_dead && !state.holds_in(backend.id, POLICY) {
                mistakes.push(format!("{at_set} {at_slot} {at_state}: {endpoint} is no member"));
            }
        }
    });
    mistakes
}

#[test]
fn readers_choose_endpoints_of_the_old_or_the_new_set_that_are_its_members() {
    assert_eq!(mistakes(true), Vec::<String>::new());
}

#[test]
fn without_a_grace_period_readers_would_choose_endpoints_of_another_service() {
    let mistakes = mistakes(false);
    assert!(mistakes.iter().any(|mistake| mistake.contains("10.244.0.6")), "{mistakes:?}");
}

#[test]
fn a_service_that_goes_and_one_that_comes_are_never_mixed() {
    let mut recorder = Recorder::new();
    let web = port("web", Protocol::Udp, &[Frontend::ClusterIp(at("10.96.0.1:80"))]);
    let mut db = port("db", Protocol::Udp, &[Frontend::ClusterIp(at("10.96.0.2:80"))]);
    for list in [&mut db.internal, &mut db.external, &mut db.cluster, &mut db.serving] {
        *list = endpoints("67");
    }
    let first = recorder.record(|node| node.apply(&web));
    let id = recorder.node.id(&web);
    let waited = recorder.record(|node| node.services.remove(&web.name).unwrap());
    let last = recorder.record(|node| {
        let freed = node.services.take_quarantine();
        node.services.give_back(freed);
        node.apply(&db);
    });
    let states = recorder.states.borrow();
    interleavings(first, last, Some(waited), |at_set, at_slot, _| {
        let set = states[at_set].set(id, SetPolicy::ClusterIp);
        for slot in set.base()..set.base() + set.count() {
            let backend = states[at_slot].backends[slot as usize];
            let endpoint = SocketAddr::new(V4::to_ip(&backend.addr), u16::from_be(backend.port));
            assert!(endpoints("12").contains(&endpoint), "{at_set} {at_slot}: {endpoint}");
        }
    });
}
