//! Files of Debian packages that no guest of ours is made of: installers, other kernels.

use assets::Cache;
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
};

/// These files (absolute paths in the package) of a Debian package: as it is installed here, or
/// fetched with `apt-get download`, as any user may, and kept. `None`, with a line that says so,
/// when they cannot be had; where the tests must be whole (`CI=true`), that is a failure.
///
/// # Panics
/// With `CI=true` in the environment, when they cannot be had.
pub fn package_files<const N: usize>(package: &str, files: [&str; N]) -> Option<[PathBuf; N]> {
    if files.iter().all(|file| Path::new(file).is_file()) {
        return Some(files.map(PathBuf::from));
    }
    match fetch(package, &files) {
        Ok(root) => Some(files.map(|file| root.join(file.trim_start_matches('/')))),
        Err(why) => {
            assert!(std::env::var_os("CI").is_none(), "{package}: {why}");
            eprintln!("skipped: {package} cannot be had here: {why}");
            None
        }
    }
}

/// The folder below which the files are.
fn fetch(package: &str, files: &[&str]) -> Result<PathBuf, String> {
    let cache = Cache::locate().map_err(|e| e.to_string())?;
    let folder = cache.root().with_file_name("sarang-test").join(package);
    let said = |e: io::Error| format!("{}: {e}", folder.display());
    fs::create_dir_all(&folder).map_err(said)?;
    // Tests that want it meanwhile wait for it.
    let lock = File::create(folder.join("lock")).map_err(said)?;
    lock.lock().map_err(said)?;
    let there = |file: &&str| folder.join(file.trim_start_matches('/')).is_file();
    if files.iter().all(there) {
        return Ok(folder);
    }
    // Only what is asked for is kept, and under its name when it is whole.
    let script = "rm -rf new; apt-get download -q -- \"$0\" >&2
                  mkdir new; dpkg-deb --fsys-tarfile \"$0\"_*.deb | tar -C new -xf - \"$@\"
                  cp -al new/. .; rm -rf new \"$0\"_*.deb";
    let made = Command::new("sh")
        .args(["-ec", script, package])
        .args(files.iter().map(|file| format!(".{file}")))
        .current_dir(&folder)
        .output()
        .map_err(said)?;
    if made.status.success() && files.iter().all(there) {
        return Ok(folder);
    }
    Err(String::from_utf8_lossy(&made.stderr).trim().to_owned())
}
