//! The program as its users run it: refusals, listings, and what they leave behind.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// A directory of this test's own, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = env::temp_dir().join(format!("sarang-cli-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, contents: &[u8]) -> String {
        let path = self.0.join(name);
        fs::write(&path, contents).unwrap();
        path.to_string_lossy().into_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn sarang(cache: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sarang"))
        .args(args)
        .env("XDG_CACHE_HOME", cache)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Checks for one line `sarang: <what>: <why>; <what to do>` that holds `words`.
fn refused(args: &[&str], status: i32, words: &str) {
    let out = sarang(Path::new("/nonexistent"), args);
    refusal(&out, status, words, &args.join(" "));
}

fn refusal(out: &Output, status: i32, words: &str, what: &str) {
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(status), "{what}: {said}");
    assert_eq!(said.lines().count(), 1, "{what}: {said}");
    assert!(said.starts_with("sarang: ") && said.contains("; "), "{what}: {said}");
    assert!(said.contains(words), "{what}: {said}");
    assert!(out.stdout.is_empty(), "{what}");
}

#[test]
fn bad_values_are_bad_arguments() {
    for (args, words) in [
        (&["run", "--cpus", "0"][..], "--cpus 0: a machine has at least one CPU; give 1 to 255"),
        (&["run", "--cpus", "4096"], "--cpus 4096: a machine has at most 255 CPUs"),
        (&["run", "--memory", "1M"], "--memory 1 MiB: this is too little for any guest; give 16"),
        (&["run", "--memory", "32M"], "too little for the default guest; give 96 MiB or more"),
        (&["run", "--memory", "512"], "--memory 512: the unit is missing"),
        (&["run", "--engine", "tcg"], "--engine tcg: there is no such engine"),
        (&["run", "--console", "x:y"], "--console x:y: there is no such console"),
        (&["run", "--timeout", "1y"], "--timeout 1y: there is no such unit"),
        (&["run", "--gdb", "tcp:1.2.3.4:5"], "--gdb tcp:1.2.3.4:5: "),
        (&["run", "--trace", "all"], "--trace all: no such event"),
        (&["run", "--initrd", "x"], "--initrd x: the default guest has an initrd of its own"),
        (&["run", "--append", "a\tb"], "--append a\\tb: "),
        (&["run", "--frobnicate"], "--frobnicate"),
        (&["run", "--package", "a", "b"], "cannot be used with"),
        (&["run", "--kernel"], "--kernel <FILE>"),
        (&["fly"], "fly"),
        (&[], "a command is missing"),
        (&["cache"], "a command is missing"),
        (&["completion", "klingon"], "klingon"),
        (&["cache", "fetch", "../x"], "not the name of a Debian package"),
    ] {
        // The cache cannot be made there, but its pattern is looked at later.
        if args.first() == Some(&"cache") && args.len() > 1 {
            let scratch = Scratch::new("pattern");
            refusal(&sarang(&scratch.0, args), 2, words, "cache fetch ../x");
        } else {
            refused(args, 2, words);
        }
    }
}

#[test]
fn bad_files_are_named() {
    let scratch = Scratch::new("files");
    let empty = scratch.file("empty", b"");
    let kernel = scratch.file("kernel", b"\x7fELF and no more");
    let disk = scratch.file("disk", &[0; 4096]);
    let big = scratch.file("big", b"");
    fs::File::options().write(true).open(&big).unwrap().set_len(600 << 20).unwrap();
    let translate = |rest: &[&'static str], path: &str| {
        let mut args: Vec<String> = ["run", "--engine", "translate"].map(String::from).to_vec();
        args.extend(rest.iter().map(|s| s.to_string()));
        args.push(path.into());
        args
    };
    for (args, status, words) in [
        (translate(&["--kernel"], "/nonexistent/k"), 1, "--kernel /nonexistent/k: there is no"),
        (translate(&["--kernel"], "/proc"), 1, "--kernel /proc: this is a directory"),
        (translate(&["--kernel"], &empty), 1, "the file is empty"),
        (translate(&[], &disk), 2, "this is not a kernel; give a bzImage or ELF kernel, or"),
    ] {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        refused(&args, status, words);
    }
    let args = ["run", "--engine", "translate", "--kernel", &kernel, "--initrd", &big];
    refused(&args, 2, "do not fit into 512 MiB of guest memory; give more with --memory");
    let args = ["run", "--engine", "translate", "--kernel", &kernel, "--initrd", "/nonexistent/i"];
    refused(&args, 1, "--initrd /nonexistent/i: there is no such file");
    let args = ["run", "--engine", "translate", "--kernel", &kernel, "--console", "file:/proc/x/y"];
    refused(&args, 1, "--console file:/proc/x/y: ");
    let args = ["run", "--engine", "translate", "--kernel", &kernel, "--trace", "exits:/proc/x/y"];
    refused(&args, 1, "--trace :/proc/x/y: ");
}

#[test]
fn a_cache_that_cannot_be_written_is_said() {
    // A file where the directory is to be: no user can make it, not even root.
    let scratch = Scratch::new("cache");
    let place = PathBuf::from(scratch.file("file", b""));
    let out = sarang(&place, &["run", "--engine", "translate"]);
    refusal(&out, 1, "set XDG_CACHE_HOME", "run");
    assert!(String::from_utf8_lossy(&out.stderr).contains(&*place.to_string_lossy()));
    let out = Command::new(env!("CARGO_BIN_EXE_sarang"))
        .args(["cache", "show"])
        .env_remove("XDG_CACHE_HOME")
        .env_remove("HOME")
        .output()
        .unwrap();
    refusal(&out, 1, "neither XDG_CACHE_HOME nor HOME", "cache show");
}

#[test]
fn a_host_without_apt_is_told_what_to_do() {
    let scratch = Scratch::new("noapt");
    let out = Command::new(env!("CARGO_BIN_EXE_sarang"))
        .args(["cache", "fetch"])
        .env("XDG_CACHE_HOME", &scratch.0)
        .env("PATH", "/nonexistent")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    refusal(&out, 1, "this host has no apt-get", "cache fetch");
    let left: Vec<_> = fs::read_dir(scratch.0.join("sarang")).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "only the lock: {left:?}");
}

#[test]
fn the_cache_is_shown_and_cleared() {
    let scratch = Scratch::new("show");
    let out = sarang(&scratch.0, &["cache", "show"]);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && text.contains("empty"), "{text}");
    let old = scratch.0.join("sarang/guest-0-old");
    fs::create_dir_all(&old).unwrap();
    fs::write(old.join("vmlinuz"), [0; 4096]).unwrap();
    let text = sarang(&scratch.0, &["cache", "show"]).stdout;
    assert!(String::from_utf8_lossy(&text).contains("left over"));
    let text = sarang(&scratch.0, &["cache", "clear"]).stdout;
    assert!(String::from_utf8_lossy(&text).contains("removed 1 MiB"));
    assert!(!old.exists());
}

#[test]
fn help_and_version_are_no_failures() {
    for (args, words) in [
        (&["--version"][..], "sarang "),
        (&["--help"], "Exit status:"),
        (&["run", "--help"], "Ctrl-A x"),
        (&["run", "--help"], "Examples:"),
        (&["engines"], "translate  yes"),
        (&["completion", "bash"], "sarang"),
    ] {
        let out = sarang(Path::new("/nonexistent"), args);
        let text = String::from_utf8_lossy(&out.stdout);
        assert_eq!(out.status.code(), Some(0), "{args:?}");
        assert!(text.contains(words), "{args:?}: {text}");
    }
}
