//! Freed ids and slots, until no program can still be reading them.

use std::{future::pending, time::Duration};

use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use crate::datapath::{services::Freed, wait_for_readers};

/// Freed ids and slices are collected for so long. Waiting for readers takes another thread, and the kernel interrupts
/// all CPUs for it: together more than a change of an endpoint.
const COLLECT: Duration = Duration::from_millis(500);

/// The most that is collected, in slots, ids of backends and ids of services: an eighth of the slots.
const FULL: usize = 1 << 16;

/// Collects freed ids and slots, and waits for their readers.
#[derive(Debug, Default)]
pub(in crate::run) struct Quarantine {
    collected: Vec<Freed>,
    amount: usize,
    /// When enough was collected.
    due: Option<Instant>,
    waiting: Option<JoinHandle<Vec<Freed>>>,
}

impl Quarantine {
    /// Takes freed ids and slots.
    pub(super) fn add(&mut self, freed: Vec<Freed>) {
        if freed.is_empty() {
            return;
        }
        self.amount += freed.iter().map(Freed::amount).sum::<usize>();
        self.collected.extend(freed);
        let due = self.due.get_or_insert_with(|| Instant::now() + COLLECT);
        if self.amount >= FULL {
            *due = Instant::now();
        }
    }

    /// Resolves when something may be used again. May be dropped and called again at any time.
    pub(in crate::run) async fn over(&mut self) -> Vec<Freed> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                let freed = waiting.await.unwrap_or_default();
                self.waiting = None;
                return freed;
            }
            let Some(due) = self.due else { return pending().await };
            sleep_until(due).await;
            self.due = None;
            self.amount = 0;
            let freed = std::mem::take(&mut self.collected);
            self.waiting = Some(tokio::task::spawn_blocking(move || {
                wait_for_readers();
                freed
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::layout::id::Id;

    use super::*;
    use crate::model::plan::IpFamily;

    /// How long until the quarantine of something ends, and how much that is.
    async fn over(quarantine: &mut Quarantine) -> (Duration, usize) {
        let start = Instant::now();
        let freed = quarantine.over().await;
        (start.elapsed(), freed.len())
    }

    #[tokio::test(start_paused = true)]
    async fn freed_ids_are_collected_for_a_while() {
        let mut quarantine = Quarantine::default();
        let freed = || vec![Freed::Service(Id::new(1, 1))];
        quarantine.add(freed());
        tokio::time::advance(COLLECT / 2).await;
        quarantine.add(freed());
        let (time, count) = over(&mut quarantine).await;
        assert_eq!(count, 2);
        assert!(time >= COLLECT / 2 && time < COLLECT, "{time:?}");

        quarantine.add(Vec::new());
        tokio::time::timeout(10 * COLLECT, quarantine.over()).await.unwrap_err();
        quarantine.add(freed());
        assert!(over(&mut quarantine).await.0 >= COLLECT, "the time starts again");
    }

    #[tokio::test(start_paused = true)]
    async fn much_is_not_collected() {
        let mut quarantine = Quarantine::default();
        for _ in 0..FULL / 100 + 1 {
            quarantine.add(vec![Freed::Slots(IpFamily::V4, (0, 100))]);
        }
        assert!(over(&mut quarantine).await.0 < COLLECT);
    }
}
