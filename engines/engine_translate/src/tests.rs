//! Small guests with known answers.

mod counted;
mod events;
mod integer;
mod support;
mod threads;
mod traps;
