//! The local APIC for engines that have none of their own (SDM volume 3, chapter 11).
//!
//! [`ApicBus`] holds one [`LocalApic`] per vCPU and routes messages and interprocessor
//! interrupts among them. Posting an interrupt to a vCPU sets a bit in its atomic IRR and
//! wakes it; no lock is taken on that path, nor when a vCPU asks what is pending.
//!
//! Who may call: [`LocalApic::pending`] anybody; `ack`, register, MSR and CR8 access the thread
//! of that vCPU; everything else any thread. Locks: an APIC's register lock is held only while
//! its own registers change and its timer is armed; other APICs, the end-of-interrupt hook and
//! the wake function are called without it. The timer may fire on another thread.

mod access;
mod apic;
mod bus;
mod ipi;
mod regs;
mod state;
mod timer;
mod vectors;

pub use apic::{GeneralProtection, LocalApic, Pending};
pub use bus::{ApicBus, Parts};
pub use state::Saved;
pub use timer::TscClock;

/// Frequency of the clock that the timer's divider divides, as CPUID leaf 15H's crystal tells
/// it: one tick is one nanosecond.
pub const TIMER_HZ: u64 = 1_000_000_000;
