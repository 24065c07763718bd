//! Programs of a few instructions, assembled by hand: the baselines beside our programs must not depend on a compiler.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use proxy_packets::sys::{self, Kind};

/// The result of a program that met a packet it does not expect: no program under test returns it.
const UNEXPECTED: i32 = 0x7bad;

/// How many bytes an instruction loads or stores.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(crate) enum Size {
    Word = 0x00,
    Half = 0x08,
    Byte = 0x10,
    Double = 0x18,
}

/// Instructions so far. Registers are named by their numbers; 10 is the frame pointer.
pub(crate) struct Program {
    kind: Kind,
    code: Vec<u64>,
    /// Jumps to the end, where [`UNEXPECTED`] is returned.
    jumps: Vec<usize>,
}

impl Program {
    pub(crate) fn new(kind: Kind) -> Self {
        Self { kind, code: Vec::new(), jumps: Vec::new() }
    }

    /// One instruction: operation, destination and source register, offset, immediate.
    fn op(&mut self, code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> &mut Self {
        self.code.push(
            code as u64
                | (dst as u64) << 8
                | (src as u64) << 12
                | (offset as u16 as u64) << 16
                | (immediate as u32 as u64) << 32,
        );
        self
    }

    /// `dst = src`
    pub(crate) fn copy(&mut self, dst: u8, src: u8) -> &mut Self {
        self.op(0xbf, dst, src, 0, 0)
    }

    /// `dst = value`
    pub(crate) fn set(&mut self, dst: u8, value: i32) -> &mut Self {
        self.op(0xb7, dst, 0, 0, value)
    }

    /// `dst = value`, of 64 bits
    pub(crate) fn set_long(&mut self, dst: u8, value: u64) -> &mut Self {
        self.wide(dst, 0, value as i32, (value >> 32) as i32)
    }

    fn wide(&mut self, dst: u8, src: u8, low: i32, high: i32) -> &mut Self {
        const LOAD_IMMEDIATE: u8 = 0x18;
        self.op(LOAD_IMMEDIATE, dst, src, 0, low).op(0, 0, 0, 0, high)
    }

    /// `dst += value`
    pub(crate) fn add(&mut self, dst: u8, value: i32) -> &mut Self {
        self.op(0x07, dst, 0, 0, value)
    }

    /// `dst >>= bits`
    pub(crate) fn shift_right(&mut self, dst: u8, bits: i32) -> &mut Self {
        self.op(0x77, dst, 0, 0, bits)
    }

    /// `dst %= divisor`, of 32 bits
    pub(crate) fn modulo(&mut self, dst: u8, divisor: u32) -> &mut Self {
        if divisor.is_power_of_two() {
            self.op(0x54, dst, 0, 0, (divisor - 1) as i32)
        } else {
            self.op(0x94, dst, 0, 0, divisor as i32)
        }
    }

    /// Makes network byte order of so many bits.
    pub(crate) fn network_order(&mut self, dst: u8, bits: i32) -> &mut Self {
        self.op(0xdc, dst, 0, 0, bits)
    }

    /// `dst = *(base + offset)`
    pub(crate) fn load(&mut self, size: Size, dst: u8, base: u8, offset: i16) -> &mut Self {
        self.op(0x61 | size as u8, dst, base, offset, 0)
    }

    /// `*(base + offset) = src`
    pub(crate) fn store(&mut self, size: Size, base: u8, offset: i16, src: u8) -> &mut Self {
        self.op(0x63 | size as u8, base, src, offset, 0)
    }

    /// Continues only if `register == value`.
    pub(crate) fn expect(&mut self, register: u8, value: i32) -> &mut Self {
        self.jumps.push(self.code.len());
        self.op(0x55, register, 0, 0, value)
    }

    /// Continues only if `register != 0`.
    pub(crate) fn expect_some(&mut self, register: u8) -> &mut Self {
        self.jumps.push(self.code.len());
        self.op(0x15, register, 0, 0, 0)
    }

    /// `dst = data` of the packet whose context is in `context`; continues only if it has so many bytes. Overwrites
    /// registers 3 and 4.
    pub(crate) fn packet(&mut self, dst: u8, context: u8, length: usize) -> &mut Self {
        let (data, end) = if self.kind == Kind::Tc { (76, 80) } else { (0, 4) };
        self.load(Size::Word, dst, context, data).load(Size::Word, 3, context, end);
        self.copy(4, dst).add(4, length as i32);
        self.jumps.push(self.code.len());
        self.op(0x2d, 4, 3, 0, 0)
    }

    /// `dst = map`
    pub(crate) fn map(&mut self, dst: u8, map: BorrowedFd<'_>) -> &mut Self {
        const PSEUDO_MAP_FD: u8 = 1;
        self.wide(dst, PSEUDO_MAP_FD, map.as_raw_fd(), 0)
    }

    /// `dst = pointer to the first element`, of an array
    pub(crate) fn first_element(&mut self, dst: u8, array: BorrowedFd<'_>) -> &mut Self {
        const PSEUDO_MAP_VALUE: u8 = 2;
        self.wide(dst, PSEUDO_MAP_VALUE, array.as_raw_fd(), 0)
    }

    /// Calls a helper: arguments in 1 to 5, the result in 0.
    pub(crate) fn call(&mut self, helper: Helper) -> &mut Self {
        self.op(0x85, 0, 0, 0, helper as i32)
    }

    /// Returns the code that passes the packet on.
    pub(crate) fn pass(&mut self) -> &mut Self {
        let result = passes(self.kind) as i32;
        self.set(0, result).op(EXIT, 0, 0, 0, 0)
    }

    /// Returns a code that no program under test returns.
    pub(crate) fn unexpected(&mut self) -> &mut Self {
        self.set(0, UNEXPECTED).op(EXIT, 0, 0, 0, 0)
    }

    /// Loads it.
    pub(crate) fn build(&mut self) -> io::Result<OwnedFd> {
        let end = self.code.len();
        for jump in &self.jumps {
            self.code[*jump] |= ((end - jump - 1) as u64) << 16;
        }
        if !self.jumps.is_empty() {
            self.unexpected();
        }
        sys::load(self.kind, &self.code)
    }
}

const EXIT: u8 = 0x95;

/// Numbers of helpers.
#[derive(Clone, Copy)]
#[repr(i32)]
pub(crate) enum Helper {
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    TailCall = 12,
    FibLookup = 69,
}

/// The code that passes a packet on: to the next program, or the stack.
pub(crate) fn passes(kind: Kind) -> u32 {
    const NEXT: u32 = u32::MAX;
    const XDP_PASS: u32 = 2;
    if kind == Kind::Tc { NEXT } else { XDP_PASS }
}
