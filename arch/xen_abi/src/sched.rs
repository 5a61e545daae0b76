//! `sched.h`: giving up the processor, and the end.

use crate::layout;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `SCHEDOP_*`.
pub mod op {
    pub const YIELD: u64 = 0;
    pub const BLOCK: u64 = 1;
    pub const SHUTDOWN: u64 = 2;
    pub const POLL: u64 = 3;
}

/// `SHUTDOWN_*`.
pub mod reason {
    pub const POWEROFF: u32 = 0;
    pub const REBOOT: u32 = 1;
    pub const SUSPEND: u32 = 2;
    pub const CRASH: u32 = 3;
}

/// `struct sched_poll`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Poll {
    pub ports: u64,
    pub count: u32,
    pub padding: u32,
    /// System time in nanoseconds; 0 for none.
    pub timeout: u64,
}

layout!(Poll, 24, count @ 8, timeout @ 16);
