//! `grant_table.h`: pages that a domain lets another use.

use crate::layout;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `GNTTABOP_*`.
pub mod op {
    pub const MAP_GRANT_REF: u64 = 0;
    pub const UNMAP_GRANT_REF: u64 = 1;
    pub const SETUP_TABLE: u64 = 2;
    pub const COPY: u64 = 5;
    pub const QUERY_SIZE: u64 = 6;
    pub const SET_VERSION: u64 = 8;
    pub const GET_STATUS_FRAMES: u64 = 9;
    pub const GET_VERSION: u64 = 10;
}

/// `GNTST_*`.
pub mod status {
    pub const OKAY: i16 = 0;
    pub const GENERAL_ERROR: i16 = -1;
    pub const BAD_DOMAIN: i16 = -2;
    pub const PERMISSION_DENIED: i16 = -8;
}

/// `GTF_*`: flags of an entry.
pub mod flag {
    pub const TYPE: u16 = 3;
    pub const PERMIT_ACCESS: u16 = 1;
    pub const READONLY: u16 = 1 << 2;
    pub const READING: u16 = 1 << 3;
    pub const WRITING: u16 = 1 << 4;
    /// A part of the page, to copy from, and not to be mapped.
    pub const SUB_PAGE: u16 = 1 << 8;
}

/// `struct grant_entry_v1`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EntryV1 {
    pub flags: u16,
    pub domain: u16,
    pub frame: u32,
}

/// `union grant_entry_v2`, as a grant of a whole page. How a page is used is in an array of words of 16
/// bits, the status frames.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EntryV2 {
    pub flags: u16,
    pub domain: u16,
    pub padding: u32,
    pub frame: u64,
}

/// Entries that the toolstack fills in before the domain starts: `GNTTAB_RESERVED_*`.
pub mod reserved {
    pub const CONSOLE: u32 = 0;
    pub const XENSTORE: u32 = 1;
    /// Entries that stay when the version changes: `GNTTAB_NR_RESERVED_ENTRIES`.
    pub const COUNT: u32 = 8;
}

/// `struct gnttab_setup_table`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetupTable {
    pub domain: u16,
    pub padding: u16,
    pub frames: u32,
    pub status: i16,
    pub padding2: [u16; 3],
    pub list: u64,
}

/// `struct gnttab_query_size`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct QuerySize {
    pub domain: u16,
    pub padding: u16,
    pub frames: u32,
    pub max_frames: u32,
    pub status: i16,
    pub padding2: u16,
}

/// `struct gnttab_get_status_frames`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetStatusFrames {
    pub frames: u32,
    pub domain: u16,
    pub status: i16,
    pub list: u64,
}

/// `struct gnttab_get_version`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetVersion {
    pub domain: u16,
    pub padding: u16,
    pub version: u32,
}

layout!(EntryV2, 16, frame @ 8);
layout!(GetStatusFrames, 16, domain @ 4, status @ 6, list @ 8);
layout!(GetVersion, 8, version @ 4);
layout!(EntryV1, 8, frame @ 4);
layout!(SetupTable, 24, frames @ 4, status @ 8, list @ 16);
layout!(QuerySize, 16, max_frames @ 8, status @ 12);
