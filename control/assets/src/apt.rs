//! Debian's ordinary client, as an unprivileged user.
//!
//! First with the host's own package lists. If these are absent or stale, the lists are
//! fetched into a private state directory, which needs no root; if the host's sources do
//! not have the package, then from its mirror's other suites.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    Error, Progress,
    process::{self, Finished, Stopped},
    sources,
};

/// Suites that are asked when the host's own sources do not have a package.
const OTHER_SUITES: &[&str] = &["bookworm", "bookworm-updates", "bookworm-backports"];

/// Hooks and data that a private list needs not, and that would write to the system.
const CONFIGURATION: &str = "#clear APT::Update::Pre-Invoke;\n\
    #clear APT::Update::Post-Invoke;\n\
    #clear APT::Update::Post-Invoke-Success;\n\
    #clear Acquire::IndexTargets::deb::DEP-11;\n\
    #clear Acquire::IndexTargets::deb::DEP-11-icons;\n\
    #clear Acquire::IndexTargets::deb::Contents-deb;\n\
    #clear Acquire::IndexTargets::deb-src;\n\
    APT::Sandbox::User \"root\";\n\
    Acquire::Languages \"none\";\n\
    Acquire::Retries \"1\";\n\
    Acquire::http::Timeout \"15\";\n\
    Acquire::https::Timeout \"15\";\n";

/// What apt says when a mirror cannot be reached.
const UNREACHABLE: &[&str] = &[
    "Temporary failure resolving",
    "Could not resolve",
    "Could not connect",
    "Unable to connect",
    "Network is unreachable",
    "No route to host",
    "Connection refused",
    "Connection timed out",
    "Connection failed",
    "Cannot initiate the connection",
];

/// Which package lists are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lists {
    /// The host's, as they are.
    System,
    /// The host's sources, fetched now.
    Fresh,
    /// Other suites of the host's mirror, fetched now.
    OtherSuites,
}

/// A package that was downloaded.
#[derive(Debug)]
pub struct Package {
    pub name: String,
    pub file: PathBuf,
}

/// The package client, working in one directory.
#[derive(Debug)]
pub struct Apt {
    work: PathBuf,
    lists: Lists,
}

impl Apt {
    /// `work` is an existing directory that the client may fill.
    pub fn new(work: &Path) -> Result<Self, Error> {
        let apt = Self { work: work.into(), lists: Lists::System };
        let path = apt.configuration();
        fs::write(&path, CONFIGURATION).map_err(Error::cache("writing", &path))?;
        Ok(apt)
    }

    /// Downloads the newest package whose name fits the pattern (`*` stands for anything, `?` for
    /// one character).
    pub fn download(
        &mut self,
        pattern: &str,
        progress: &mut dyn Progress,
    ) -> Result<Package, Error> {
        if !is_pattern(pattern) {
            return Err(Error::BadPattern { pattern: pattern.into() });
        }
        loop {
            let failure = match self.try_download(pattern, progress) {
                Err(e @ (Error::NoPackage { .. } | Error::Apt { .. } | Error::Offline { .. })) => e,
                other => return other,
            };
            // With no mirror in reach, fresh lists cannot be had either.
            let offline = matches!(failure, Error::Offline { .. });
            if offline || !self.next_lists(pattern, progress)? {
                return Err(failure);
            }
        }
    }

    fn try_download(&self, pattern: &str, progress: &mut dyn Progress) -> Result<Package, Error> {
        let names = self.run(
            "apt-cache",
            &["pkgnames", pattern.split(['*', '?']).next().unwrap_or_default()],
            pattern,
            progress,
        )?;
        let mut names: Vec<&str> = names.stdout.lines().filter(|n| fits(pattern, n)).collect();
        names.sort_by(|a, b| natural_order(b, a));
        let mut failure = Error::NoPackage { package: pattern.into() };
        // A name may be known and yet offered no longer: then the next one.
        for name in names.iter().take(8) {
            progress.step(&format!("downloading {name}"));
            match self.fetch(name, progress) {
                Err(e @ Error::NoPackage { .. }) => failure = e,
                other => return other,
            }
        }
        Err(failure)
    }

    fn fetch(&self, name: &str, progress: &mut dyn Progress) -> Result<Package, Error> {
        let place = self.work.join(name);
        if !place.is_dir() {
            fs::create_dir(&place).map_err(Error::cache("making", &place))?;
        }
        let finished = self.run(
            "apt-get",
            &["-q", "-o", "APT::Status-Fd=1", "download", name],
            name,
            progress,
        )?;
        if !finished.status.success() {
            return Err(self.failure(name, &finished));
        }
        let listing = fs::read_dir(&place).map_err(Error::cache("reading", &place))?;
        let file = listing
            .flatten()
            .map(|item| item.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
        match file {
            Some(file) => Ok(Package { name: name.into(), file }),
            None => Err(Error::Apt { package: name.into(), detail: "it left no file".into() }),
        }
    }

    /// Goes on to the next kind of lists; false if there is none.
    fn next_lists(&mut self, package: &str, progress: &mut dyn Progress) -> Result<bool, Error> {
        self.lists = match self.lists {
            Lists::System => Lists::Fresh,
            Lists::Fresh => {
                let Some(text) = sources::derive(Path::new("/etc"), OTHER_SUITES) else {
                    return Ok(false);
                };
                let path = self.work.join("sources.list");
                fs::write(&path, text).map_err(Error::cache("writing", &path))?;
                Lists::OtherSuites
            }
            Lists::OtherSuites => return Ok(false),
        };
        progress.step("reading the package lists");
        for directory in ["state/lists/partial", "cache/archives/partial", "empty"] {
            let path = self.work.join(directory);
            fs::create_dir_all(&path).map_err(Error::cache("making", &path))?;
        }
        // Some of the sources may fail for reasons of their own: what counts is whether the
        // package is found then. Only when nothing was reached is it an error by itself.
        let finished =
            self.run("apt-get", &["-q", "-o", "APT::Status-Fd=1", "update"], package, progress)?;
        match unreachable(&finished) {
            Some(detail) if !self.any_list() => {
                Err(Error::Offline { package: package.into(), detail })
            }
            _ => Ok(true),
        }
    }

    fn any_list(&self) -> bool {
        let lists = fs::read_dir(self.work.join("state/lists"));
        lists.is_ok_and(|mut items| {
            items.any(|item| {
                item.is_ok_and(|i| i.file_name().to_string_lossy().contains("_Packages"))
            })
        })
    }

    fn run(
        &self,
        program: &str,
        arguments: &[&str],
        package: &str,
        progress: &mut dyn Progress,
    ) -> Result<Finished, Error> {
        let mut command = Command::new(program);
        command.arg("-c").arg(self.configuration());
        for (key, value) in self.settings() {
            let mut setting = std::ffi::OsString::from(format!("{key}="));
            setting.push(value);
            command.arg("-o").arg(setting);
        }
        let place = self.work.join(package);
        command.args(arguments).current_dir(if place.is_dir() { &place } else { &self.work });
        let finished = process::run(&mut command, progress, |line, progress| {
            match status_permille(line) {
                Some(permille) => progress.advance(permille),
                None => return !line.starts_with("dlstatus:"),
            }
            false
        });
        finished.map_err(|stopped| match stopped {
            Stopped::Cancelled => Error::Interrupted,
            Stopped::Start(e) if e.kind() == io::ErrorKind::NotFound => {
                Error::NoApt { package: package.into() }
            }
            Stopped::Start(e) => {
                Error::Apt { package: package.into(), detail: format!("starting {program}: {e}") }
            }
        })
    }

    fn settings(&self) -> Vec<(&'static str, PathBuf)> {
        let mut settings = Vec::new();
        if self.lists != Lists::System {
            settings.push(("Dir::State", self.work.join("state")));
            settings.push(("Dir::State::lists", self.work.join("state/lists")));
            settings.push(("Dir::State::status", "/var/lib/dpkg/status".into()));
            settings.push(("Dir::Cache", self.work.join("cache")));
        }
        if self.lists == Lists::OtherSuites {
            settings.push(("Dir::Etc::sourcelist", self.work.join("sources.list")));
            settings.push(("Dir::Etc::sourceparts", self.work.join("empty")));
            settings.push(("Dir::Etc::preferences", "/dev/null".into()));
            settings.push(("Dir::Etc::preferencesparts", self.work.join("empty")));
        }
        settings
    }

    fn configuration(&self) -> PathBuf {
        self.work.join("apt.conf")
    }

    fn failure(&self, package: &str, finished: &Finished) -> Error {
        let said = &finished.stderr;
        if said.contains("No space left on device") || said.contains("Disk quota exceeded") {
            let full = io::Error::from(io::ErrorKind::StorageFull);
            return Error::cache("downloading to", &self.work)(full);
        }
        if let Some(detail) = unreachable(finished) {
            return Error::Offline { package: package.into(), detail };
        }
        if said.contains("Unable to locate package")
            || said.contains("no installation candidate")
            || said.contains("Can't find a source to download")
            || said.contains("Can't select candidate version")
        {
            return Error::NoPackage { package: package.into() };
        }
        let detail = said.lines().rfind(|line| line.starts_with("E:")).unwrap_or("no reason given");
        Error::Apt { package: package.into(), detail: detail.trim_start_matches("E: ").into() }
    }
}

fn unreachable(finished: &Finished) -> Option<String> {
    let line = finished
        .stderr
        .lines()
        .find(|line| UNREACHABLE.iter().any(|words| line.contains(words)))?;
    let at = UNREACHABLE.iter().filter_map(|words| line.find(words)).min()?;
    Some(line[at..].trim().to_string())
}

/// `dlstatus:1:45.3:Retrieving file 1 of 1` as 453.
fn status_permille(line: &str) -> Option<u16> {
    let percent: f32 = line.strip_prefix("dlstatus:")?.split(':').nth(1)?.parse().ok()?;
    // The cast saturates, and a NaN becomes 0.
    Some(((percent * 10.0) as u16).min(1000))
}

/// Whether this can be a package's name (Debian Policy, 5.6.1) with `*` and `?` in it; nothing
/// that begins like an option.
fn is_pattern(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text.len() <= 128
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.*?".contains(&b))
}

/// Whether a name fits a pattern in which `*` stands for any text and `?` for one character.
fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut at, mut next) = (0, 0);
    // Behind the last star, and up to where in the name it reaches.
    let mut star = None;
    while let Some(c) = name.get(next) {
        match pattern.get(at) {
            Some(b'*') => {
                at += 1;
                star = Some((at, next));
            }
            Some(want) if want == c || *want == b'?' => (at, next) = (at + 1, next + 1),
            _ => {
                let Some((behind, reached)) = star else { return false };
                (at, next) = (behind, reached + 1);
                star = Some((at, next));
            }
        }
    }
    pattern.get(at..).unwrap_or_default().iter().all(|c| *c == b'*')
}

/// Orders names with numbers in them by the numbers: `6.1.0-9` before `6.1.0-10`.
fn natural_order(a: &str, b: &str) -> std::cmp::Ordering {
    let chunks = |text: &str| {
        let mut chunks: Vec<(String, u64)> = vec![Default::default()];
        for c in text.chars() {
            let last = chunks.last_mut().filter(|(_, n)| *n == 0 || c.is_ascii_digit());
            match (last, c.to_digit(10)) {
                (Some((_, n)), Some(d)) => {
                    *n = n.saturating_mul(10).saturating_add(u64::from(d));
                }
                (Some((t, _)), None) => t.push(c),
                (None, _) => chunks.push((c.to_string(), 0)),
            }
        }
        chunks
    };
    chunks(a).cmp(&chunks(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

    #[test]
    fn patterns() {
        let pattern = "linux-image-6.1.0-*-cloud-amd64";
        assert!(is_pattern(pattern) && is_pattern("busybox-static"));
        for bad in ["", "-o", "a b", "a/b", "A", "a\n", "*"] {
            assert!(!is_pattern(bad), "{bad:?}");
        }
        assert!(fits(pattern, "linux-image-6.1.0-48-cloud-amd64"));
        assert!(!fits(pattern, "linux-image-6.1.0-48-cloud-amd64-dbg"));
        assert!(!fits(pattern, "linux-image-6.1.0-48-amd64"));
        assert!(fits("linux-image-6.12*-cloud-amd64", "linux-image-6.12.9+bpo-cloud-amd64"));
        assert!(fits("a*b*c", "abc") && fits("a*b*c", "a1b2c") && !fits("a*b*c", "ac"));
        let full = "linux-image-6.1.0-??-amd64";
        assert!(is_pattern(full) && fits(full, "linux-image-6.1.0-56-amd64"));
        for other in ["56-cloud-amd64", "56-rt-amd64", "5-amd64", "56-amd64-unsigned"] {
            assert!(!fits(full, &format!("linux-image-6.1.0-{other}")), "{other}");
        }
        assert!(fits("a*?c", "abbc") && fits("*a*", "xax") && !fits("a*?c", "ac"));
        assert!(fits("busybox-static", "busybox-static") && !fits("busybox", "busybox-static"));
    }

    #[test]
    fn newer_is_greater() {
        let mut names = ["k-6.1.0-9-c", "k-6.1.0-48-c", "k-6.1.0-10-c", "k-6.12.1-c", "k-6.2.0-c"];
        names.sort_by(|a, b| natural_order(a, b));
        assert_eq!(
            names,
            ["k-6.1.0-9-c", "k-6.1.0-10-c", "k-6.1.0-48-c", "k-6.2.0-c", "k-6.12.1-c"]
        );
    }

    #[test]
    fn progress_lines() {
        assert_eq!(status_permille("dlstatus:1:45.3456:Retrieving file 1 of 1"), Some(453));
        assert_eq!(status_permille("dlstatus:1:1e9:x"), Some(1000));
        assert_eq!(status_permille("Get:1 http://x"), None);
        assert_eq!(status_permille("dlstatus:"), None);
    }

    #[test]
    fn what_apt_says_is_understood() {
        let apt = Apt { work: "/tmp/x".into(), lists: Lists::System };
        let failure = |stderr: &str| {
            let status = ExitStatus::from_raw(100 << 8);
            let said = Finished { status, stdout: String::new(), stderr: stderr.into() };
            apt.failure("pkg", &said)
        };
        let offline = failure(
            "E: Failed to fetch http://m/p.deb  Temporary failure resolving 'm'\nE: Failed\n",
        );
        assert!(offline.to_string().contains("Temporary failure resolving 'm'"));
        assert!(matches!(offline, Error::Offline { .. }));
        let none = failure("E: Unable to locate package pkg\n");
        assert!(matches!(none, Error::NoPackage { .. }));
        let stale = failure("E: Failed to fetch http://m/p.deb  404  Not Found [IP: 1.2.3.4 80]\n");
        assert!(matches!(stale, Error::Apt { .. }));
        let full = failure("E: Write error - write (28: No space left on device)\n");
        assert!(matches!(full, Error::Cache { .. }));
    }
}
