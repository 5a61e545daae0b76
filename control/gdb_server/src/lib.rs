//! The gdb stub of a running machine.
