//! Chores of this workspace, run as `cargo xtask COMMAND`.
//!
//! The checks (`deps`, `supply`, `size`, `unsafe`) read the tree as it stands and need no
//! network; `test` is the one test command of the README, and `prepush` is what a change has
//! to pass before it is pushed.

mod bench;
mod checks;
mod deps;
mod fuzz;
mod size;
mod steps;
mod suites;
mod supply;
mod test;
mod tree;
mod unsafe_code;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  deps              check that every crate depends only on tiers to its left
  supply            check licences, names and sources of all dependencies against deny.toml
  size              refuse files over 1000 lines and functions over 100, list files over 600
  unsafe            check that modules with unsafe code are those of xtask/unsafe-modules.txt
  check             all of the above, with rustfmt and clippy
  test [OPTIONS]    run every test of the workspace
      --long          millions of differential cases instead of tens of thousands
      --few-boots     of guests, boot only a few
      --unprivileged  insist on an ordinary user; checks of the source are left out
      --no-check      leave out checks of the source (format, lints, tiers, sizes)
      --no-boot       leave out the tests that boot real guests
  fuzz [OPTIONS]    run the fuzz targets (see cargo xtask fuzz --help)
  bench [OPTIONS]   measure against native and peers (see cargo xtask bench --help)
  prepush           check, cargo deny if installed, documentation, tests
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let result = match command.as_str() {
        "deps" => deps::check(),
        "supply" => supply::check(),
        "size" => size::check(),
        "unsafe" => unsafe_code::check(),
        "check" => checks::all(),
        "test" => test::run(&rest),
        "fuzz" => fuzz::run(&rest),
        "bench" => bench::run(&rest),
        "prepush" => checks::prepush(),
        "" | "help" | "--help" | "-h" => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        other => Err(format!("no command `{other}`\n{USAGE}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask {command}: {message}");
            ExitCode::FAILURE
        }
    }
}
