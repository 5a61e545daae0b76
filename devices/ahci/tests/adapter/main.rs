//! The adapter as a driver uses it, and as a hostile guest does.

mod common;
mod host;
mod queue;
