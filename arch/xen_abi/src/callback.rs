//! `callback.h`: where the kernel is entered for what is no trap.

use crate::layout;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `CALLBACKOP_register`.
pub const REGISTER: u64 = 0;
/// `CALLBACKOP_unregister`.
pub const UNREGISTER: u64 = 1;

/// `CALLBACKTYPE_*`.
pub mod kind {
    pub const EVENT: u16 = 0;
    pub const FAILSAFE: u16 = 1;
    pub const SYSCALL: u16 = 2;
    pub const NMI: u16 = 4;
    pub const SYSENTER: u16 = 5;
    pub const SYSCALL32: u16 = 7;
}

/// `CALLBACKF_mask_events`: events are masked when it is entered.
pub const MASK_EVENTS: u16 = 1 << 0;

/// `struct callback_register`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Register {
    pub kind: u16,
    pub flags: u16,
    pub reserved: u32,
    pub address: u64,
}

layout!(Register, 16, flags @ 2, address @ 8);
