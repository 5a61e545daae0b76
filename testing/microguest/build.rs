//! Builds the guest with this toolchain and its host's own target: no other is needed.

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=guest");
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let rustc = env::var("RUSTC").expect("cargo sets RUSTC");
    let here = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let guest = Path::new(&here).join("guest");
    let script = guest.join("link.ld");
    let status = Command::new(rustc)
        .arg(guest.join("main.rs"))
        .args(["--edition", "2024", "--crate-name", "guest", "--crate-type", "bin"])
        .args(["--target", "x86_64-unknown-linux-gnu", "-D", "warnings", "-D", "unsafe_code"])
        .args(["-C", "panic=abort", "-C", "opt-level=s", "-C", "relocation-model=static"])
        .args(["-C", "strip=symbols", "-C", "linker-flavor=gcc"])
        // Few instructions of SSE, of which a KVM that is software knows only moves.
        .args(["-C", "target-cpu=athlon64", "-C", "no-vectorize-loops", "-C", "no-vectorize-slp"])
        .arg("-Clink-args=-nostartfiles -nostdlib -static -no-pie -Wl,--build-id=none")
        .arg(format!("-Clink-arg=-Wl,-T,{}", script.display()))
        .arg("-o")
        .arg(Path::new(&out).join("guest.elf"))
        // Flags of the outer build are not the guest's.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .expect("rustc can be started");
    assert!(status.success(), "the micro-guest does not build");
}
