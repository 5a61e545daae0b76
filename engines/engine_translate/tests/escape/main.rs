//! Whatever a guest does, it reaches its own memory and its own values only.
//!
//! Every form of access is tried at every kind of address, from ring 0 and ring 3, interpreted
//! and translated. The processor's manual says what must come of it: the bytes of guest memory,
//! or the exception with its error code and address. All this runs in a process of its own, so
//! that a stray access to the host, which mostly is a crash, is a failed test.

mod access;
mod forms;
mod guest;
mod leaks;
mod modes;
mod sequences;
mod special;

use std::process::Command;

/// Runs an ignored test of this file in a process of its own.
fn confined(name: &str) {
    let own = std::env::current_exe().unwrap();
    let mut child = Command::new(own);
    let output = child.args(["--exact", name, "--ignored", "--nocapture"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    let tail: String = failed.chars().take(4000).collect();
    assert!(output.status.success(), "{}: {said}{tail}", output.status);
    assert!(said.contains("1 passed"), "{said}");
}

#[test]
fn no_access_leaves_the_guest() {
    confined("attempts_by_access");
}

#[test]
fn no_instruction_tells_of_the_host() {
    confined("attempts_by_instruction");
}

#[test]
#[ignore = "started by no_access_leaves_the_guest"]
fn attempts_by_access() {
    access::attempt_all();
}

#[test]
#[ignore = "started by no_instruction_tells_of_the_host"]
fn attempts_by_instruction() {
    leaks::attempt_all();
}

#[test]
fn no_sequence_of_accesses_leaves_the_guest() {
    confined("attempts_by_sequence");
}

#[test]
#[ignore = "started by no_sequence_of_accesses_leaves_the_guest"]
fn attempts_by_sequence() {
    access::attempt_sequences();
}
