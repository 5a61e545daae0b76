//! `memory.h`: what memory a domain has.

use crate::layout;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `XENMEM_*`.
pub mod op {
    pub const DECREASE_RESERVATION: u64 = 1;
    pub const MAXIMUM_RAM_PAGE: u64 = 2;
    pub const CURRENT_RESERVATION: u64 = 3;
    pub const MAXIMUM_RESERVATION: u64 = 4;
    pub const POPULATE_PHYSMAP: u64 = 6;
    pub const MEMORY_MAP: u64 = 9;
    pub const EXCHANGE: u64 = 11;
    pub const MACHPHYS_MAPPING: u64 = 12;
}

/// `struct xen_memory_reservation`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Reservation {
    pub extents: u64,
    pub count: u64,
    pub order: u32,
    pub flags: u32,
    pub domain: u16,
    pub padding: [u16; 3],
}

/// `struct xen_memory_map`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryMap {
    pub entries: u32,
    pub padding: u32,
    pub buffer: u64,
}

/// `struct xen_machphys_mapping`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MachphysMapping {
    pub start: u64,
    pub end: u64,
    pub max_mfn: u64,
}

layout!(Reservation, 32, count @ 8, order @ 16, domain @ 24);
layout!(MemoryMap, 16, buffer @ 8);
layout!(MachphysMapping, 24);
