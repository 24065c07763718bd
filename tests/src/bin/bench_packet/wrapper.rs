//! A program that restores the packet and then calls the one that is measured.
//!
//! A test run repeats a program on the packet as the last repetition left it, so that from the second on a translating
//! program would meet a packet that is translated already. The wrapper writes all headers anew each time and goes over
//! by a tail call. What it costs itself is measured with a program that does nothing behind it: the floor.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use proxy_tests::packets::sys::{self, Kind};

/// What the wrapper writes.
pub(crate) struct Restore<'p> {
    /// The frame.
    pub(crate) frame: &'p [u8],
    /// How many of its bytes, at least: all headers.
    pub(crate) headers: usize,
    /// Offsets of 16-bit words that are random in each repetition, for a new flow every time.
    pub(crate) random: Option<[usize; 2]>,
}

/// The wrapper and what it needs.
pub(crate) struct Wrapper {
    program: OwnedFd,
    _array: OwnedFd,
}

impl Wrapper {
    /// Wraps a program of this type.
    pub(crate) fn new(kind: Kind, program: BorrowedFd<'_>, restore: &Restore<'_>) -> io::Result<Self> {
        let array = sys::program_array(program)?;
        let program = sys::load(kind, &instructions(kind, array.as_raw_fd(), restore))?;
        Ok(Self { program, _array: array })
    }

    /// Its program.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }
}

/// A program that returns at once.
pub(crate) fn empty(kind: Kind) -> io::Result<OwnedFd> {
    let result = if kind == Kind::Tc { -1 } else { 2 };
    sys::load(kind, &[op(0xb7, 0, 0, 0, result), op(EXIT, 0, 0, 0, 0)])
}

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const LOAD_IMMEDIATE: u8 = 0x18;
const STORE_DOUBLE: u8 = 0x7b;
const STORE_HALF: u8 = 0x6b;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// One instruction: operation, destination and source register, offset, immediate.
fn op(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> u64 {
    code as u64
        | (dst as u64) << 8
        | (src as u64) << 12
        | (offset as u16 as u64) << 16
        | (immediate as u32 as u64) << 32
}

fn instructions(kind: Kind, array: i32, restore: &Restore<'_>) -> Vec<u64> {
    const GET_PRANDOM_U32: i32 = 7;
    const TAIL_CALL: i32 = 12;
    const PSEUDO_MAP_FD: u8 = 1;
    let (data, end) = if kind == Kind::Tc { (76, 80) } else { (0, 4) };
    let words = restore.headers.div_ceil(8);
    let mut code = vec![op(MOVE, 6, 1, 0, 0)];
    if restore.random.is_some() {
        code.push(op(CALL, 0, 0, 0, GET_PRANDOM_U32));
        code.push(op(MOVE, 7, 0, 0, 0));
    }
    code.push(op(LOAD_WORD, 2, 6, data, 0));
    code.push(op(LOAD_WORD, 3, 6, end, 0));
    code.push(op(MOVE, 4, 2, 0, 0));
    code.push(op(0x07, 4, 0, 0, 8 * words as i32));
    let check = code.len();
    code.push(0);
    for (at, chunk) in restore.frame.chunks_exact(8).take(words).enumerate() {
        let half = |at: usize| i32::from_le_bytes([chunk[at], chunk[at + 1], chunk[at + 2], chunk[at + 3]]);
        code.extend([op(LOAD_IMMEDIATE, 5, 0, 0, half(0)), op(0, 0, 0, 0, half(4))]);
        code.push(op(STORE_DOUBLE, 2, 5, 8 * at as i16, 0));
    }
    if let Some([first, second]) = restore.random {
        code.push(op(STORE_HALF, 2, 7, first as i16, 0));
        code.push(op(0x77, 7, 0, 0, 16));
        code.push(op(STORE_HALF, 2, 7, second as i16, 0));
    }
    code.push(op(MOVE, 1, 6, 0, 0));
    code.extend([op(LOAD_IMMEDIATE, 2, PSEUDO_MAP_FD, 0, array), 0]);
    code.push(op(0xb7, 3, 0, 0, 0));
    code.push(op(CALL, 0, 0, 0, TAIL_CALL));
    // A frame that is too short, or a program that is missing: no result of a program under test.
    code[check] = op(0x2d, 4, 3, (code.len() - check - 1) as i16, 0);
    code.extend([op(0xb7, 0, 0, 0, 0x7bad), op(EXIT, 0, 0, 0, 0)]);
    code
}
