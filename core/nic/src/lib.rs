//! The contract between a network card and the network that it is plugged into.
//!
//! A card (virtio-net, an e1000) is a [`Port`]; what carries its frames (a NAT in this process,
//! a TAP device, a switch) is a [`Network`]. All frames move on the network's own thread: it
//! [takes](Port::take) what the guest sends and [gives](Port::give) what the guest is to get, so
//! a frame is copied once, between the guest's memory and the network's buffer, and neither side
//! queues anything. The card only [wakes](Network::wake) the network, which never blocks: it is
//! called on a vCPU's thread.
//!
//! Back-pressure is the absence of a call: a network that cannot send stops taking, and the
//! guest's ring fills; a card without room refuses, and the network leaves its input where it is
//! until it is woken.
//!
//! Frames begin with the Ethernet header and have no frame check sequence. What virtio 1.2,
//! section 5.1.6.2, says of checksums and of segmentation in the header before a frame is
//! [`Meta`] here; a network asks [`Port::offloads`] before it gives a frame that needs any.

pub mod checksum;
mod head;
mod mac;
mod meta;
mod steering;

pub use head::head;
pub use mac::{Mac, NotAMac};
pub use meta::{Checksum, Meta, Offloads, SegmentKind, Segmentation};
pub use steering::Steering;

use std::sync::Weak;

/// The longest frame that crosses the contract: an IP packet of 65,535 bytes, which stands for
/// several segments, behind an Ethernet header with a VLAN tag.
pub const FRAME_MAX: usize = 65_535 + 18;

/// A network card, as the network sees it.
///
/// What the guest programmed is hostile, so the card has validated what it returns: a frame's
/// length lies within the buffer, and nothing else can be relied upon.
pub trait Port: Send + Sync {
    /// The card's own address. The guest may choose another one for its frames.
    fn mac(&self) -> Mac;

    /// What frames for the guest may leave undone. May change whenever the guest's driver
    /// starts, so a network asks once for each batch of frames.
    fn offloads(&self) -> Offloads;

    /// The next frame that the guest sends, written to the front of `buffer`, which holds
    /// [`FRAME_MAX`] bytes. After `None`, the network is woken when there is another.
    fn take(&self, buffer: &mut [u8]) -> Option<Taken>;

    /// A frame for the guest, in parts. What is refused for want of room may be given again
    /// after the network is woken.
    fn give(&self, meta: &Meta, parts: &[&[u8]]) -> Result<(), NoRoom>;

    /// A batch ends: the guest is told of the frames given and taken since the last call.
    fn flush(&self);

    /// Whether the cable is plugged in. A card starts with the link up.
    fn set_link(&self, up: bool);
}

/// A frame that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub len: usize,
    pub meta: Meta,
}

/// The guest has no buffer for a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

/// What carries a card's frames, as the card sees it.
pub trait Network: Send + Sync {
    /// Plugs the card in. The network holds it weakly, since the card holds the network.
    fn attach(&self, port: Weak<dyn Port>);

    /// There are frames to take, or room after a refusal. Never blocks, and may come too often.
    fn wake(&self);

    /// Returns when the network's thread has let go of the port, and keeps it away until
    /// [`Network::resume`]: guest memory is at rest.
    fn pause(&self);

    fn resume(&self);
}

/// A network to which nothing is connected: what is sent is never taken.
#[derive(Debug, Default)]
pub struct Unplugged;

impl Network for Unplugged {
    fn attach(&self, port: Weak<dyn Port>) {
        if let Some(port) = port.upgrade() {
            port.set_link(false);
        }
    }

    fn wake(&self) {}

    fn pause(&self) {}

    fn resume(&self) {}
}
