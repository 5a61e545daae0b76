//! The semantics of x86 instructions, written once.
