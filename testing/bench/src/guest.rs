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
    /// Put behind the default guest's initramfs, to measure devices.
    pub io: PathBuf,
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
    let built = testkit::build_gbench(&out)?;
    let shim = out.join("xstate_shim.so");
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-shared", "-fPIC", "-o"]).arg(&shim).arg(sources.join("uml/xstate_shim.c"));
    let done = cc.output().map_err(|e| format!("cc: {e}"))?;
    if !done.status.success() {
        return Err(format!("{}: {}", shim.display(), String::from_utf8_lossy(&done.stderr)));
    }
    Ok(Built { program: built.program, initramfs: built.initramfs, io: built.io, uml_shim: shim })
}

/// What is booted.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// A bzImage.
    pub kernel: Option<PathBuf>,
    /// An initramfs with a shell, for the boot times.
    pub initrd: Option<PathBuf>,
    /// The kernel's package or file, for the report.
    pub label: String,
}

/// The kernel and initrd that were asked for, or those of the default guest, which are fetched
/// when the cache of `sarang run` has them not.
pub fn files(options: &Options) -> Result<Files, String> {
    for file in [&options.kernel, &options.initrd].into_iter().flatten() {
        if !file.is_file() {
            return Err(format!("{}: no such file", file.display()));
        }
    }
    let (kernel, initrd) = (options.kernel.clone(), options.initrd.clone());
    let label = kernel.as_deref().map(|k| k.display().to_string());
    if kernel.is_some() && initrd.is_some() {
        return Ok(Files { kernel, initrd, label: label.unwrap_or_default() });
    }
    match assets::Cache::locate()
        .and_then(|cache| assets::Fetcher { cache: &cache }.default_guest(&mut Told))
    {
        Ok(guest) => Ok(Files {
            kernel: kernel.or(Some(guest.kernel)),
            initrd: initrd.or(Some(guest.initrd)),
            label: label.unwrap_or(guest.package),
        }),
        Err(why) => {
            eprintln!("bench: no default guest: {why}");
            Ok(Files { kernel, initrd, label: label.unwrap_or_default() })
        }
    }
}

/// Tells each step of a fetch.
struct Told;

impl assets::Progress for Told {
    fn step(&mut self, text: &str) {
        eprintln!("bench: {text}");
    }

    fn advance(&mut self, _permille: u16) {}
}
