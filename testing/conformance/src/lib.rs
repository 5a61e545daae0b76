//! One suite of behaviours that every engine passes.
//!
//! The tests are in `tests/`, by subject; here is what they share: the engines of this host, a
//! machine with one bus that remembers, and guests of a few bytes in each mode of the
//! processor. Every case runs on every engine. What the software KVM of a host without VT-x or
//! AMD-V cannot execute is skipped there, by [`Lacks`], with a line that names it.

mod bus;
mod engines;
mod guest;
mod modes;

pub use bus::{Bus, Event, Line};
pub use engines::{Lacks, UnderTest, each_engine, each_pair, translated};
pub use guest::{CODE, DATA, END, Guest, HANDLER_PORT, RAM, STACK, VECTOR_PORTS, slot};
pub use modes::Mode;
