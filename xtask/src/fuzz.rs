//! Fuzzing: libFuzzer on the targets of `testing/fuzz`, led by the code that an input reaches.
//!
//! The program is built by the stable compiler, with LLVM's own instrumentation of what it runs, into
//! a folder of its own, since everything is compiled otherwise than for tests.

use crate::steps::status;
use crate::tree;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const USAGE: &str = "\
usage: cargo xtask fuzz [OPTIONS] [TARGET..]

Runs the fuzz targets, all or those that are named, one after the other.

  --seconds N    for each target (default 30)
  --seed N       begin with this number: the same tries in the same order (default: others each time)
  --list         list the targets
  --input FILE   run one target on one input: to see a crash again
  --keep         put what reached new code into the kept corpus, testing/fuzz/corpus
";

/// What the compiler adds to each block and comparison.
const INSTRUMENTATION: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";
/// Named, so that what runs while the tree is built is not instrumented.
const HOST: &str = "x86_64-unknown-linux-gnu";
/// An input that takes this many seconds is a hang, one that takes this many MiB a leak. Inputs are
/// short: what is parsed is, and short ones are tried more often.
const LIMITS: [&str; 4] = ["-timeout=20", "-rss_limit_mb=1024", "-max_len=2048", "-len_control=0"];

#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    seconds: u32,
    /// libFuzzer's own word for none is 0.
    seed: u32,
    list: bool,
    keep: bool,
    input: Option<PathBuf>,
    targets: Vec<String>,
}

fn parse(args: &[String]) -> Result<Options, String> {
    let mut options = Options { seconds: 30, ..Options::default() };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} wants a value\n{USAGE}"));
        match arg.as_str() {
            "--seconds" => {
                let text = value()?;
                let wrong = || format!("--seconds: `{text}` is no number of seconds from 1 on");
                options.seconds = text.parse().ok().filter(|n| *n > 0).ok_or_else(wrong)?;
            }
            "--seed" => {
                let text = value()?;
                let wrong = || format!("--seed: `{text}` is no number from 1 to {}", u32::MAX);
                options.seed = text.parse().ok().filter(|n| *n > 0).ok_or_else(wrong)?;
            }
            "--input" => options.input = Some(value()?.into()),
            "--list" => options.list = true,
            "--keep" => options.keep = true,
            "--help" | "-h" => return Err(USAGE.to_owned()),
            option if option.starts_with('-') => {
                return Err(format!("no option `{option}`\n{USAGE}"));
            }
            target => options.targets.push(target.to_owned()),
        }
    }
    if options.input.is_some() && options.targets.len() != 1 {
        return Err("--input wants the one target that the input is for".to_owned());
    }
    Ok(options)
}

/// Runs the command.
pub fn run(args: &[String]) -> Result<(), String> {
    let options = parse(args)?;
    let program = build()?;
    let known = targets(&program)?;
    if options.list {
        known.iter().for_each(|line| println!("{line}"));
        return Ok(());
    }
    let names = known.iter().filter_map(|line| line.split_whitespace().next());
    let names: Vec<String> = names.map(str::to_owned).collect();
    if let Some(unknown) = options.targets.iter().find(|name| !names.contains(name)) {
        return Err(format!("no target `{unknown}`; --list lists them"));
    }
    let wanted = if options.targets.is_empty() { names } else { options.targets.clone() };
    if let (Some(input), Some(target)) = (&options.input, wanted.first()) {
        // The build was started elsewhere than the command.
        let input = fs::canonicalize(input).map_err(|e| format!("{}: {e}", input.display()))?;
        return status(fuzzer(&program, target).arg(input));
    }
    let shown = wanted.len() == 1;
    let mut failed = Vec::new();
    for target in &wanted {
        if let Err(message) = fuzz(&program, target, &options, shown) {
            eprintln!("{message}");
            failed.push(target.as_str());
        } else if options.keep {
            keep(&program, target)?;
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", "))) }
}

fn build() -> Result<PathBuf, String> {
    let folder = tree::root().join("target/fuzz");
    let mut cargo = tree::cargo();
    cargo.args([
        "build",
        "--quiet",
        "--package",
        "fuzz",
        "--bin",
        "fuzz",
        "--features",
        "libfuzzer",
    ]);
    cargo.args(["--target", HOST, "--target-dir"]).arg(&folder).env("RUSTFLAGS", INSTRUMENTATION);
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS");
    let failed = |e| format!("{e}: is there a C++ compiler (apt-get install g++), for libFuzzer?");
    status(&mut cargo).map_err(failed)?;
    Ok(folder.join(HOST).join("debug/fuzz"))
}

/// The program's list: a name and what the target is about, a line.
fn targets(program: &Path) -> Result<Vec<String>, String> {
    let out = Command::new(program).env_remove("SARANG_FUZZ_TARGET").output();
    let out = out.map_err(|e| format!("{}: {e}", program.display()))?;
    Ok(String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect())
}

fn fuzzer(program: &Path, target: &str) -> Command {
    let mut command = Command::new(program);
    command.env("SARANG_FUZZ_TARGET", target).args(LIMITS).current_dir(tree::root());
    command
}

/// A folder, made if it is not there.
fn folder(kind: &str, target: &str) -> Result<PathBuf, String> {
    let path = tree::root().join(kind).join(target);
    fs::create_dir_all(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(path)
}

const KEPT: &str = "testing/fuzz/corpus";
const FOUND: &str = "target/fuzz/corpus";
const CRASHES: &str = "target/fuzz/crashes";

/// Runs one target; what it does is shown, or told in a line.
fn fuzz(program: &Path, target: &str, options: &Options, shown: bool) -> Result<(), String> {
    let (found, kept) = (folder(FOUND, target)?, folder(KEPT, target)?);
    let crashes = folder(CRASHES, target)?;
    let mut command = fuzzer(program, target);
    let Options { seconds, seed, .. } = options;
    command.arg(format!("-max_total_time={seconds}")).arg(format!("-seed={seed}"));
    command.arg(found).arg(kept);
    command.arg(format!("-artifact_prefix={}/", crashes.display()));
    let (succeeded, log) = if shown {
        let done = command.status().map_err(|e| format!("{}: {e}", program.display()))?;
        (done.success(), String::new())
    } else {
        let done = command.stdin(Stdio::null()).output();
        let done = done.map_err(|e| format!("{}: {e}", program.display()))?;
        (done.status.success(), String::from_utf8_lossy(&done.stderr).into_owned())
    };
    if succeeded {
        println!("{target:<16} {}", summary(&log));
        return Ok(());
    }
    let tail: Vec<&str> = log.lines().rev().take(60).collect();
    tail.iter().rev().for_each(|line| eprintln!("{line}"));
    Err(format!(
        "{target} failed. The input is in {CRASHES}/{target}; it is run again by\n  \
         cargo xtask fuzz {target} --input {CRASHES}/{target}/FILE\n\
         When the fault is mended, keep it in {KEPT}/{target} under a name that says what it was."
    ))
}

/// From libFuzzer's last line, such as `#15066 DONE cov: 2496 ft: 10750 corp: 295/2445b`.
fn summary(log: &str) -> String {
    let Some(line) = log.lines().rev().find(|line| line.contains("cov: ")) else {
        return "no fault".to_owned();
    };
    let words: Vec<&str> = line.split_whitespace().collect();
    let after = |name: &str| {
        let at = words.iter().position(|word| *word == name);
        at.and_then(|at| words.get(at + 1)).copied().unwrap_or("?")
    };
    let runs = words.first().copied().unwrap_or_default().trim_start_matches('#');
    format!("{runs} inputs, {} edges reached, no fault", after("cov:"))
}

/// The smallest corpus that reaches what is reached replaces the kept one, but for the files that are
/// named after a fault.
fn keep(program: &Path, target: &str) -> Result<(), String> {
    let (found, kept) = (folder(FOUND, target)?, folder(KEPT, target)?);
    let merged = folder("target/fuzz/merged", target)?;
    fs::remove_dir_all(&merged).map_err(|e| format!("{}: {e}", merged.display()))?;
    let merged = folder("target/fuzz/merged", target)?;
    let mut command = fuzzer(program, target);
    // How often code runs does not count: that would keep ten times as many.
    command.args(["-set_cover_merge=1", "-use_counters=0"]).args([&merged, &kept, &found]);
    let done = command.output().map_err(|e| format!("{}: {e}", program.display()))?;
    if !done.status.success() {
        return Err(format!("{target}: {}", String::from_utf8_lossy(&done.stderr)));
    }
    let failed = |e: std::io::Error| format!("{}: {e}", kept.display());
    for entry in fs::read_dir(&kept).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if is_hash(&path) {
            fs::remove_file(&path).map_err(failed)?;
        }
    }
    let mut count = 0;
    for entry in fs::read_dir(&merged).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        fs::copy(entry.path(), kept.join(entry.file_name())).map_err(failed)?;
        count += 1;
    }
    println!("{target:<16} {count} inputs are kept");
    Ok(())
}

/// Whether a file's name is one that libFuzzer gave: a SHA-1.
fn is_hash(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Result<Options, String> {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_read() {
        let found = options("ahci --seconds 5 --keep").unwrap();
        assert_eq!((found.seconds, found.keep, found.targets), (5, true, vec!["ahci".to_owned()]));
        assert_eq!(options("").unwrap().seconds, 30);
        assert_eq!(options("--seed 7").unwrap().seed, 7);
        for wrong in [
            "--seconds",
            "--seconds x",
            "--seconds 0",
            "--seed 0",
            "--nonsense",
            "--input f",
            "--input",
        ] {
            assert!(options(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn libfuzzers_last_line_is_understood() {
        let log = "#1 INITED cov: 3\n#15066\tDONE   cov: 2496 ft: 10750 corp: 295/2445b\nDone";
        assert_eq!(summary(log), "15066 inputs, 2496 edges reached, no fault");
        assert_eq!(summary(""), "no fault");
    }

    #[test]
    fn files_named_after_faults_are_told_from_others() {
        assert!(is_hash(Path::new("corpus/0123456789abcdef0123456789abcdef01234567")));
        assert!(!is_hash(Path::new("corpus/overflow-of-a-length")));
    }
}
