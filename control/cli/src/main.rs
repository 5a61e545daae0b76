//! The `sarang` command.

fn main() {}
