//! Bad input gets one clear line, the right exit status, and never a hang or a backtrace.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use testkit::{Error, run, status};

const SOON: Duration = Duration::from_secs(60);

/// A folder of this test's own, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sarang-{name}-{}", std::process::id()));
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

/// Runs the command and checks that it refuses in one line which holds `word`.
fn refused(args: &[&str], word: &str, statuses: &[i32]) -> Result<(), Error> {
    let out = run(args, SOON)?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    let line = args.join(" ");
    assert!(
        out.status.code().is_some_and(|code| statuses.contains(&code)),
        "sarang {line}: {:?}\n{said}",
        out.status
    );
    assert!(!said.contains("panicked"), "sarang {line}:\n{said}");
    assert!(said.contains(word), "sarang {line} does not name `{word}`:\n{said}");
    Ok(())
}

#[test]
fn options_out_of_range() -> Result<(), Error> {
    let cases: &[(&[&str], &str)] = &[
        (&["run", "--cpus", "0"], "cpus"),
        (&["run", "--cpus", "4096"], "cpus"),
        (&["run", "--cpus", "many"], "cpus"),
        (&["run", "--memory", "1M"], "memory"),
        (&["run", "--memory", "0"], "memory"),
        (&["run", "--memory", "-5M"], "memory"),
        (&["run", "--memory", "99999999999999999999G"], "memory"),
        (&["run", "--memory", "512X"], "memory"),
        (&["run", "--engine", "steam"], "engine"),
        (&["run", "--cpu-model", "z80"], "z80"),
        (&["run", "--console", "tin-can"], "console"),
        (&["run", "--timeout", "soon"], "timeout"),
        (&["run", "--no-such-option"], "no-such-option"),
        (&["no-such-command"], "no-such-command"),
    ];
    for (args, word) in cases {
        refused(args, word, &[status::BAD_ARGUMENTS])?;
    }
    Ok(())
}

#[test]
fn kernels_that_are_none() -> Result<(), Error> {
    let scratch = Scratch::new("kernels");
    let empty = scratch.file("empty", b"");
    let text = scratch.file("text", b"#!/bin/sh\necho I am no kernel\n");
    let zeroes = scratch.file("zeroes", &[0; 100_000]);
    let mut elf = vec![0; 4096];
    // An ELF header of a 64-bit ARM program (System V ABI, chapter 4).
    elf[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0");
    let arm = scratch.file("arm", &elf);
    let missing = scratch.0.join("missing").to_string_lossy().into_owned();
    let folder = scratch.0.to_string_lossy().into_owned();
    for kernel in [&empty, &text, &zeroes, &arm, &missing, &folder] {
        let args = ["run", "--engine", "translate", "--kernel", kernel];
        refused(&args, kernel, &[status::HOST_ERROR, status::BAD_ARGUMENTS])?;
    }
    Ok(())
}

#[test]
fn a_truncated_kernel_and_a_huge_initrd() -> Result<(), Error> {
    let Some(files) = testkit::guest_files("linux-image-6.1.0-*-cloud-amd64") else {
        return Ok(());
    };
    let scratch = Scratch::new("truncated");
    let kernel = fs::read(&files.kernel).unwrap();
    for part in [600, 4096, kernel.len() / 2, kernel.len() - 200_000] {
        let cut = scratch.file("cut", &kernel[..part]);
        let args = ["run", "--engine", "translate", "--timeout", "20s", "--kernel", &cut];
        refused(&args, &cut, &[status::HOST_ERROR, status::BAD_ARGUMENTS])?;
    }
    let big = scratch.0.join("big").to_string_lossy().into_owned();
    fs::File::create(&big).and_then(|f| f.set_len(600 << 20)).unwrap();
    let kernel = files.kernel.to_string_lossy().into_owned();
    let args =
        ["run", "--engine", "translate", "--memory", "256M", "--kernel", &kernel, "--initrd", &big];
    refused(&args, "initrd", &[status::HOST_ERROR, status::BAD_ARGUMENTS])?;
    let missing = scratch.0.join("missing").to_string_lossy().into_owned();
    let args = ["run", "--engine", "translate", "--kernel", &kernel, "--initrd", &missing];
    refused(&args, &missing, &[status::HOST_ERROR, status::BAD_ARGUMENTS])
}

#[test]
fn engines_are_listed() -> Result<(), Error> {
    let out = run(&["engines"], SOON)?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success());
    assert!(text.contains("kvm") && text.contains("translate"), "{text}");
    Ok(())
}
