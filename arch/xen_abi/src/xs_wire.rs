//! `io/xs_wire.h`: messages of xenstore, and the ring that carries them.

use crate::layout;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `enum xsd_sockmsg_type`: `XS_*`.
pub mod kind {
    pub const CONTROL: u32 = 0;
    pub const DIRECTORY: u32 = 1;
    pub const READ: u32 = 2;
    pub const GET_PERMS: u32 = 3;
    pub const WATCH: u32 = 4;
    pub const UNWATCH: u32 = 5;
    pub const TRANSACTION_START: u32 = 6;
    pub const TRANSACTION_END: u32 = 7;
    pub const GET_DOMAIN_PATH: u32 = 10;
    pub const WRITE: u32 = 11;
    pub const MKDIR: u32 = 12;
    pub const RM: u32 = 13;
    pub const SET_PERMS: u32 = 14;
    pub const WATCH_EVENT: u32 = 15;
    pub const ERROR: u32 = 16;
    pub const IS_DOMAIN_INTRODUCED: u32 = 17;
    pub const RESET_WATCHES: u32 = 21;
}

/// `struct xsd_sockmsg`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    pub kind: u32,
    pub request: u32,
    pub transaction: u32,
    pub length: u32,
}

/// `XENSTORE_PAYLOAD_MAX`.
pub const PAYLOAD_MAX: usize = 4096;
/// `XENSTORE_ABS_PATH_MAX` and `XENSTORE_REL_PATH_MAX`.
pub const ABSOLUTE_PATH_MAX: usize = 3072;
pub const RELATIVE_PATH_MAX: usize = 2048;
/// `XENSTORE_RING_SIZE`.
pub const RING: u32 = 1024;

/// `struct xenstore_domain_interface`, but for the rings themselves: offsets in the page.
pub mod page {
    pub const REQUESTS: usize = 0;
    pub const REPLIES: usize = 0x400;
    pub const REQUEST_CONSUMER: usize = 0x800;
    pub const REQUEST_PRODUCER: usize = 0x804;
    pub const REPLY_CONSUMER: usize = 0x808;
    pub const REPLY_PRODUCER: usize = 0x80c;
    pub const SERVER_FEATURES: usize = 0x810;
    pub const CONNECTION: usize = 0x814;
}

layout!(Header, 16, length @ 12);
