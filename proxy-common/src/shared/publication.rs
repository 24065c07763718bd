//! Publication of a backend set, and the quarantine of its old slots, in all interleavings with a reader
//! (`docs/datapath/publication.md`).
//!
//! The agent publishes slots in `datapath/services`; `interleavings.rs` there checks the order of its stores.
//! This test is about memory orders. A reader runs under RCU: `membarrier(GLOBAL)` waits for a running reader,
//! and orders its loads before the agent's next accesses. A mutex models that: the reader holds it while it
//! runs, and the agent takes it once to wait.

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::{
    model::Builder,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, AtomicU64, Ordering, fence},
    },
    thread,
};

use super::{Published as _, Shared};
use crate::layout::{
    backend::BackendState,
    id::Id,
    set::{BackendSet, BackendSetKind},
};

/// Steps of the agent that it could take in another order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Mark the new backend as alive.
    Allocate,
    /// Write its slot.
    WriteSlot,
    /// Publish the set.
    Publish,
    /// Mark the old backend as dead.
    Release,
    /// Wait for readers.
    Wait,
    /// Use the old slot for another Service.
    Reuse,
}

const RIGHT: [Step; 6] =
    [Step::Allocate, Step::WriteSlot, Step::Publish, Step::Release, Step::Wait, Step::Reuse];

const OLD: Id = Id::new(0, 1);
const NEW: Id = Id::new(1, 1);
const OTHER: Id = Id::new(2, 1);

const fn set(slot: u32) -> BackendSet {
    BackendSet::new(slot, 1, BackendSetKind::Uniform)
}

/// A service port whose set has slot 0, and gets slot 1.
struct Maps {
    set: AtomicU64,
    /// Backends' ids.
    slots: [AtomicU64; 2],
    states: [AtomicU16; 3],
    reader: Mutex<()>,
}

impl Maps {
    fn new() -> Self {
        Self {
            set: AtomicU64::new(set(0).0),
            slots: [AtomicU64::new(OLD.0.into()), AtomicU64::new(0)],
            states: [AtomicU16::new(BackendState::entry(OLD, 1)), AtomicU16::new(0), AtomicU16::new(0)],
            reader: Mutex::new(()),
        }
    }

    fn take(&self, step: Step) {
        match step {
            Step::Allocate => self.states[NEW.index() as usize].publish(BackendState::entry(NEW, 1)),
            Step::WriteSlot => Shared::store(&self.slots[1], NEW.0.into()),
            Step::Publish => self.set.publish(set(1).0),
            Step::Release => self.states[OLD.index() as usize].publish(0),
            Step::Wait => drop(self.reader.lock().unwrap()),
            Step::Reuse => Shared::store(&self.slots[0], OTHER.0.into()),
        }
    }

    /// Chooses a backend, as a program does.
    fn read(&self) {
        let _running = self.reader.lock().unwrap();
        let set = BackendSet(Shared::load(&self.set));
        // The kernel's memory model orders loads whose addresses depend on an earlier load; loom's does not.
        fence(Ordering::Acquire);
        let slot = set.slot(0);
        let chosen = Id(Shared::load(&self.slots[slot as usize]) as u32);
        assert_eq!(
            chosen,
            if slot == 0 { OLD } else { NEW },
            "a slot has the backend that was published with it"
        );
        let state = Shared::load(&self.states[chosen.index() as usize]);
        let is_alive = state == BackendState::entry(chosen, 1);
        assert!(is_alive || chosen == OLD, "a backend that was published is alive");
    }
}

/// Whether no reader sees a mistake when the agent takes the steps in this order.
fn holds(order: [Step; 6]) -> bool {
    let model = move || {
        Builder::new().check(move || {
            let maps = Arc::new(Maps::new());
            let reader = {
                let maps = Arc::clone(&maps);
                thread::spawn(move || maps.read())
            };
            order.into_iter().for_each(|step| maps.take(step));
            reader.join().unwrap();
        });
    };
    catch_unwind(AssertUnwindSafe(model)).is_ok()
}

#[test]
fn readers_see_the_old_set_or_the_new_one() {
    assert!(holds(RIGHT));
}

#[test]
fn every_swap_that_matters_is_found() {
    for (first, second) in [
        (Step::Allocate, Step::Publish),
        (Step::WriteSlot, Step::Publish),
        (Step::Publish, Step::Wait),
        (Step::Wait, Step::Reuse),
    ] {
        let swapped = RIGHT.map(|step| match step {
            step if step == first => second,
            step if step == second => first,
            step => step,
        });
        assert!(!holds(swapped), "{swapped:?}");
    }
}
