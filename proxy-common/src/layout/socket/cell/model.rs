//! Claims of three sockets for the counter of one cell, in all interleavings with up to three preemptions.

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::{
    model::Builder,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    thread,
};

use super::{Claims, claim, unclaim};

impl Claims for AtomicU64 {
    fn load(&self) -> u64 {
        Self::load(self, Ordering::Relaxed)
    }

    fn add(&self, number: u64) {
        self.fetch_add(number, Ordering::Relaxed);
    }
}

/// The counter of a cell; how many sockets own the cell is counted beside it.
struct Cell {
    claims: AtomicU64,
    owners: AtomicU32,
}

impl Cell {
    fn new() -> Arc<Self> {
        Arc::new(Self { claims: AtomicU64::new(0), owners: AtomicU32::new(0) })
    }

    /// A socket connects, and is closed.
    fn socket(&self, claim: fn(&AtomicU64) -> bool) {
        if claim(&self.claims) {
            assert_eq!(self.owners.fetch_add(1, Ordering::Relaxed), 0, "two sockets own the cell");
            self.owners.fetch_sub(1, Ordering::Relaxed);
            unclaim(&self.claims);
        }
    }
}

fn holds(claim: fn(&AtomicU64) -> bool) -> bool {
    let model = move || {
        let mut builder = Builder::new();
        // A bound of 2 finds the mistake below; without one it takes minutes.
        builder.preemption_bound.get_or_insert(3);
        builder.check(move || {
            let cell = Cell::new();
            let others = [(); 2].map(|()| {
                let cell = Arc::clone(&cell);
                thread::spawn(move || cell.socket(claim))
            });
            cell.socket(claim);
            for other in others {
                other.join().unwrap();
            }
            // No claim is lost: the next socket gets the cell.
            assert!(claim(&cell.claims));
        });
    };
    catch_unwind(AssertUnwindSafe(model)).is_ok()
}

#[test]
fn one_socket_at_a_time_owns_a_cell() {
    assert!(holds(claim));
}

/// The model finds a claim that looks before it adds, and not after.
#[test]
fn a_claim_that_does_not_look_again_is_found() {
    assert!(!holds(|claims| {
        let is_free = Claims::load(claims) == 0;
        if is_free {
            claims.add(1);
        }
        is_free
    }));
}
