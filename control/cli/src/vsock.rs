//! The socket at which programs of the host reach those of the guest.

use std::{fs, path::PathBuf};

use machine::VsockPart;
use vm_spec::Vsock;

use crate::{Failure, host, report, sockets};

/// Files that all connections may need, beside those of the process.
const FILES: u64 = 1024;

/// The socket's file, removed when dropped.
#[derive(Debug)]
pub struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        // Someone else may have removed it.
        let _ = fs::remove_file(&self.0);
    }
}

/// Listens where the option says.
pub fn open(vsock: Option<&Vsock>) -> Result<Option<(Socket, VsockPart)>, Failure> {
    let Some(vsock) = vsock else { return Ok(None) };
    let listener = sockets::listen(&vsock.path)
        .map_err(|(why, remedy)| Failure::host(format!("--vsock {vsock}: {why}; {remedy}")))?;
    if !host::allow_files(FILES) {
        report::notice(&format!(
            "--vsock {vsock}: this user may open too few files for all connections that there may \
             be; ulimit -n {FILES} would do"
        ));
    }
    let part = VsockPart { cid: vsock.cid, listener, base: vsock.path.clone() };
    Ok(Some((Socket(vsock.path.clone()), part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_goes_with_the_machine() {
        let path = std::env::temp_dir().join(format!("sarang-vs-{}", std::process::id()));
        let vsock: Vsock = path.display().to_string().parse().unwrap();
        let (socket, part) = open(Some(&vsock)).unwrap().unwrap();
        let line = open(Some(&vsock)).unwrap_err().line;
        assert!(
            line.starts_with(&format!("--vsock {vsock}: ")) && line.contains("in use"),
            "{line}"
        );
        drop((socket, part));
        assert!(!path.exists());
        assert!(open(None).unwrap().is_none());
    }
}
