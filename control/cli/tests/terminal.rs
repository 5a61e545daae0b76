//! The operator's terminal: raw while the guest has it, as it was on every way out.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
};

use rustix::{
    fs::{Mode, OFlags},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{InputModes, LocalModes, OutputModes, tcgetattr},
};

/// A terminal, of which the program has one side.
struct Terminal {
    ours: File,
    theirs: OwnedFd,
}

impl Terminal {
    fn new() -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let path = ptsname(&ours, Vec::new()).unwrap();
        let theirs = rustix::fs::open(path, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        Self { ours: ours.into(), theirs }
    }

    fn run(&self, args: &[&str]) -> Child {
        let side = || Stdio::from(self.theirs.try_clone().unwrap());
        Command::new(env!("CARGO_BIN_EXE_sarang"))
            .args(["run", "--engine", "translate", "--built-in", "--memory", "32M"])
            .args(args)
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .unwrap()
    }

    fn modes(&self) -> (InputModes, OutputModes, LocalModes) {
        let settings = tcgetattr(&self.theirs).unwrap();
        (settings.input_modes, settings.output_modes, settings.local_modes)
    }

    fn expect(&mut self, words: &str) {
        let mut text = Vec::new();
        let mut byte = [0];
        while !text.ends_with(words.as_bytes()) {
            self.ours.read_exact(&mut byte).unwrap();
            text.push(byte[0]);
        }
    }
}

fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
}

fn check(args: &[&str], leave: impl FnOnce(&mut Terminal, &Child), status: i32) {
    let mut terminal = Terminal::new();
    let before = terminal.modes();
    assert!(before.2.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG));
    let mut child = terminal.run(args);
    terminal.expect("Sarang micro-guest");
    let during = terminal.modes();
    assert!(!during.2.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG));
    leave(&mut terminal, &child);
    // Somebody reads what is still said; otherwise a full terminal would hold the program up.
    let mut reader = terminal.ours.try_clone().unwrap();
    std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    assert_eq!(child.wait().unwrap().code(), Some(status));
    assert_eq!(terminal.modes(), before);
}

#[test]
fn as_it_was_after_the_escape_sequence() {
    check(&["--timeout", "60s"], |terminal, _| terminal.ours.write_all(b"\x01x").unwrap(), 6);
}

#[test]
fn as_it_was_after_the_monitors_quit() {
    let quit = |terminal: &mut Terminal, _: &Child| {
        terminal.ours.write_all(b"\x01c").unwrap();
        terminal.expect("(sarang) ");
        terminal.ours.write_all(b"quit\r").unwrap();
    };
    check(&["--timeout", "60s"], quit, 6);
}

#[test]
fn as_it_was_after_the_guest_powered_off() {
    let power_off = |terminal: &mut Terminal, _: &Child| {
        terminal.expect("\n> ");
        terminal.ours.write_all(b"poweroff\r").unwrap();
    };
    check(&["--timeout", "60s"], power_off, 0);
}

#[test]
fn as_it_was_after_a_triple_fault() {
    let fault = |terminal: &mut Terminal, _: &Child| {
        terminal.expect("\n> ");
        terminal.ours.write_all(b"triple-fault\r").unwrap();
    };
    check(&["--timeout", "60s"], fault, 4);
}

#[test]
fn as_it_was_after_signals() {
    for name in ["TERM", "INT", "HUP", "QUIT"] {
        let twice = |terminal: &mut Terminal, child: &Child| {
            signal(child, name);
            terminal.expect("asking the guest to power down");
            signal(child, name);
        };
        check(&["--timeout", "60s"], twice, 6);
    }
}

#[test]
fn as_it_was_after_the_time_was_over() {
    check(&["--timeout", "2s"], |_, _| {}, 5);
}
