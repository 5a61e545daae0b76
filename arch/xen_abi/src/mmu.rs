//! `xen.h`: updates of page tables.

use crate::layout;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Low bits of [`Update::target`]: `MMU_*`.
pub mod command {
    pub const MASK: u64 = 3;
    pub const NORMAL_PT_UPDATE: u64 = 0;
    pub const MACHPHYS_UPDATE: u64 = 1;
    pub const PT_UPDATE_PRESERVE_AD: u64 = 2;
    pub const PT_UPDATE_NO_TRANSLATE: u64 = 3;
}

/// `MMU_UPDATE_PREEMPTED`: the count goes on from an earlier call's.
pub const UPDATE_PREEMPTED: u64 = 1 << 31;

/// `struct mmu_update`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Update {
    /// Machine address of the entry, and a command.
    pub target: u64,
    pub value: u64,
}

/// `MMUEXT_*`.
pub mod ext {
    pub const PIN_L1_TABLE: u32 = 0;
    pub const PIN_L2_TABLE: u32 = 1;
    pub const PIN_L3_TABLE: u32 = 2;
    pub const PIN_L4_TABLE: u32 = 3;
    pub const UNPIN_TABLE: u32 = 4;
    pub const NEW_BASEPTR: u32 = 5;
    pub const TLB_FLUSH_LOCAL: u32 = 6;
    pub const INVLPG_LOCAL: u32 = 7;
    pub const TLB_FLUSH_MULTI: u32 = 8;
    pub const INVLPG_MULTI: u32 = 9;
    pub const TLB_FLUSH_ALL: u32 = 10;
    pub const INVLPG_ALL: u32 = 11;
    pub const FLUSH_CACHE: u32 = 12;
    pub const SET_LDT: u32 = 13;
    pub const NEW_USER_BASEPTR: u32 = 15;
    pub const CLEAR_PAGE: u32 = 16;
    pub const COPY_PAGE: u32 = 17;
}

/// `struct mmuext_op`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ExtOp {
    pub command: u32,
    pub padding: u32,
    /// A frame, or a linear address.
    pub arg1: u64,
    /// A number of entries, or the address of a mask of vCPUs.
    pub arg2: u64,
}

/// `UVMF_*`: flags of `update_va_mapping`.
pub mod flush {
    pub const TYPE: u64 = 3;
    pub const NONE: u64 = 0;
    pub const TLB_FLUSH: u64 = 1;
    pub const INVLPG: u64 = 2;
    /// Everywhere, instead of by a mask whose address the flags have.
    pub const ALL: u64 = 1 << 2;
}

layout!(Update, 16, value @ 8);
layout!(ExtOp, 24, arg1 @ 8, arg2 @ 16);
