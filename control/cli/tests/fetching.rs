//! Fetching with a package client that fails or hangs: a stand-in for `apt-get`.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

/// A directory with the stand-ins in `bin` and the cache in `cache`.
struct Host(PathBuf);

impl Host {
    /// `apt_get` is a shell script's text.
    fn new(name: &str, apt_get: &str) -> Self {
        let root = env::temp_dir().join(format!("sarang-fetch-{name}-{}", std::process::id()));
        let bin = root.join("bin");
        fs::create_dir_all(&bin).unwrap();
        let script = |name: &str, text: &str| {
            let path = bin.join(name);
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        };
        script("apt-cache", "echo linux-image-6.1.0-9-cloud-amd64; echo busybox-static");
        script("apt-get", apt_get);
        Self(root)
    }

    fn sarang(&self, args: &[&str]) -> Command {
        let path = format!("{}:{}", self.0.join("bin").display(), env::var("PATH").unwrap());
        let mut command = Command::new(env!("CARGO_BIN_EXE_sarang"));
        command.args(args).env("PATH", path).env("XDG_CACHE_HOME", self.0.join("cache"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// What the cache holds.
    fn cached(&self) -> Vec<String> {
        let listing = fs::read_dir(self.0.join("cache/sarang")).unwrap().flatten();
        let mut names: Vec<_> =
            listing.map(|item| item.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const OFFLINE: &str = "echo \"E: Failed to fetch http://mirror.invalid/x.deb  \
    Temporary failure resolving 'mirror.invalid'\" >&2; exit 100";

#[test]
fn without_a_network_the_built_in_guest_is_booted() {
    let host = Host::new("offline", OFFLINE);
    let args = ["run", "--engine", "translate", "--append", "run=echo hello", "--timeout", "60s"];
    let out = host.sarang(&args).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(0), "{said}");
    assert!(said.contains("Temporary failure resolving 'mirror.invalid'"), "{said}");
    assert!(said.contains("booting the built-in guest instead"), "{said}");
    assert!(String::from_utf8_lossy(&out.stdout).contains("Sarang micro-guest"));
    assert_eq!(host.cached(), ["lock"]);
}

#[test]
fn a_kernel_that_was_asked_for_is_not_replaced() {
    let host = Host::new("asked", OFFLINE);
    let args = ["run", "--engine", "translate", "--package", "linux-image-6.1.0-*-cloud-amd64"];
    let out = host.sarang(&args).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("the package mirror cannot be reached"), "{said}");
}

#[test]
fn a_damaged_package_leaves_nothing() {
    let host = Host::new("damaged", "echo 'no archive' > package.deb");
    let out = host.sarang(&["cache", "fetch"]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("unpacking linux-image-6.1.0-9-cloud-amd64: "), "{said}");
    assert_eq!(host.cached(), ["lock"]);
}

#[test]
fn an_interrupt_leaves_nothing() {
    let host = Host::new("interrupt", "echo partial > package.deb; exec sleep 1000");
    let child = host.sarang(&["cache", "fetch"]).spawn().unwrap();
    let staging = host.0.join("cache/sarang").join(format!("staging-{}", child.id()));
    let package = staging.join("linux-image-6.1.0-9-cloud-amd64/package.deb");
    while !package.exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-s", "INT", &id]).status().unwrap().success());
    let out = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("interrupted; nothing is kept"), "{said}");
    assert_eq!(host.cached(), ["lock"]);
}
