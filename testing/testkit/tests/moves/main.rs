//! A stock kernel that is saved in the middle of its work, and goes on in another machine, under
//! the same engine or as interpreted code.
//!
//! There is no command for it yet, so these tests go by the machine's own interface.

mod disk;
mod harness;
mod peer;
mod traffic;
