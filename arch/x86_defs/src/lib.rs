//! Registers, MSRs, descriptors and page-table bits of x86, as the SDM and APM name them.
//!
//! Facts only: constants and small types, no behaviour that needs a machine. "SDM" is
//! Intel's Software Developer's Manual, "APM" AMD's Architecture Programmer's Manual.

pub mod cr;
pub mod dr;
pub mod exception;
pub mod msr;
pub mod paging;
pub mod rflags;
pub mod segment;
pub mod xsave;

/// Bytes in the smallest page.
pub const PAGE_SIZE: u64 = 4096;

/// Longest instruction, prefixes included (SDM volume 2, 2.3.11).
pub const MAX_INSTRUCTION_LEN: usize = 15;

/// A general register's number in instruction encodings, and its index in register files.
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    pub const R8: usize = 8;
    pub const R9: usize = 9;
    pub const R10: usize = 10;
    pub const R11: usize = 11;
    pub const R12: usize = 12;
    pub const R13: usize = 13;
    pub const R14: usize = 14;
    pub const R15: usize = 15;
}

/// True if a linear address is canonical for 48-bit linear addresses (SDM volume 1, 3.3.7.1).
#[inline]
pub const fn is_canonical_48(address: u64) -> bool {
    ((address as i64) << 16 >> 16) as u64 == address
}

/// A message-signalled interrupt (SDM volume 3, 11.11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Msi {
    pub address: u64,
    pub data: u32,
}
