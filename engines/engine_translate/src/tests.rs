//! Small guests with known answers.

mod bare;
mod counted;
mod cross;
mod events;
mod flow;
mod integer;
mod litmus;
mod loops;
mod programs;
mod ring3;
mod smc;
mod supervisor;
mod support;
mod threads;
mod trap_flush;
mod traps;
