//! The `sarang` program that is tested.

use crate::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The program: `$SARANG_BIN`, or the workspace's release build, which is made when it is not
/// up to date.
///
/// # Panics
/// When it does not build.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| match std::env::var_os("SARANG_BIN") {
        Some(program) => program.into(),
        None => build(),
    })
}

fn build() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().nth(2).unwrap_or(here);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--package", "cli"])
        .current_dir(root)
        .status();
    assert!(status.is_ok_and(|s| s.success()), "cargo build --release --package cli failed");
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    target.unwrap_or_else(|| root.join("target")).join("release/sarang")
}

/// Runs the program to its end without a guest to talk to: for refusals and listings.
///
/// # Errors
/// When it cannot be started, or does not end within `timeout`.
pub fn run(args: &[&str], timeout: Duration) -> Result<Output, Error> {
    let fail = |what: String| Error::new(format!("sarang {}: {what}", args.join(" ")), "", "");
    let mut child = Command::new(program())
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| fail(e.to_string()))?;
    let deadline = Instant::now() + timeout;
    // What such a run prints fits into the pipes.
    while child.try_wait().map_err(|e| fail(e.to_string()))?.is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            let out = child.wait_with_output().map_err(|e| fail(e.to_string()))?;
            let (text, errors) =
                (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
            return Err(Error::new(format!("sarang {} hangs", args.join(" ")), &text, &errors));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().map_err(|e| fail(e.to_string()))
}
