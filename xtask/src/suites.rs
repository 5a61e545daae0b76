//! The test programs of the workspace: built by one Cargo call, run one by one.
//!
//! One call for all of them, because Cargo unifies the features of dependencies over the
//! packages that it is asked for: a call per crate would build half of the tree again.

use crate::steps::status;
use crate::tree;
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// One test program.
#[derive(Debug)]
pub struct Program {
    /// The crate that it belongs to.
    pub package: String,
    /// The crate itself, or a file of its `tests` folder.
    pub target: String,
    file: PathBuf,
    folder: PathBuf,
}

/// Builds all test programs.
pub fn build() -> Result<Vec<Program>, String> {
    let mut cargo = tree::cargo();
    cargo.args(["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    let out = cargo.stderr(Stdio::inherit()).output().map_err(|e| format!("cargo: {e}"))?;
    if !out.status.success() {
        return Err(format!("cargo test --no-run: {}", out.status));
    }
    let text = String::from_utf8_lossy(&out.stdout);
    let mut programs: Vec<Program> = text.lines().filter_map(program).collect();
    programs.sort_by(|a, b| (&a.package, &a.target).cmp(&(&b.package, &b.target)));
    Ok(programs)
}

/// What one of Cargo's messages says of a test program, if it is about one.
fn program(line: &str) -> Option<Program> {
    let message: Value = serde_json::from_str(line).ok()?;
    let artifact = message["reason"] == "compiler-artifact" && message["profile"]["test"] == true;
    let manifest = PathBuf::from(message["manifest_path"].as_str()?);
    let folder = manifest.parent()?.to_path_buf();
    artifact.then_some(())?;
    Some(Program {
        package: folder.file_name()?.to_string_lossy().into_owned(),
        target: message["target"]["name"].as_str()?.to_owned(),
        file: message["executable"].as_str()?.into(),
        folder,
    })
}

/// Runs these programs as Cargo does, all of them even if one fails.
pub fn run(programs: &[&Program], args: &[&str], long: bool) -> Result<(), String> {
    let mut failed = Vec::new();
    for program in programs {
        let Program { package, target, file, folder } = program;
        println!("     Running {package}: {target} ({})", file.display());
        let mut test = Command::new(file);
        test.args(args).current_dir(folder).env("CARGO_MANIFEST_DIR", folder);
        if long {
            test.env("SARANG_LONG", "1");
        }
        if status(&mut test).is_err() {
            failed.push(format!("{package}: {target}"));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", "))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_cargo() {
        let line = r#"{"reason":"compiler-artifact","manifest_path":"/w/core/engine/Cargo.toml",
            "target":{"name":"seam"},"profile":{"test":true},"executable":"/w/target/seam-1"}"#;
        let found = program(line).unwrap();
        assert_eq!((found.package.as_str(), found.target.as_str()), ("engine", "seam"));
        assert_eq!(found.folder, PathBuf::from("/w/core/engine"));
        assert!(program(&line.replace("true", "false")).is_none());
        assert!(program("Compiling").is_none());
    }
}
