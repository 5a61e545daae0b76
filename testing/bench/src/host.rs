//! The machine on which a run was made.

use serde::Serialize;
use std::fs;
use std::process::Command;

/// Enough to say whether two runs are comparable.
#[derive(Debug, Serialize)]
pub struct Host {
    /// UTC.
    pub date: String,
    pub processor: String,
    pub cpus: usize,
    pub memory_mib: u64,
    pub kernel: String,
    /// Load average over a minute at the end of the run.
    pub load: String,
    /// The commit that was measured, with a mark when the tree had changes.
    pub commit: String,
}

impl Host {
    /// Asks the machine.
    pub fn here() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = info.lines().find(|l| l.starts_with(name));
            line.and_then(|l| l.split_once(':')).map(|(_, v)| v.trim().to_owned())
        };
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = memory.lines().next().and_then(|l| l.split_whitespace().nth(1));
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            date: output("date", &["-u", "+%Y-%m-%d %H:%M"]),
            processor: field("model name").unwrap_or_default(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: total.and_then(|t| t.parse::<u64>().ok()).unwrap_or(0) / 1024,
            kernel: output("uname", &["-sr"]),
            load: load.split_whitespace().next().unwrap_or_default().to_owned(),
            commit: output("git", &["describe", "--always", "--dirty", "--abbrev=12"]),
        }
    }
}

fn output(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).current_dir(crate::guest::root()).output();
    out.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
}
