//! `arch-x86/xen.h` and `arch-x86/xen-x86_64.h`: traps, selectors, what IRET takes.

use crate::layout;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The hypervisor's entries of the GDT begin here; below are the domain's.
pub const FIRST_RESERVED_GDT_ENTRY: u32 = 14 * 512;

/// `FLAT_RING3_*`: the hypervisor's selectors.
pub mod selector {
    /// `__HYPERVISOR_CS`: ring 0.
    pub const HYPERVISOR: u16 = 0xe008;
    pub const CS32: u16 = 0xe023;
    pub const DS32: u16 = 0xe02b;
    pub const SS: u16 = 0xe02b;
    pub const CS64: u16 = 0xe033;
}

/// `struct trap_info`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TrapInfo {
    pub vector: u8,
    /// The ring that may use INT, and [`MASKS_EVENTS`].
    pub flags: u8,
    pub cs: u16,
    pub padding: u32,
    pub address: u64,
}

/// The handler is entered with events masked.
pub const MASKS_EVENTS: u8 = 1 << 2;

/// `struct iret_context`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IretContext {
    pub rax: u64,
    pub r11: u64,
    pub rcx: u64,
    pub flags: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// `VGCF_in_syscall`: RCX and R11 need not come back.
pub const IN_SYSCALL: u64 = 1 << 8;

layout!(TrapInfo, 16, cs @ 2, address @ 8);
layout!(IretContext, 72, rip @ 32, ss @ 64);
