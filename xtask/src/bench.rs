//! Forwards to the bench program, with a release build of what it measures.

use crate::steps::status;
use crate::tree;

/// Builds `sarang` and the bench program in release mode and runs the latter.
pub fn run(args: &[String]) -> Result<(), String> {
    status(tree::cargo().args(["build", "--release", "-p", "cli", "-p", "bench"]))?;
    let mut bench = tree::cargo();
    bench.args(["run", "--quiet", "--release", "-p", "bench", "--"]).args(args);
    status(&mut bench)
}
