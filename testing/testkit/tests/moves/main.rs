//! Guests that are saved in the middle of their work, and go on in another machine: stock kernels
//! as translated or interpreted code, and one of our own under any engine.
//!
//! There is no command for it yet, so these tests go by the machine's own interface.

mod crossing;
mod devices;
mod disk;
mod harness;
mod peer;
mod plugged;
mod traffic;
mod xen;
