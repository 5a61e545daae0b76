//! `io/netif.h`: frames between a domain and its network, and what became of them.
//!
//! A frame takes one slot of the ring for each page of it, all but the last with
//! [`tx::MORE_DATA`]; behind the first may be slots that say more of the frame ([`Extra`]).

use crate::layout;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `NETTXF_*`: flags of a request of the domain's.
pub mod tx {
    /// The transport checksum is left undone: the field holds the pseudo-header's sum.
    pub const CSUM_BLANK: u16 = 1;
    pub const DATA_VALIDATED: u16 = 1 << 1;
    pub const MORE_DATA: u16 = 1 << 2;
    pub const EXTRA_INFO: u16 = 1 << 3;
}

/// `NETRXF_*`: flags of a response to the domain, which are not those of [`tx`].
pub mod rx {
    pub const DATA_VALIDATED: u16 = 1;
    pub const CSUM_BLANK: u16 = 1 << 1;
    pub const MORE_DATA: u16 = 1 << 2;
    pub const EXTRA_INFO: u16 = 1 << 3;
}

/// `NETIF_RSP_*`.
pub mod status {
    pub const ERROR: i16 = -1;
    pub const OKAY: i16 = 0;
    /// Of a slot with an [`Extra`](super::Extra).
    pub const NULL: i16 = 1;
}

/// `XEN_NETIF_EXTRA_*` and `XEN_NETIF_GSO_TYPE_*`.
pub mod extra {
    pub const GSO: u8 = 1;
    pub const MULTICAST_ADD: u8 = 2;
    pub const MULTICAST_DELETE: u8 = 3;
    /// The first number that is no type: `XEN_NETIF_EXTRA_TYPE_MAX`.
    pub const END: u8 = 6;
    /// The flag that there is another behind this.
    pub const MORE: u8 = 1;
    pub const GSO_TCPV4: u8 = 1;
    pub const GSO_TCPV6: u8 = 2;
}

/// Slots that a frame may take: `XEN_NETIF_NR_SLOTS_MIN`.
pub const SLOTS: usize = 18;

/// `struct netif_tx_request`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct TxRequest {
    pub grant: u32,
    pub offset: u16,
    pub flags: u16,
    pub id: u16,
    /// Bytes in this slot; in a frame's first one, of the whole frame.
    pub size: u16,
}

/// `struct netif_tx_response`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct TxResponse {
    pub id: u16,
    pub status: i16,
}

/// `struct netif_rx_request`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RxRequest {
    pub id: u16,
    pub padding: u16,
    pub grant: u32,
}

/// `struct netif_rx_response`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RxResponse {
    pub id: u16,
    pub offset: u16,
    pub flags: u16,
    /// Bytes in this slot, or [`status::ERROR`].
    pub status: i16,
}

/// `struct netif_extra_info`, in the place of a request or a response. What is behind the flags
/// depends on the type; this is that of [`extra::GSO`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Extra {
    pub kind: u8,
    pub flags: u8,
    /// Payload bytes of each segment.
    pub size: u16,
    pub gso: u8,
    pub padding: u8,
    pub features: u16,
}

layout!(TxRequest, 12, offset @ 4, flags @ 6, id @ 8, size @ 10);
layout!(TxResponse, 4, status @ 2);
layout!(RxRequest, 8, grant @ 4);
layout!(RxResponse, 8, offset @ 2, flags @ 4, status @ 6);
layout!(Extra, 8, flags @ 1, size @ 2, gso @ 4, features @ 6);
