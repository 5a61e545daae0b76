//! Whole machines: how they end, what an operator may do to them, saving and restoring.

mod common;
mod cpus;
mod ends;
mod full;
mod guests;
mod memory;
mod operator;
mod plugging;
mod saving;
