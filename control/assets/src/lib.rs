//! The default guest: Debian's packages fetched, unpacked and cached.
//!
//! The default guest is Debian's stock cloud kernel and a small root made of `busybox-static`
//! and some of that kernel's own modules. Both packages are pulled by name with Debian's
//! ordinary client as whoever runs this, and unpacked here ([`deb`]). The root becomes an
//! uncompressed initramfs ([`root`]), because an interpreted guest unpacks slowly.
//!
//! # The guest's command line
//!
//! The root's `/init` needs `console=ttyS0` and understands these words:
//!
//! - `sarang.exec=COMMAND` runs the percent-encoded ([`encode_command`]) command with `sh -c`,
//!   prints a line `SARANG-EXIT status`, and powers off;
//! - `sarang.winsize=ROWSxCOLUMNS` gives the console a size, which a serial line has not;
//! - `sarang.term=NAME` sets `TERM`.
//!
//! # The cache
//!
//! [`Cache`] keeps one directory a guest, made under another name and renamed when complete,
//! so that what is there is whole. A lock file keeps two fetches apart. Nothing is hashed
//! when a guest is found again.

mod apt;
mod cache;
mod cpio;
pub mod deb;
mod error;
mod fetch;
mod modules;
mod process;
mod root;
mod sources;

pub use cache::{Cache, Entry, Guest};
pub use error::Error;
pub use fetch::{DEFAULT_KERNEL, Fetcher};
pub use root::encode_command;

/// How a long job tells what it does, and hears that it is to stop.
pub trait Progress {
    /// A new step begins; `text` says what is done.
    fn step(&mut self, text: &str);

    /// How far the step has come, in thousandths.
    fn advance(&mut self, permille: u16);

    /// Whether the operator has asked to stop.
    fn cancelled(&self) -> bool {
        false
    }
}

/// For callers that tell nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn step(&mut self, _text: &str) {}
    fn advance(&mut self, _permille: u16) {}
}
