//! What the workspace holds: its root, its crates as Cargo tells them, its source files.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The root folder of the workspace.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// The Cargo that runs this program, or the one on the path.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// `cargo metadata` of the workspace; with `resolved`, all dependencies are included.
pub fn metadata(resolved: bool) -> Result<Value, String> {
    let mut command = cargo();
    command.args(["metadata", "--format-version", "1"]);
    if resolved {
        command.args(["--filter-platform", "x86_64-unknown-linux-gnu"]);
    } else {
        command.arg("--no-deps");
    }
    let out = command.output().map_err(|e| format!("cargo metadata: {e}"))?;
    if !out.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&out.stderr)));
    }
    serde_json::from_slice(&out.stdout).map_err(|e| format!("cargo metadata: {e}"))
}

/// All Rust files of the workspace, relative to its root, sorted.
pub fn rust_files() -> Result<Vec<PathBuf>, String> {
    let root = root();
    let mut files = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        for entry in entries {
            let path = entry.map_err(|e| format!("{}: {e}", folder.display()))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                // Build output of the workspace and of nested crates, and hidden folders.
                if name != "target" && !name.starts_with('.') {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path.strip_prefix(&root).unwrap_or(&path).to_path_buf());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The text of a file of the workspace.
pub fn read(relative: &Path) -> Result<String, String> {
    fs::read_to_string(root().join(relative)).map_err(|e| format!("{}: {e}", relative.display()))
}

/// `Ok` when there are no faults, else all of them, one a line.
pub fn verdict(what: &str, checked: usize, faults: Vec<String>) -> Result<(), String> {
    if faults.is_empty() {
        println!("{what}: {checked} checked, all in order");
        Ok(())
    } else {
        Err(format!("{} fault(s)\n  {}", faults.len(), faults.join("\n  ")))
    }
}
