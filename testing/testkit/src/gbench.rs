//! The benchmark's program, which checks its own results, for a guest or for the host itself.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

/// What the build left behind.
#[derive(Clone, Debug)]
pub struct Built {
    /// An ordinary program, which needs no library.
    pub program: PathBuf,
    /// An initramfs whose `/init` is the same program.
    pub initramfs: PathBuf,
    /// An archive that is put behind an initramfs with drivers, for what measures devices.
    pub io: PathBuf,
}

/// Compiles it in this folder, as far as it has changed; an error says which packages are missing.
///
/// # Errors
/// When it does not build here.
pub fn build_gbench(out: &Path) -> Result<Built, String> {
    let said = |e: std::io::Error| format!("{}: {e}", out.display());
    fs::create_dir_all(out).map_err(said)?;
    // Who wants it meanwhile waits for it.
    let lock = File::create(out.join("lock")).map_err(said)?;
    lock.lock().map_err(said)?;
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench/guest");
    let mut make = Command::new("make");
    make.arg("--silent").arg("-C").arg(sources).arg(format!("OUT={}", out.display()));
    let problem = match make.output() {
        Ok(done) if done.status.success() => {
            let file = |name: &str| out.join(name);
            return Ok(Built {
                program: file("gbench"),
                initramfs: file("gbench.cpio.gz"),
                io: file("io.cpio"),
            });
        }
        Ok(done) => String::from_utf8_lossy(&done.stderr).into_owned(),
        Err(e) => format!("make: {e}"),
    };
    Err(format!(
        "the guest's program does not build:\n{problem}\nit needs: apt-get install gcc make \
         libc6-dev libsqlite3-dev zlib1g-dev cpio"
    ))
}
