//! Small guests with known answers.

mod events;
mod integer;
mod support;
mod threads;
mod traps;
