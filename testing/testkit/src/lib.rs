//! Boots real guests through the `sarang` command and checks what they said.
//!
//! A test describes a guest with [`Options`], boots it with [`Guest::boot`], talks to its
//! console with [`Guest::expect`], [`Guest::send`] and [`Guest::command`], and ends with
//! [`Guest::finish`], which gives the command's exit status. Nothing here knows the inside of
//! the monitor: what holds here holds for a user at a terminal.
//!
//! Timeouts are for hangs only. No test asserts a time.

mod command;
mod debian;
mod error;
mod files;
mod gbench;
mod guest;
mod host;
mod options;
mod packages;
mod screen;

pub use command::{program, run};
pub use debian::{Debian, PASSWORD, debian};
pub use error::Error;
pub use files::{KERNEL_6_1_FULL, KERNEL_6_12, KERNEL_FULL, guest_files};
pub use gbench::{Built, build_gbench};
pub use guest::{Finished, Guest};
pub use host::{Folder, left_out, on_this_host, serve};
pub use options::Options;
pub use packages::package_files;
pub use screen::Screen;

use std::time::Duration;

/// Longest wait for a guest to come up: an interpreted boot on a busy machine takes minutes.
pub const BOOT: Duration = Duration::from_secs(600);
/// Longest wait for what a command prints.
pub const COMMAND: Duration = Duration::from_secs(180);

/// Exit statuses of `sarang run`, as its help documents them.
pub mod status {
    /// The guest powered itself off.
    pub const POWERED_OFF: i32 = 0;
    /// The host lacks something or failed.
    pub const HOST_ERROR: i32 = 1;
    /// The arguments make no sense.
    pub const BAD_ARGUMENTS: i32 = 2;
    /// The guest's kernel reported a panic.
    pub const GUEST_PANIC: i32 = 3;
    /// The guest did what no processor can go on from.
    pub const GUEST_ERROR: i32 = 4;
    /// The time given by `--timeout` was over.
    pub const TIMEOUT: i32 = 5;
    /// The operator quit.
    pub const QUIT: i32 = 6;
}
