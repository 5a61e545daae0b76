//! Unix sockets at which this process listens.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::{
        fs::FileTypeExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
};

use crate::report;

/// Listens. A socket left by a process that has ended is replaced. Otherwise why not, and what to
/// do about it.
pub fn listen(path: &Path) -> Result<UnixListener, (String, &'static str)> {
    bind(path).map_err(|error| {
        let remedy = match error.kind() {
            ErrorKind::AddrInUse => "give another path, or end what uses it",
            ErrorKind::AlreadyExists => "give a path where nothing is",
            _ => "give a path in a directory that can be written",
        };
        (report::os_reason(&error), remedy)
    })
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(e) if e.kind() == ErrorKind::AddrInUse => {}
        other => return other,
    }
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(ErrorKind::AlreadyExists.into());
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        _ => Err(ErrorKind::AddrInUse.into()),
    }
}
