//! mmap-ed array maps: the agent publishes with plain stores, without a system call.
#![expect(unsafe_code, reason = "memory that the kernel shares")]

use std::{
    cell::Cell,
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::atomic::{AtomicU8, AtomicU16, AtomicU64},
};

use aya::{
    Pod,
    maps::{MapData, MapError},
};
use memmap2::{MmapOptions, MmapRaw};
use proxy_common::shared::Published as _;

/// An array map with `BPF_F_MMAPABLE`, mapped for as long as this lives.
///
/// Invariant: the mapping has `len` elements of [`Self::STRIDE`] bytes, shared with the kernel's programs. All access is by
/// atomic or volatile operations, so that both sides may touch it at any time.
pub(super) struct MmapArray<T> {
    mapping: MmapRaw,
    len: u32,
    /// One thread at a time writes.
    value: PhantomData<Cell<T>>,
}

impl<T: Pod> MmapArray<T> {
    /// The kernel lays elements out in multiples of 8 bytes.
    const STRIDE: usize = size_of::<T>().next_multiple_of(8);

    /// Maps all of a map.
    pub(super) fn map(map: &MapData) -> Result<Self, MapError> {
        let len = map.info()?.max_entries();
        let mapping =
            MmapOptions::new().len(len as usize * Self::STRIDE).map_raw(map.fd().as_fd().as_raw_fd())?;
        Ok(Self { mapping, len, value: PhantomData })
    }

    /// Memory that no program sees.
    #[cfg(test)]
    pub(super) fn anonymous(len: u32) -> Self {
        let mapping = MmapOptions::new().len(len as usize * Self::STRIDE).map_anon().unwrap().into();
        Self { mapping, len, value: PhantomData }
    }

    /// Memory that is mapped twice: once for the agent, once for a reader.
    #[cfg(test)]
    pub(super) fn anonymous_twice(len: u32) -> (Self, Self) {
        let size = len as usize * Self::STRIDE;
        let file = tempfile::tempfile().unwrap();
        file.set_len(size as u64).unwrap();
        let map = || {
            let mapping = MmapOptions::new().len(size).map_raw(&file).unwrap();
            Self { mapping, len, value: PhantomData }
        };
        (map(), map())
    }

    /// Number of elements.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// Element `index`; `None` beyond the end.
    fn at(&self, index: u32) -> Option<*mut u8> {
        #[cfg(test)]
        steps::step();
        (index < self.len).then(|| self.mapping.as_mut_ptr().wrapping_add(index as usize * Self::STRIDE))
    }

    /// Writes an element that no reader uses yet; false beyond the end.
    pub(super) fn write(&self, index: u32, value: T) -> bool {
        // SAFETY: `at` is within the mapping, aligned to 8, and T is plain data.
        self.at(index).map(|at| unsafe { at.cast::<T>().write_volatile(value) }).is_some()
    }

    /// A copy of an element that is not written meanwhile; `None` beyond the end.
    pub(super) fn read(&self, index: u32) -> Option<T> {
        // SAFETY: `at` is within the mapping, aligned to 8, and T is plain data.
        self.at(index).map(|at| unsafe { at.cast::<T>().read_volatile() })
    }

    /// Copies all elements into a larger array that no reader uses yet.
    pub(super) fn copy_to(&self, larger: &Self) {
        for index in 0..self.len.min(larger.len) {
            if let Some(value) = self.read(index) {
                larger.write(index, value);
            }
        }
    }

    /// The element as one atomic word, for elements of 8 bytes.
    pub(super) fn word(&self, index: u32) -> Option<&AtomicU64> {
        const { assert!(size_of::<T>() == 8) };
        // SAFETY: `at` is within the mapping and aligned to 8; the mapping lives as long as the reference.
        self.at(index).map(|at| unsafe { AtomicU64::from_ptr(at.cast()) })
    }

    /// A byte of an element, which others may write at any time; `None` beyond the end.
    pub(super) fn byte(&self, index: u32, at: u32) -> Option<&AtomicU8> {
        let start = self.at(index).filter(|_| (at as usize) < size_of::<T>())?;
        // SAFETY: within the element, and so within the mapping, which lives as long as the reference.
        Some(unsafe { AtomicU8::from_ptr(start.wrapping_add(at as usize)) })
    }

    /// Half-word `index` of the whole array, for arrays without gaps between elements.
    pub(super) fn half(&self, index: u32) -> Option<&AtomicU16> {
        const { assert!(size_of::<T>() == 8) };
        let element = self.at(index / 4)?.cast::<u16>();
        // SAFETY: within the element and aligned to 2; the mapping lives as long as the reference.
        Some(unsafe { AtomicU16::from_ptr(element.wrapping_add(index as usize % 4)) })
    }

    /// Publishes a word: a reader that sees it sees all that was written before. False beyond the end.
    pub(super) fn publish(&self, index: u32, word: u64) -> bool {
        self.word(index).map(|at| at.publish(word)).is_some()
    }
}

/// Between two steps of the agent a test observes all states that a reader may see.
#[cfg(test)]
pub(super) mod steps {
    use std::cell::RefCell;

    thread_local! {
        static OBSERVER: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
    }

    /// Calls `observer` before each access of this thread to an array, its own excepted, while `run` runs.
    pub(in crate::datapath) fn observed<R>(observer: impl FnMut() + 'static, run: impl FnOnce() -> R) -> R {
        OBSERVER.set(Some(Box::new(observer)));
        let result = run();
        OBSERVER.take();
        result
    }

    pub(super) fn step() {
        let Some(mut observer) = OBSERVER.take() else { return };
        observer();
        OBSERVER.set(Some(observer));
    }
}
