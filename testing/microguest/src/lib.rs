//! Bare-metal guests of our own.
