//! Hostile input for all that parses what a guest, a user or a peer gives.
//!
//! A target is a function of bytes, in [`TARGETS`]. It builds what is under test, makes of the bytes a
//! sequence of things that can be done to it, and does them; whatever the bytes are, nothing may
//! panic, hang, take memory without bound or lose its state. Three run the targets: libFuzzer, which
//! `cargo xtask fuzz` starts and which is led by the code that an input reaches; the tests of this
//! crate, which need neither, on the kept corpus and on bytes at random; and a debugger, on one file.
//!
//! Devices with threads of their own work without them here ([`virtio::fake::Inline`]) or are waited
//! for, so that an input does the same every time. A panic on another thread counts as the
//! target's.

mod ground;
mod input;
mod rig;
mod tamper;
mod targets;

pub use targets::TARGETS;

use saved_state::Part;
use std::{
    panic,
    sync::{
        Once,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

/// Something that parses hostile input.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub name: &'static str,
    /// What it is about, for a list.
    pub about: &'static str,
    run: fn(&[u8]),
}

static PANICKED: AtomicBool = AtomicBool::new(false);

impl Target {
    pub fn find(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }

    /// Does what the bytes say.
    ///
    /// # Panics
    /// If what is under test does, on any thread, or breaks a promise.
    pub fn run(&self, data: &[u8]) {
        watch();
        (self.run)(data);
        assert!(!PANICKED.swap(false, SeqCst), "a thread panicked");
    }
}

/// Devices catch the panics of their threads.
fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |what| {
            PANICKED.store(true, SeqCst);
            others(what);
        }));
    });
}

/// What was restored is what was saved.
///
/// # Panics
/// If it is not, with the parts that differ.
fn same(restored: &[Part], saved: &[Part]) {
    for (restored, saved) in restored.iter().zip(saved) {
        let what = format!("{} {}", saved.kind, saved.instance);
        assert!(restored == saved, "{what} is restored as {restored:?}, and was {saved:?}");
    }
    assert_eq!(restored.len(), saved.len(), "parts of the state");
}
