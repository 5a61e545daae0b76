//! Small guests with known answers.

mod counted;
mod cross;
mod events;
mod integer;
mod litmus;
mod support;
mod threads;
mod traps;
