//! A VNC server: a guest's screen, keyboard and pointer by the Remote Framebuffer protocol
//! (RFC 6143, "RFB"), versions 3.3, 3.7 and 3.8.
//!
//! ```text
//!   Seat --render--> capture thread --> Picture (pixels; when each tile changed last)
//!                                         |            one pair of threads for each client:
//!                                         +--> writer: what changed since it was sent last
//!   Seat <--keys, pointer------------------- reader: requests, keys, pointer
//! ```
//!
//! Nothing is drawn while no client waits for a picture. A client is sent one update for each
//! request of its own, so that one who reads slowly gets fewer pictures and holds nobody else up;
//! one who reads nothing for [`STALL`] is dropped, as is whoever has not introduced himself after
//! [`HANDSHAKE`].
//!
//! Encodings: ZRLE and raw; pseudo-encodings: DesktopSize, and QEMU's for key codes and for
//! pointers that move rather than point.
//!
//! What the protocol's own authentication protects is little: the password has eight bytes, and
//! what follows is neither encrypted nor signed. Beyond one host, tunnel it.

mod auth;
#[doc(hidden)]
pub mod by_hand;
mod client;
mod encode;
mod handshake;
mod input;
mod keysym;
mod picture;
mod pixel;
mod server;
mod wire;

pub use auth::{Password, PasswordError};
pub use server::{CLIENTS_MAX, Config, Server, serve};

use std::time::Duration;

/// A client has so long until it is known who it is.
pub const HANDSHAKE: Duration = Duration::from_secs(15);
/// A client that takes nothing of an update for so long is gone.
pub const STALL: Duration = Duration::from_secs(30);
