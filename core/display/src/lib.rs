//! The contract between a guest's screen, keyboards and pointers, and those who look at it and
//! type: a VNC server, the monitor prompt.
//!
//! A display adapter is a [`Screen`]; a keyboard controller, a mouse or a tablet is a [`Keyboard`]
//! or a [`Pointer`]. A [`Seat`] is one guest's screen with all of them, and decides which of
//! several gets an event: the first whose driver listens.

mod frame;
mod key;
mod seat;

pub use frame::{Frame, PIXELS_MAX, Screen};
pub use key::{Key, UnknownKey, parse_chord};
pub use seat::{Buttons, Keyboard, Pointer, PointerEvent, Seat};
