//! What tests need of the host: folders of their own, and files of its packages.

use std::{
    fs,
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    thread,
};

/// A folder of one test's own, removed at its end.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// An empty one, with a name of this process's own.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sarang-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self(path)
    }

    /// Where it is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// Where something of this name is in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The same, as an option has it.
    #[must_use]
    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Says the same to all who connect, as long as the test's process lives; the port.
///
/// # Panics
/// If the host has no port left.
#[must_use]
pub fn serve(text: &'static str) -> u16 {
    let bound = TcpListener::bind("127.0.0.1:0").and_then(|it| Ok((it.local_addr()?.port(), it)));
    let (port, listener) = bound.unwrap_or_else(|e| panic!("a port to listen at: {e}"));
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(text.as_bytes());
        }
    });
    port
}

/// Whether all of these files are here. A test without them is left out with a line that says so,
/// and fails where `CI` is set: there all packages are to be installed.
#[must_use]
pub fn on_this_host(files: &[&str]) -> bool {
    let missing = files.iter().find(|file| !Path::new(file).is_file());
    if let Some(file) = missing {
        left_out(&format!("not on this host: {file}"));
    }
    missing.is_none()
}

/// A test is left out, which fails where `CI` is set.
pub fn left_out(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{why}");
    eprintln!("skipped: {why}");
}
