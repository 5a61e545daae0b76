//! `io/ring.h`: rings that a front end and its back end share. A header with indexes, and behind it a
//! power of two of entries, each of which is a request or the response in its place.

use crate::layout;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What every ring begins with: `DEFINE_RING_TYPES`. Indexes run freely, and an entry's place is the
/// index modulo the number of entries.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Shared {
    /// Requests that the front end has put.
    pub request_producer: u32,
    /// With which request the back end wants to be notified.
    pub request_event: u32,
    /// Responses that the back end has put.
    pub response_producer: u32,
    /// With which response the front end wants to be notified.
    pub response_event: u32,
    pub private: [u8; 48],
}

/// Where entries begin.
pub const ENTRIES: usize = size_of::<Shared>();

/// `__RING_SIZE`: how many entries a ring of so many bytes has.
pub const fn entries(bytes: usize, entry: usize) -> u32 {
    let fit = match bytes.saturating_sub(ENTRIES).checked_div(entry) {
        None | Some(0) => return 0,
        Some(fit) => fit,
    };
    1 << fit.ilog2()
}

layout!(Shared, 64, request_event @ 4, response_producer @ 8, response_event @ 12);

const _: () = {
    // Those of a block device, one page and 16, and a network's of each direction.
    assert!(entries(4096, 112) == 32 && entries(65536, 112) == 512);
    assert!(entries(4096, 12) == 256 && entries(4096, 8) == 256 && entries(64, 8) == 0);
};
