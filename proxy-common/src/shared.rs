//! Words that the programs and the agent read and write at the same time, with their memory orders.
//!
//! The agent implements them by atomics, the programs by volatile accesses to map memory. Tests implement them by loom's atomics, with the
//! orders of this file, and go through all interleavings of the protocols over them: [publication and quarantine](self) in
//! `shared/publication.rs`, the epochs of the reply filter in `layout/reply_filter/model.rs`.

#[cfg(test)]
mod publication;

/// Operations of both sides.
pub trait Shared<T> {
    /// Loads the value. Only dependent accesses are ordered after it: a reader computes from it where to read
    /// next.
    fn load(&self) -> T;
    /// Writes a value that readers may see before or after earlier writes.
    fn store(&self, value: T);
}

/// Operations of the agent only.
pub trait Published<T>: Shared<T> {
    /// Writes a value: a reader that sees it sees all earlier writes.
    fn publish(&self, value: T);
    /// Publishes a value in place of `current`; false if the word has another one by now.
    fn replace(&self, current: T, new: T) -> bool;
}

impl<T, S: Shared<T>> Shared<T> for &S {
    #[inline(always)]
    fn load(&self) -> T {
        S::load(self)
    }

    #[inline(always)]
    fn store(&self, value: T) {
        S::store(self, value);
    }
}

#[cfg(not(target_arch = "bpf"))]
macro_rules! shared {
    ($store:ident: $($atomic:ty => $type:ty),*) => { $(
        impl $crate::shared::Shared<$type> for $atomic {
            #[inline(always)]
            fn load(&self) -> $type {
                <$atomic>::load(self, core::sync::atomic::Ordering::Relaxed)
            }

            #[inline(always)]
            fn store(&self, value: $type) {
                <$atomic>::$store(self, value, core::sync::atomic::Ordering::Relaxed);
            }
        }

        impl $crate::shared::Published<$type> for $atomic {
            #[inline(always)]
            fn publish(&self, value: $type) {
                <$atomic>::$store(self, value, core::sync::atomic::Ordering::Release);
            }

            #[inline(always)]
            fn replace(&self, current: $type, new: $type) -> bool {
                use core::sync::atomic::Ordering::{Relaxed, Release};
                <$atomic>::compare_exchange(self, current, new, Release, Relaxed).is_ok()
            }
        }
    )* };
}

// BPF has no atomic byte and half-word, and no compare and exchange before v3 of its instructions; programs do
// not publish.
#[cfg(not(target_arch = "bpf"))]
shared!(store:
    core::sync::atomic::AtomicU8 => u8,
    core::sync::atomic::AtomicU16 => u16,
    core::sync::atomic::AtomicU64 => u64
);

// Loom does not order a compare and exchange directly after the store that it read, in the order of all stores
// to the word. It does order exchanges so; therefore stores are exchanges here.
#[cfg(test)]
shared!(swap: loom::sync::atomic::AtomicU8 => u8, loom::sync::atomic::AtomicU16 => u16, loom::sync::atomic::AtomicU64 => u64);
