//! `peer_cells_v4`, `peer_cells_v6`: translations of connected sockets in an array, so that the kernel allocates no
//! storage for most of them.
//!
//! The cookie of a socket selects one cell. A cell has one owner until that is closed: no other socket can evict its record. A socket that
//! finds its cell taken gets socket storage instead.

use core::{marker::PhantomData, ptr::NonNull};

use super::ConnectedPeer;
use crate::{Family, V4, V6};

#[cfg(test)]
mod model;

/// Number of cells of a family. It must not change without a new layout of the maps' group: releases that share a pinned map have to
/// select the same cell for a cookie.
///
/// The kernel gives each CPU blocks of cookies and counts up within a block. Not only clients get them: when `sock_release` asks for the cookie
/// of a socket without one, as of a connection that a server accepted, the kernel gives it the next. So on a CPU that runs both ends of
/// connections, clients use about every second cell.
pub const CELLS: u32 = 1 << 14;

/// A cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PeerCell<F: Family> {
    /// Cookie of the owner, or of the last one.
    cookie: u64,
    /// 1 while a socket owns the cell; more while others try to get it.
    claims: u64,
    /// Low half of the cookie of the last owner that released the cell.
    released: u32,
    /// What the socket requested and got.
    peer: ConnectedPeer<F>,
}

impl<F: Family> PeerCell<F> {
    /// A cell with an owner. For tests.
    pub fn new(cookie: u64, peer: ConnectedPeer<F>) -> Self {
        Self { cookie, claims: 1, released: !(cookie as u32), peer }
    }

    /// The cell of a socket.
    #[inline(always)]
    pub const fn index(cookie: u64) -> u32 {
        cookie as u32 & (CELLS - 1)
    }

    /// Cookie of the socket that owns the cell.
    pub fn owner(&self) -> Option<u64> {
        (self.cookie != 0 && self.released != self.cookie as u32).then_some(self.cookie)
    }

    /// The owner's record.
    pub fn peer(&self) -> &ConnectedPeer<F> {
        &self.peer
    }
}

/// The number of sockets that own a cell or try to, in a word that all CPUs may change. An addition is atomic, but returns
/// nothing: kernels before 5.12 refuse programs with other atomic operations.
pub trait Claims {
    /// Reads the number.
    fn load(&self) -> u64;
    /// Adds to it, modulo 2^64.
    fn add(&self, number: u64);
}

/// Tries to get a cell; false if another socket owns it, or tries at the same time.
///
/// The word is the number of sockets that added 1 and did not take it back. A socket that adds and then reads 1 is the only
/// one of them; a socket that adds later reads at least 2 until the first one leaves. All CPUs see the changes of one word
/// in the same order, and nothing else is needed.
#[inline(always)]
fn claim(claims: &impl Claims) -> bool {
    if claims.load() != 0 {
        return false;
    }
    claims.add(1);
    if claims.load() == 1 {
        return true;
    }
    claims.add(u64::MAX);
    false
}

/// Releases a cell, after [`claim`].
#[inline(always)]
fn unclaim(claims: &impl Claims) {
    claims.add(u64::MAX);
}

/// A cell, which other CPUs may read and write at the same time.
#[derive(Clone, Copy, Debug)]
pub struct PeerCellRef<'t, F: Family> {
    at: NonNull<PeerCell<F>>,
    lives: PhantomData<&'t F>,
}

impl<F: Family> PeerCellRef<'_, F> {
    /// Wraps a pointer to a cell.
    ///
    /// # Safety
    /// The cell is readable and writable for this lifetime, and no reference to it exists.
    #[inline(always)]
    pub unsafe fn new(at: NonNull<PeerCell<F>>) -> Self {
        Self { at, lives: PhantomData }
    }

    /// Whether this socket owns the cell.
    #[inline(always)]
    fn is_of(&self, cookie: u64) -> bool {
        let at = self.at.as_ptr();
        // SAFETY: see `new`.
        unsafe {
            (&raw const (*at).cookie).read_volatile() == cookie
                && (&raw const (*at).released).read_volatile() != cookie as u32
        }
    }

    /// The record of this socket, if it owns the cell.
    #[inline(always)]
    pub fn get(&self, cookie: u64) -> Option<ConnectedPeer<F>> {
        // SAFETY: see `new`. Torn only for a socket that races with itself, as its storage is.
        self.is_of(cookie).then(|| unsafe { (&raw const (*self.at.as_ptr()).peer).read_volatile() })
    }

    /// Writes the record of this socket; false if another one owns the cell.
    #[inline(always)]
    pub fn set<C: Claims + From<*mut u64>>(&self, cookie: u64, peer: &ConnectedPeer<F>) -> bool {
        let at = self.at.as_ptr();
        if !self.is_of(cookie) {
            if !claim(&self.claims::<C>()) {
                return false;
            }
            // The stores may become visible in any order (arm64), and `released` before the cookie makes the last owner's record seem
            // to live. No hook reads it, because that socket is closed, and this one is not connected before `connect` returns. The
            // agent at worst reads a mix for a socket that was closed since it listed it.
            // SAFETY: see `new`.
            unsafe {
                (&raw mut (*at).peer).write_volatile(*peer);
                (&raw mut (*at).released).write_volatile(!(cookie as u32));
                (&raw mut (*at).cookie).write_volatile(cookie);
            }
            return true;
        }
        // SAFETY: see `new`.
        unsafe { (&raw mut (*at).peer).write_volatile(*peer) };
        true
    }

    /// Empties the record of this socket, which stays the owner.
    #[inline(always)]
    pub fn clear(&self, cookie: u64) {
        if self.is_of(cookie) {
            // SAFETY: see `new`. No socket is connected to port 0.
            unsafe { (&raw mut (*self.at.as_ptr()).peer).write_volatile(ConnectedPeer::default()) };
        }
    }

    /// The socket is closed: another one may own the cell.
    ///
    /// The cookie stays, because the next owner may write its own at the same time. The kernel does not use a cookie twice.
    #[inline(always)]
    pub fn release<C: Claims + From<*mut u64>>(&self, cookie: u64) {
        if self.is_of(cookie) {
            // SAFETY: see `new`.
            unsafe { (&raw mut (*self.at.as_ptr()).released).write_volatile(cookie as u32) };
            unclaim(&self.claims::<C>());
        }
    }

    #[inline(always)]
    fn claims<C: From<*mut u64>>(&self) -> C {
        // SAFETY: see `new`.
        C::from(unsafe { &raw mut (*self.at.as_ptr()).claims })
    }
}

super::super::plain!(PeerCell<F>);

const _: () = {
    assert!(size_of::<PeerCell<V4>>() == 40 && size_of::<PeerCell<V6>>() == 64);
    assert!(CELLS.is_power_of_two());
};

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    struct Word(*mut u64);

    impl From<*mut u64> for Word {
        fn from(word: *mut u64) -> Self {
            Self(word)
        }
    }

    impl Word {
        fn atomic(&self) -> &AtomicU64 {
            // SAFETY: a word of a cell that lives.
            unsafe { AtomicU64::from_ptr(self.0) }
        }
    }

    impl Claims for Word {
        fn load(&self) -> u64 {
            self.atomic().load(Ordering::Relaxed)
        }

        fn add(&self, number: u64) {
            self.atomic().fetch_add(number, Ordering::Relaxed);
        }
    }
    use crate::layout::id::Id;

    fn peer(vip: u32) -> ConnectedPeer<V4> {
        ConnectedPeer { vip, backend: 2, vip_port: 53, backend_port: 53, backend_id: Id(3), service: Id(4) }
    }

    fn with_cell(test: impl FnOnce(PeerCellRef<'_, V4>)) {
        let mut cell = PeerCell::<V4>::default();
        // SAFETY: used only through the reference while that lives.
        test(unsafe { PeerCellRef::new(NonNull::from(&mut cell)) });
    }

    #[test]
    fn a_socket_keeps_its_cell_until_it_is_closed() {
        let other = 5 + u64::from(CELLS);
        assert_eq!(PeerCell::<V4>::index(other), PeerCell::<V4>::index(5));
        with_cell(|cell| {
            assert_eq!((cell.get(0), cell.get(5)), (None, None));
            assert!(cell.set::<Word>(5, &peer(1)));
            assert!(!cell.set::<Word>(other, &peer(2)));
            assert_eq!((cell.get(5), cell.get(other)), (Some(peer(1)), None));
            // It connects elsewhere, and again.
            cell.clear(5);
            assert_eq!(cell.get(5), Some(ConnectedPeer::default()));
            assert!(!cell.set::<Word>(other, &peer(2)));
            assert!(cell.set::<Word>(5, &peer(3)));
            // Another socket's end, and its own, twice.
            cell.release::<Word>(other);
            assert_eq!(cell.get(5), Some(peer(3)));
            cell.release::<Word>(5);
            cell.release::<Word>(5);
            assert_eq!(cell.get(5), None);
            assert!(cell.set::<Word>(other, &peer(4)));
            cell.release::<Word>(5);
            assert_eq!(cell.get(other), Some(peer(4)));
            assert!(!cell.set::<Word>(6 + u64::from(CELLS), &peer(5)));
        });
    }

    #[test]
    fn a_new_cell_has_an_owner() {
        let mut cell = PeerCell::<V4>::new(7, peer(1));
        assert_eq!((cell.owner(), *cell.peer()), (Some(7), peer(1)));
        // SAFETY: as above.
        let shared = unsafe { PeerCellRef::new(NonNull::from(&mut cell)) };
        assert_eq!(shared.get(7), Some(peer(1)));
        assert!(!shared.set::<Word>(8, &peer(2)));
        shared.release::<Word>(7);
        assert_eq!(cell.owner(), None);
        assert_eq!(PeerCell::<V4>::default().owner(), None);
    }

    /// The low half of a cookie may be 0.
    #[test]
    fn any_cookie_has_a_cell() {
        for cookie in [1, 1 << 32, u64::from(u32::MAX), u64::MAX] {
            with_cell(|cell| {
                assert!(cell.set::<Word>(cookie, &peer(1)));
                assert_eq!(cell.get(cookie), Some(peer(1)));
                cell.release::<Word>(cookie);
                assert_eq!(cell.get(cookie), None);
                assert!(cell.set::<Word>(9, &peer(2)));
            });
        }
    }
}
