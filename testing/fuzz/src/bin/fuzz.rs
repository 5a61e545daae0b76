//! The program that libFuzzer drives. `SARANG_FUZZ_TARGET` names the target; without one, the
//! targets are listed. `cargo xtask fuzz` builds and starts it.
#![no_main]

use fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;

static TARGET: OnceLock<&Target> = OnceLock::new();

/// What was asked for. Whoever asked for nothing, or for what there is not, is told and the program
/// ends.
fn target() -> &'static Target {
    let name = std::env::var("SARANG_FUZZ_TARGET").unwrap_or_default();
    if let Some(target) = Target::find(&name) {
        return target;
    }
    for target in TARGETS {
        println!("{:<16} {}", target.name, target.about);
    }
    std::process::exit(if name.is_empty() { 0 } else { 2 });
}

fuzz_target!(
    init: {
        let _ = TARGET.set(target());
    },
    |data: &[u8]| {
        TARGET.get_or_init(target).run(data);
    }
);
