//! Release of unused memory.

#![expect(unsafe_code, reason = "the kernel is asked to drop mapped pages")]

use std::{future::pending, time::Duration};

use procfs::{
    ProcResult,
    process::{MMPermissions, MMapPath, MemoryMap, Process},
};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep_until},
};
use tracing::debug;

/// The work of a start, or of a rollout, has ended so long after the last of its changes.
const QUIET: Duration = Duration::from_secs(1);
/// So many Services free memory that is worth the effort when they change. One that loses an endpoint counts twice: it is applied again
/// when the endpoint is settled.
const MANY: usize = 1000;

/// When memory is given back that the agent's work needed for a while.
pub(crate) struct Unused {
    due: Option<Instant>,
    applied: usize,
}

impl Unused {
    /// At the end of the start.
    pub(crate) fn of_start() -> Self {
        Self { due: Some(Instant::now() + QUIET), applied: 0 }
    }

    /// Notes how many Services were applied. Many of them put the time off: the memory is needed.
    pub(crate) fn note_applied(&mut self, services: usize) {
        self.applied += services;
        if self.applied >= MANY {
            *self = Self::of_start();
        }
    }

    /// Gives memory back when it is time.
    pub(crate) async fn give_back(&mut self) {
        match self.due {
            Some(due) => sleep_until(due).await,
            None => pending().await,
        }
        *self = Self { due: None, applied: 0 };
        spawn_blocking(give_back);
    }
}

/// Returns freed memory to the kernel. glibc keeps it unless it is at the end of the heap: after the programs are
/// loaded and after the first lists, more is freed than in use. Unmaps pages of the binary, too: many are needed at start alone.
///
/// Takes milliseconds; not for the thread that applies changes, once it has begun.
pub(crate) fn give_back() {
    proxy_sys::process::trim_heap();
    if let Err(error) = unmap_binary() {
        debug!("cannot unmap pages of the binary: {error}");
    }
}

/// Removes the binary's pages from this process. They stay in the page cache, and an access maps a page again, without I/O while it is
/// cached.
fn unmap_binary() -> ProcResult<()> {
    let process = Process::myself()?;
    let binary = process.exe()?;
    let is_of_binary =
        |mapping: &MemoryMap| matches!(&mapping.pathname, MMapPath::Path(path) if *path == binary);
    for mapping in process.smaps()?.into_iter().filter(is_of_binary).filter(is_like_the_file) {
        let (start, end) = mapping.address;
        // SAFETY: the mapping is read-only and has the file's content, which the kernel reads again when a page is accessed.
        unsafe { libc::madvise(start as *mut libc::c_void, (end - start) as usize, libc::MADV_DONTNEED) };
    }
    Ok(())
}

/// Whether all pages have the file's content, and no write can change that. Pages that the loader relocated are anonymous memory, which
/// would be lost.
fn is_like_the_file(mapping: &MemoryMap) -> bool {
    let has_none = |kind| mapping.extension.map.get(kind) == Some(&0);
    !mapping.perms.contains(MMPermissions::WRITE) && has_none("Anonymous") && has_none("Swap")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn memory_is_given_back_after_many_services_once_it_is_quiet() {
        let mut unused = Unused::of_start();
        let begin = Instant::now();
        unused.give_back().await;
        assert!(begin.elapsed() >= QUIET);
        unused.note_applied(MANY - 1);
        assert_eq!(unused.due, None, "few Services");
        unused.note_applied(1);
        for (services, wait) in [(MANY, QUIET), (1, QUIET / 2)] {
            tokio::time::advance(QUIET / 2).await;
            unused.note_applied(services);
            assert_eq!(unused.due, Some(Instant::now() + wait), "{services} more Services");
        }
        unused.give_back().await;
        assert_eq!(unused.due, None);
    }

    /// Constants, code and relocated pointers are as before. Needs no privilege.
    #[test]
    fn the_binary_works_as_before_when_its_pages_are_unmapped() {
        static POINTERS: [&str; 2] = ["one", "two"];
        let resident = || Process::myself().and_then(|process| process.status()).unwrap().rssfile.unwrap();
        let before = resident();
        unmap_binary().unwrap();
        let after = resident();
        assert!(after < before, "{after} KiB of files are resident, {before} before");
        assert_eq!(std::hint::black_box(&POINTERS).join(" "), "one two");
    }
}
