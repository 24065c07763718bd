//! Work for the kernel by several threads.

use std::{num::NonZero, sync::Mutex, thread};

/// Does work on each item, from the last one on, by as many threads as there are CPUs and some more, for work that waits. Results are in
/// no order.
pub(super) fn in_parallel<T: Send, R: Send>(
    items: Vec<T>,
    more: usize,
    work: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    let threads = (thread::available_parallelism().map_or(1, NonZero::get) + more).min(items.len());
    let (waiting, done) = (Mutex::new(items), Mutex::new(Vec::new()));
    let next = || waiting.lock().ok()?.pop();
    let work_on_all = || {
        while let Some(item) = next() {
            let result = work(item);
            if let Ok(mut done) = done.lock() {
                done.push(result);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // Without another thread this one does all.
            let _ = thread::Builder::new().name("loader".into()).spawn_scoped(scope, work_on_all);
        }
        work_on_all();
    });
    done.into_inner().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::in_parallel;

    #[test]
    fn each_item_is_worked_on_once() {
        for (count, more) in [(0, 0), (1, 0), (100, 0), (100, 8)] {
            let mut results = in_parallel((0..count).collect(), more, |item| item * 2);
            results.sort_unstable();
            assert!(results.into_iter().eq((0..count).map(|item| item * 2)));
        }
    }
}
