//! The test command: every test of the workspace, in the order of what they cost.

use crate::steps::Steps;
use crate::suites::{self, Program};
use crate::{checks, fuzz, tree};
use std::fs;

/// What to run.
#[derive(Debug, Default)]
pub struct Options {
    long: bool,
    unprivileged: bool,
    no_check: bool,
    no_boot: bool,
    few_boots: bool,
}

/// Suites with a step of their own, after the unit tests, in this order.
const SUITES: &[(&str, &str)] =
    &[("conformance", "conformance suite"), ("lockstep", "differential tests")];
/// A short run for each target, with the same tries every time: what a commit's test says must be true
/// of the commit. Others are for `cargo xtask fuzz`.
const FUZZING: [&str; 4] = ["--seconds", "2", "--seed", "1"];
/// The crate whose tests boot guests.
const BOOTS: &str = "testkit";
/// Of those, what `--few-boots` leaves: what is made of packages, a terminal, refusals, and what needs
/// a `/dev/kvm` that an ordinary user may not open.
const FEW: &[&str] = &["default_guest", "terminal", "refusals", "xen_kvm"];
/// The crate whose tests boot them under two engines at once.
const LOCKSTEP: &str = "lockstep";
/// The crate whose tests boot them as Xen PV domains.
const DOMAIN: &str = "xen_domain";

/// Runs the tests.
pub fn run(args: &[String]) -> Result<(), String> {
    let mut options = Options::default();
    for arg in args {
        match arg.as_str() {
            "--long" => options.long = true,
            "--unprivileged" => options.unprivileged = true,
            "--no-check" => options.no_check = true,
            "--no-boot" => options.no_boot = true,
            "--few-boots" => options.few_boots = true,
            other => return Err(format!("no option `{other}`")),
        }
    }
    if options.unprivileged && is_root() {
        return Err("--unprivileged: this is root; run it as an ordinary user".to_owned());
    }
    let mut steps = Steps::default();
    if options.no_check || options.unprivileged {
        steps.skip("checks of the source", "not asked for");
    } else {
        checks::add(&mut steps);
    }
    add(&mut steps, &options);
    steps.finish()
}

/// Adds the tests to a chore.
pub fn add(steps: &mut Steps, options: &Options) {
    host_notes(steps);
    let mut programs = Vec::new();
    let built = steps.run("build of the tests", || {
        programs = suites::build()?;
        Ok(())
    });
    if !built {
        return;
    }
    let of = |package: &str| programs.iter().filter(|p| p.package == package).collect::<Vec<_>>();
    let special = |p: &&Program| BOOTS == p.package || SUITES.iter().any(|(s, _)| *s == p.package);
    let units: Vec<&Program> = programs.iter().filter(|p| !special(p)).collect();
    steps.run("unit tests", || suites::run(&units, &[], options.long));
    if options.unprivileged || !has_program("c++") {
        steps.skip("fuzzing", "not asked for, or there is no C++ compiler for libFuzzer");
    } else {
        steps.run("fuzzing", || fuzz::run(&FUZZING.map(str::to_owned)));
    }
    steps.command("documentation's examples", tree::cargo().args(["test", "--workspace", "--doc"]));
    for (package, title) in SUITES {
        steps.run(title, || suites::run(&of(package), &[], options.long));
    }
    if options.no_boot {
        steps.skip("fetching and guest boots", "not asked for");
        return;
    }
    if has_program("apt-get") {
        let fetch: Vec<&Program> =
            of("assets").into_iter().filter(|p| p.target == "fetch").collect();
        steps.run("fetching guests", || suites::run(&fetch, &["--include-ignored"], options.long));
    } else {
        steps.skip("fetching guests", "this host has no apt-get");
    }
    // Guests are booted by the program that users run: the release build. With it is built what
    // boots in lockstep, so that dependencies have the same features for both.
    let mut release = tree::cargo();
    release.args(["build", "--release", "--package", "cli", "--package", LOCKSTEP]);
    if steps.command("release build of sarang", &mut release) {
        // Two guests at a time: on two cores, more would only starve each other.
        let mut boots = of(BOOTS);
        if options.few_boots {
            boots.retain(|program| FEW.contains(&program.target.as_str()));
            steps.skip("most guest boots", "not asked for");
        }
        steps.run("guest boots", || suites::run(&boots, &["--test-threads=2"], options.long));
    } else {
        steps.skip("guest boots", "sarang was not built");
    }
    if options.unprivileged {
        steps.skip("boots in lockstep and as Xen domains", "they ask for no privileges");
    } else {
        // Tests' own profile would take minutes for them.
        let mut boots = tree::cargo();
        boots.args(["test", "--release", "--package", LOCKSTEP, "--package", DOMAIN]);
        boots.args(["--test", "boots", "--test", "disk", "--test", "network", "debian"]);
        if options.long {
            boots.env("SARANG_LONG", "1");
        }
        steps.command("boots in lockstep and as Xen domains", &mut boots);
    }
}

/// Says what this host cannot run, so that a pass is not read for more than it is.
fn host_notes(steps: &mut Steps) {
    let kvm = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    if let Err(e) = kvm {
        steps.skip("engine kvm", &format!("/dev/kvm: {e}; its cases skip themselves"));
    } else if !has_hardware_virtualization() {
        steps.skip(
            "stock kernels under kvm as PCs",
            "/dev/kvm is there but the processor shows neither VMX nor SVM; micro-guests and Xen PV guests only",
        );
    }
}

fn has_hardware_virtualization() -> bool {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = info.lines().find(|l| l.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|f| f == "vmx" || f == "svm")
}

fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

/// Whether this process runs with effective user id 0.
fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uid = status.lines().find_map(|l| l.strip_prefix("Uid:"));
    uid.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0")
}
