//! The gdb stub of machines with a tiny guest, on every engine of this host.

mod common;
mod gdb;
mod protocol;
