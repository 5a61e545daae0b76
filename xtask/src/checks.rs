//! The checks of the source, and what a change passes before it is pushed.

use crate::steps::{Steps, status};
use crate::{deps, size, supply, test, tree, unsafe_code};
use std::process::Stdio;

/// Format, tiers, licences, sizes, unsafe modules and lints.
pub fn all() -> Result<(), String> {
    let mut steps = Steps::default();
    add(&mut steps);
    steps.finish()
}

/// Adds the checks of the source to a chore, the fast ones first.
pub fn add(steps: &mut Steps) {
    if has_component("fmt") {
        steps.command("format", tree::cargo().args(["fmt", "--all", "--check"]));
    } else {
        steps.skip("format", "rustfmt is not installed (rustup component add rustfmt)");
    }
    steps.run("tiers", deps::check);
    steps.run("licences, bans and sources", supply::check);
    steps.run("sizes", size::check);
    steps.run("unsafe modules", unsafe_code::check);
    if has_component("clippy") {
        let mut clippy = tree::cargo();
        clippy.args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]);
        steps.command("lints", &mut clippy);
    } else {
        steps.skip("lints", "clippy is not installed (rustup component add clippy)");
    }
}

/// Everything that a change has to pass.
pub fn prepush() -> Result<(), String> {
    let mut steps = Steps::default();
    add(&mut steps);
    if has_component("deny") {
        steps.command("cargo deny", tree::cargo().args(["deny", "--all-features", "check"]));
    } else {
        steps.skip("cargo deny", "it is not installed (cargo install cargo-deny --locked)");
    }
    steps.run("documentation", documentation);
    test::add(&mut steps, &test::Options::default());
    steps.finish()
}

/// A module's head may point a reader of the source at its private parts.
const RUSTDOC: &str = "-D warnings -A rustdoc::private-intra-doc-links";

fn documentation() -> Result<(), String> {
    let mut doc = tree::cargo();
    doc.args(["doc", "--quiet", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", RUSTDOC);
    status(&mut doc)
}

/// Whether Cargo knows this subcommand.
fn has_component(name: &str) -> bool {
    let mut probe = tree::cargo();
    probe.args([name, "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    status(&mut probe).is_ok()
}
