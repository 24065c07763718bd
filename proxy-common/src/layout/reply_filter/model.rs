//! The reply filter's protocol between programs and the agent's flow GC, in all interleavings.
//!
//! A program opens a flow while a round of the flow GC runs. A round takes 30 s, so no program runs through
//! two: the model joins the program between rounds. The kernel's hash maps are flags here: the kernel links an
//! entry by a store with release order (`hlist_nulls_add_head_rcu`), and finds it by a load on which the later
//! accesses depend.

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::{
    model::Builder,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    thread,
};

use super::*;

/// A mistake that the check must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// The program inserts the entry before the fingerprint.
    EntryFirst,
    /// The agent walks over confirmed flows before unconfirmed ones.
    ConfirmedFirst,
    /// The agent clears before it has walked.
    EndsBeforeWalk,
    /// The agent clears by a store, and not by compare and exchange.
    ClearsBlindly,
    /// The agent also clears fingerprints of the epoch before.
    NoEpochOfGrace,
}

/// The number at the start: the range of the numbers wraps during the rounds.
const EPOCH: u8 = 254;

struct Maps {
    epoch: AtomicU8,
    /// A fingerprint's bytes: a flow that has ended wrote the first one long ago.
    bytes: [AtomicU8; 2],
    /// Whether these maps have the flow's entry.
    pending: AtomicBool,
    confirmed: AtomicBool,
}

impl Maps {
    fn new() -> Self {
        Self {
            epoch: AtomicU8::new(EPOCH),
            bytes: [AtomicU8::new(EPOCH - 9), AtomicU8::new(0)],
            pending: AtomicBool::new(false),
            confirmed: AtomicBool::new(false),
        }
    }

    fn bytes(&self) -> [&AtomicU8; 2] {
        self.bytes.each_ref()
    }

    /// A program opens the flow.
    fn open(&self, mistake: Mistake) {
        let link = || self.pending.store(true, Ordering::Release);
        if mistake == Mistake::EntryFirst {
            link();
        }
        insert(&&self.epoch, self.bytes());
        if mistake != Mistake::EntryFirst {
            link();
        }
    }

    /// A program confirms the flow: one of the maps has it at any time.
    fn confirm(&self) {
        self.confirmed.store(true, Ordering::Release);
        self.pending.store(false, Ordering::Release);
    }

    /// A program looks for the flow of a reply.
    fn reply(&self) {
        if self.pending.load(Ordering::Acquire) || self.confirmed.load(Ordering::Acquire) {
            assert!(contains(self.bytes()), "the reply of an open flow is taken for another packet");
        }
    }

    /// A round of the flow GC.
    fn round(&self, mistake: Mistake) {
        let begun = begin(&self.epoch);
        if mistake == Mistake::EndsBeforeWalk {
            self.end(begun, mistake);
        }
        let maps = match mistake {
            Mistake::ConfirmedFirst => [&self.confirmed, &self.pending],
            _ => [&self.pending, &self.confirmed],
        };
        for map in maps {
            if map.load(Ordering::Acquire) {
                self.bytes.iter().for_each(|byte| renew(&self.epoch, byte));
            }
        }
        if mistake != Mistake::EndsBeforeWalk {
            self.end(begun, mistake);
        }
    }

    fn end(&self, begun: u8, mistake: Mistake) {
        let epoch = Shared::load(&self.epoch);
        for byte in &self.bytes {
            match mistake {
                Mistake::ClearsBlindly => {
                    let fingerprint = Shared::load(byte);
                    if fingerprint != 0 && epochs_since(fingerprint, epoch) > 1 {
                        byte.publish(0);
                    }
                }
                Mistake::NoEpochOfGrace => {
                    let fingerprint = Shared::load(byte);
                    if fingerprint != 0 && epochs_since(fingerprint, epoch) > 0 {
                        byte.replace(fingerprint, 0);
                    }
                }
                _ => expire(epoch, begun, byte),
            }
        }
    }
}

/// Whether replies of an open flow are found in all interleavings.
fn holds(mistake: Mistake, scenario: fn(&Arc<Maps>, Mistake)) -> bool {
    let model = move || {
        let mut builder = Builder::new();
        // A bound of 2 finds every mistake below in a second; 3 takes ten.
        builder.preemption_bound.get_or_insert(2);
        builder.check(move || scenario(&Arc::new(Maps::new()), mistake));
    };
    catch_unwind(AssertUnwindSafe(model)).is_ok()
}

fn spawn(maps: &Arc<Maps>, run: impl FnOnce(&Maps) + 'static) -> thread::JoinHandle<()> {
    let maps = Arc::clone(maps);
    thread::spawn(move || run(&maps))
}

/// A flow is opened during a round, and its replies come by another CPU.
fn opened(maps: &Arc<Maps>, mistake: Mistake) {
    let program = spawn(maps, move |maps| maps.open(mistake));
    let other_cpu = spawn(maps, Maps::reply);
    maps.round(mistake);
    program.join().unwrap();
    other_cpu.join().unwrap();
    // The program's fingerprint may have the number of the epoch before.
    let other_cpu = spawn(maps, Maps::reply);
    maps.round(mistake);
    other_cpu.join().unwrap();
    maps.reply();
}

/// A flow is opened during a round, and confirmed during the next one.
fn confirmed(maps: &Arc<Maps>, mistake: Mistake) {
    let runs: [fn(&Maps, Mistake); 2] = [Maps::open, |maps, _| maps.confirm()];
    for run in runs {
        let program = spawn(maps, move |maps| run(maps, mistake));
        maps.round(mistake);
        program.join().unwrap();
    }
    maps.reply();
}

/// Two programs open flows with the same fingerprint during a round.
fn two_programs(maps: &Arc<Maps>, mistake: Mistake) {
    let programs = [(); 2].map(|()| spawn(maps, move |maps| maps.open(mistake)));
    maps.round(mistake);
    for program in programs {
        program.join().unwrap();
    }
    maps.reply();
    maps.round(mistake);
    maps.reply();
}

#[test]
fn replies_of_open_flows_are_found() {
    for scenario in [opened, confirmed, two_programs] {
        assert!(holds(Mistake::None, scenario));
    }
}

#[test]
fn every_mistake_is_found() {
    for (mistake, scenario) in [
        (Mistake::EntryFirst, opened as fn(&Arc<Maps>, Mistake)),
        (Mistake::ConfirmedFirst, confirmed),
        (Mistake::EndsBeforeWalk, opened),
        (Mistake::ClearsBlindly, opened),
        (Mistake::NoEpochOfGrace, opened),
    ] {
        assert!(!holds(mistake, scenario), "{mistake:?}");
    }
}
