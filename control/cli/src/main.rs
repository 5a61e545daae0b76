//! The `sarang` command.
//!
//! `sarang run` is a VM in the foreground: this process reads the options ([`args`]), gets
//! the guest's files ([`guest`]), chooses an engine ([`engines`]), builds a machine, and
//! stays between it and the operator's terminal ([`session`]) until it ends.

mod args;
mod boot_files;
mod cache_command;
mod channels;
mod console;
mod disks;
mod displays;
mod engines;
mod escape;
mod firmware;
mod guest;
mod host;
mod monitor;
mod nets;
mod plug;
mod progress;
mod report;
mod screens;
mod session;
mod signals;
mod sockets;
mod status;
mod terminal;
mod vm;
mod vsock;

use std::process::{ExitCode, exit};

use args::{Command, Parsed};
use status::Status;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == disk_boot::ARGUMENT) {
        return disk_boot::serve(arguments.filter_map(|argument| argument.into_string().ok()));
    }
    terminal::restore_on_panic();
    let status = match run() {
        Ok(status) => status,
        Err(failure) => {
            report::failure(&failure.line);
            failure.status
        }
    };
    // Every thread ends with the process; the terminal is as it was found before that.
    terminal::restore();
    exit(status.code());
}

/// Why the command failed: one line, and the exit status that goes with it.
#[derive(Debug)]
struct Failure {
    status: Status,
    line: String,
}

impl Failure {
    /// The operator's words are at fault.
    fn usage(line: impl Into<String>) -> Self {
        Self { status: Status::BadArguments, line: line.into() }
    }

    /// The host is at fault, or a file on it.
    fn host(line: impl Into<String>) -> Self {
        Self { status: Status::HostError, line: line.into() }
    }
}

impl From<assets::Error> for Failure {
    fn from(error: assets::Error) -> Self {
        let status = match error {
            assets::Error::BadPattern { .. } => Status::BadArguments,
            _ => Status::HostError,
        };
        Self { status, line: error.to_string() }
    }
}

fn run() -> Result<Status, Failure> {
    let command = match args::parse()? {
        Parsed::Command(command) => command,
        Parsed::Printed => return Ok(Status::PoweredOff),
    };
    match command {
        Command::Run(options) => {
            host::check_floor()?;
            session::run(&options)
        }
        Command::Engines => {
            engines::print_table();
            Ok(Status::PoweredOff)
        }
        Command::Completion { shell } => {
            args::print_completion(shell);
            Ok(Status::PoweredOff)
        }
        Command::Cache { action } => {
            cache_command::run(&action)?;
            Ok(Status::PoweredOff)
        }
    }
}
