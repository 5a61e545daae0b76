//! The file by which `perf report` names translated code: `/tmp/perf-PID.map`, a line of
//! address, length and name for each piece (Linux, tools/perf/Documentation/jit-interface.txt).

use std::{
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

/// Text is written when there is so much of it.
const CHUNK: usize = 32 << 10;

/// One process's, which all vCPUs share.
#[derive(Debug)]
pub struct PerfMap(Mutex<Pending>);

#[derive(Debug)]
struct Pending {
    file: File,
    text: String,
}

impl PerfMap {
    /// Begins this process's map anew.
    pub fn create() -> io::Result<Self> {
        Self::create_at(PathBuf::from(format!("/tmp/perf-{}.map", std::process::id())))
    }

    fn create_at(path: PathBuf) -> io::Result<Self> {
        // Anybody may have put something else there; what is not ours cannot be removed.
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self(Mutex::new(Pending { file, text: String::new() })))
    }

    /// From now on this is at `host`. Code that was there before is forgotten by nobody: of two
    /// names `perf` takes one.
    pub(crate) fn add(&self, host: *const u8, len: usize, name: std::fmt::Arguments<'_>) {
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a string does not fail.
        let _ = writeln!(pending.text, "{:x} {len:x} {name}", host as usize);
        if pending.text.len() >= CHUNK {
            pending.write();
        }
    }

    /// All names so far are in the file afterwards.
    pub fn flush(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write();
    }
}

impl Pending {
    fn write(&mut self) {
        // A full disk costs names, not the guest.
        let _ = self.file.write_all(self.text.as_bytes());
        self.text.clear();
    }
}

impl Drop for PerfMap {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each_piece() {
        let path = std::env::temp_dir().join(format!("sarang-perf-map-{}", std::process::id()));
        std::os::unix::fs::symlink("/nonexistent/elsewhere", &path).unwrap();
        let map = PerfMap::create_at(path.clone()).unwrap();
        map.add(0x7f00_1234_5000 as *const u8, 0x40, format_args!("guest_{:x}", 0x401000));
        map.add(0x7f00_1234_5040 as *const u8, 0x10, format_args!("guest_{:x}", 0x401020));
        drop(map);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(text, "7f0012345000 40 guest_401000\n7f0012345040 10 guest_401020\n");
    }
}
