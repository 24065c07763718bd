//! Release of unused memory.

#![expect(unsafe_code, reason = "the kernel is asked to drop mapped pages")]

use procfs::{
    ProcResult,
    process::{MMPermissions, MMapPath, MemoryMap, Process},
};
use tracing::debug;

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
