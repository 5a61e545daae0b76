//! The device between a guest's driver and programs of the host.

mod common;
mod random;
mod streams;
