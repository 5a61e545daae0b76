//! `io/blkif.h`: requests to a block device and their responses.

use crate::layout;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `BLKIF_OP_*`.
pub mod op {
    pub const READ: u8 = 0;
    pub const WRITE: u8 = 1;
    pub const WRITE_BARRIER: u8 = 2;
    pub const FLUSH_DISKCACHE: u8 = 3;
    pub const DISCARD: u8 = 5;
    pub const INDIRECT: u8 = 6;
}

/// `BLKIF_RSP_*`.
pub mod status {
    pub const OKAY: i16 = 0;
    pub const ERROR: i16 = -1;
    pub const EOPNOTSUPP: i16 = -2;
}

/// `VDISK_*`, of the node `info`.
pub mod info {
    pub const CDROM: u32 = 1;
    pub const REMOVABLE: u32 = 2;
    pub const READONLY: u32 = 4;
}

/// The unit of `sector_number`, of the node `sectors` and of a segment, whatever `sector-size` says.
pub const SECTOR: u64 = 512;
/// Segments in a request itself: `BLKIF_MAX_SEGMENTS_PER_REQUEST`.
pub const SEGMENTS: usize = 11;
/// Pages of segments of an indirect request: `BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST`.
pub const INDIRECT_PAGES: usize = 8;
/// Segments in such a page.
pub const SEGMENTS_PER_PAGE: usize = 4096 / size_of::<Segment>();
/// Bytes of an entry of the ring.
pub const ENTRY: usize = size_of::<Request>();

/// `struct blkif_request_segment`: sectors of a page, of which the last is one that moves.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Segment {
    pub grant: u32,
    pub first: u8,
    pub last: u8,
    pub padding: u16,
}

/// `struct blkif_request`, as a 64-bit guest lays it out.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Request {
    pub operation: u8,
    pub segments: u8,
    pub handle: u16,
    pub padding: u32,
    pub id: u64,
    pub sector: u64,
    pub segment: [Segment; SEGMENTS],
}

/// `struct blkif_request_discard`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Discard {
    pub operation: u8,
    pub flag: u8,
    pub handle: u16,
    pub padding: u32,
    pub id: u64,
    pub sector: u64,
    pub sectors: u64,
}

/// `struct blkif_request_indirect`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Indirect {
    pub operation: u8,
    /// What is to be done: [`op::READ`] or [`op::WRITE`].
    pub inner: u8,
    pub segments: u16,
    pub padding: u32,
    pub id: u64,
    pub sector: u64,
    pub handle: u16,
    pub padding2: u16,
    pub pages: [u32; INDIRECT_PAGES],
    pub padding3: u32,
}

/// `struct blkif_response`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Response {
    pub id: u64,
    pub operation: u8,
    pub padding: u8,
    pub status: i16,
    pub padding2: u32,
}

layout!(Segment, 8, first @ 4, last @ 5);
layout!(Request, 112, segments @ 1, handle @ 2, id @ 8, sector @ 16, segment @ 24);
layout!(Discard, 32, flag @ 1, id @ 8, sector @ 16, sectors @ 24);
layout!(Indirect, 64, inner @ 1, segments @ 2, id @ 8, sector @ 16, handle @ 24, pages @ 28);
layout!(Response, 16, operation @ 8, status @ 10);
