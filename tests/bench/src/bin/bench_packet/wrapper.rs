//! A program that restores the packet and then calls the one that is measured.
//!
//! A test run repeats a program on the packet as the last repetition left it, so that from the second on a translating
//! program would meet a packet that is translated already. The wrapper writes all headers again each time and then
//! makes a tail call. Its own cost is measured with a program that does nothing behind it: the baseline.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use proxy_packets::sys::{self, Kind, MapKind};

use crate::asm::{Helper, Program, Size};

/// A frame, and how it differs in each repetition.
#[derive(Clone)]
pub(crate) struct Packet {
    /// All of it.
    pub(crate) frame: Vec<u8>,
    /// How many of its bytes are written again, at least: all headers.
    pub(crate) headers: usize,
    /// The varied fields.
    pub(crate) varied: Vec<Vary>,
}

/// A field that follows the number of the repetition.
#[derive(Clone, Copy)]
pub(crate) struct Vary {
    /// Where it is.
    pub(crate) at: usize,
    /// 2 or 4 bytes, network byte order.
    pub(crate) bytes: usize,
    /// Its value is `first + (repetition >> shift) % values`.
    pub(crate) first: u32,
    /// See `first`.
    pub(crate) shift: i32,
    /// See `first`.
    pub(crate) values: u32,
}

impl Vary {
    /// All values of 16 bits, one after the other; from the second such field on with `shift`, when those before it
    /// begin again.
    pub(crate) fn word(at: usize, shift: i32) -> Self {
        Self { at, bytes: 2, first: 0, shift, values: 1 << 16 }
    }
}

/// The wrapper and its maps.
pub(crate) struct Wrapper {
    program: OwnedFd,
    _array: OwnedFd,
    _counter: OwnedFd,
}

impl Wrapper {
    /// Wraps a program of this type.
    pub(crate) fn new(kind: Kind, program: BorrowedFd<'_>, packet: &Packet) -> io::Result<Self> {
        let array = sys::program_array(program)?;
        let counter = sys::create_map(MapKind::Array, 4, 8, 1)?;
        let program = wrap(kind, array.as_fd(), counter.as_fd(), packet)?;
        Ok(Self { program, _array: array, _counter: counter })
    }

    /// Its program.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }
}

/// A program that returns at once.
pub(crate) fn empty(kind: Kind) -> io::Result<OwnedFd> {
    Program::new(kind).pass().build()
}

fn wrap(kind: Kind, array: BorrowedFd<'_>, counter: BorrowedFd<'_>, packet: &Packet) -> io::Result<OwnedFd> {
    const CONTEXT: u8 = 6;
    const REPETITION: u8 = 8;
    let words = packet.headers.div_ceil(8);
    let mut program = Program::new(kind);
    program.copy(CONTEXT, 1);
    if !packet.varied.is_empty() {
        program.first_element(7, counter).load(Size::Double, REPETITION, 7, 0);
        program.copy(9, REPETITION).add(9, 1).store(Size::Double, 7, 0, 9);
    }
    program.packet(2, CONTEXT, 8 * words);
    for (at, chunk) in packet.frame.chunks_exact(8).take(words).enumerate() {
        let word = chunk.iter().rev().fold(0, |word, byte| word << 8 | *byte as u64);
        program.set_long(5, word).store(Size::Double, 2, 8 * at as i16, 5);
    }
    for Vary { at, bytes, first, shift, values } in packet.varied.iter().copied() {
        program.copy(5, REPETITION).shift_right(5, shift).modulo(5, values).add(5, first as i32);
        let size = if bytes == 2 { Size::Half } else { Size::Word };
        program.network_order(5, 8 * bytes as i32).store(size, 2, at as i16, 5);
    }
    program.copy(1, CONTEXT).map(2, array).set(3, 0).call(Helper::TailCall);
    // A program that is missing.
    program.unexpected().build()
}
