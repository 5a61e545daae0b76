//! The guest: building the benchmark program and finding a kernel for it.

use crate::options::Options;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the build left behind.
#[derive(Debug, Clone)]
pub struct Built {
    /// The benchmark as an ordinary program of the host.
    pub program: PathBuf,
    /// An initramfs whose `/init` is the same program.
    pub initramfs: PathBuf,
    /// Preloaded into User-Mode Linux; see its source.
    pub uml_shim: PathBuf,
}

/// The folder for everything that is built and written.
pub fn out_dir() -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join("bench")
}

/// The root of the workspace.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// Compiles the guest's program; an error says which packages are missing.
pub fn build() -> Result<Built, String> {
    let (sources, out) = (Path::new(env!("CARGO_MANIFEST_DIR")), out_dir().join("guest"));
    std::fs::create_dir_all(&out).map_err(|e| format!("{}: {e}", out.display()))?;
    let mut make = Command::new("make");
    make.arg("--silent").arg("-C").arg(sources.join("guest"));
    make.arg(format!("OUT={}", out.display()));
    let shim = out.join("xstate_shim.so");
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-shared", "-fPIC", "-o"]).arg(&shim).arg(sources.join("uml/xstate_shim.c"));
    for command in [&mut make, &mut cc] {
        let name = command.get_program().to_string_lossy().into_owned();
        let result = command.output();
        let problem = match result {
            Ok(out) if out.status.success() => continue,
            Ok(out) => String::from_utf8_lossy(&out.stderr).into_owned(),
            Err(e) => format!("{name}: {e}"),
        };
        return Err(format!(
            "the guest's program does not build:\n{problem}\nit needs: apt-get install gcc make libc6-dev \
             libsqlite3-dev zlib1g-dev cpio"
        ));
    }
    Ok(Built { program: out.join("gbench"), initramfs: out.join("gbench.cpio.gz"), uml_shim: shim })
}

/// The kernel that was asked for, or the one that `sarang run` keeps in its cache.
pub fn kernel(options: &Options) -> Result<Option<PathBuf>, String> {
    if let Some(kernel) = &options.kernel {
        return kernel
            .is_file()
            .then(|| Some(kernel.clone()))
            .ok_or_else(|| format!("{}: no such file", kernel.display()));
    }
    Ok(cached("vmlinuz"))
}

/// The newest file of the cache of `sarang run` whose name begins so.
pub fn cached(prefix: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    let mut folders = vec![cache.join("sarang")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name.starts_with(prefix) && !name.ends_with(".partial") {
                let time = entry.metadata().and_then(|m| m.modified()).ok();
                found.push((time, path));
            }
        }
    }
    found.into_iter().max().map(|(_, path)| path)
}
