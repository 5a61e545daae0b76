//! How much memory a virtual machine monitor uses beyond the guest's RAM.

use serde::Serialize;
use std::fs;

/// Memory of a process and its descendants, without mappings of guest RAM, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Resident set, pages shared with other processes counted whole.
    pub rss_kib: u64,
    /// Proportional set: shared pages divided among those who share them.
    pub pss_kib: u64,
    /// Guest RAM that is resident.
    pub guest_kib: u64,
    /// Of `pss_kib`, translated code.
    pub code_kib: u64,
    /// Of `pss_kib`, what else `--code-cache` is for, by the machine's own counters: see
    /// [`kept_of_code`]. Zero if it was not asked.
    pub kept_kib: u64,
}

impl Usage {
    /// All but guest RAM, code memory and what is kept of code.
    pub fn rest_kib(&self) -> u64 {
        self.pss_kib.saturating_sub(self.code_kib).saturating_sub(self.kept_kib)
    }
}

/// What is kept of code, in KiB, by the table that `stats` prints at the monitor prompt: of the
/// first column, all vCPUs together. Each counter is rounded down, and is what is in use, not
/// what was allocated for it, so that what is left of the process's memory is not made less than
/// it is.
pub fn kept_of_code(stats: &str) -> u64 {
    const COUNTERS: [&str; 3] = ["kept of blocks", "tables of jumps", "decoded code"];
    let value = |line: &str| {
        let line = line.trim_start();
        let name = COUNTERS.iter().find(|name| line.starts_with(**name))?;
        let mut words = line.get(name.len()..)?.split_whitespace();
        let number: f64 = words.next()?.parse().ok()?;
        let bytes = match words.next()? {
            "MiB" => number * 1_048_576.0,
            "KiB" => number * 1024.0,
            _ => number,
        };
        Some(bytes as u64 >> 10)
    };
    stats.lines().filter_map(value).sum()
}

/// What a mapping is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    GuestRam,
    Code,
    Other,
}

impl Use {
    /// By a line of `/proc/PID/smaps` that begins a mapping. Guest RAM is a memfd in every
    /// contender that is measured: `guest-ram` here, `memory-backend-memfd` in QEMU. Here all
    /// anonymous memory that is shared is for code: one part is mapped twice.
    fn of(header: &str) -> Self {
        let named = |name| header.contains(name);
        if named("/memfd:guest-ram") || named("/memfd:memory-backend-memfd") {
            Self::GuestRam
        } else if named(" /dev/zero (deleted)") {
            Self::Code
        } else {
            Self::Other
        }
    }
}

/// Reads `/proc/PID/smaps` of the process and all its descendants.
pub fn usage(pid: u32) -> Usage {
    let mut total = Usage::default();
    for pid in family(pid) {
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
        let one = sum(&smaps);
        total.rss_kib += one.rss_kib;
        total.pss_kib += one.pss_kib;
        total.guest_kib += one.guest_kib;
        total.code_kib += one.code_kib;
        total.kept_kib += one.kept_kib;
    }
    total
}

fn sum(smaps: &str) -> Usage {
    let mut usage = Usage::default();
    let mut whose = Use::Other;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if !first.ends_with(':') {
            whose = Use::of(line);
            continue;
        }
        let mut kib = || words.next().and_then(|w| w.parse::<u64>().ok()).unwrap_or(0);
        match (first, whose) {
            ("Rss:", Use::GuestRam) => usage.guest_kib += kib(),
            ("Rss:", _) => usage.rss_kib += kib(),
            ("Pss:", Use::Code) => {
                let kib = kib();
                usage.code_kib += kib;
                usage.pss_kib += kib;
            }
            ("Pss:", Use::Other) => usage.pss_kib += kib(),
            _ => {}
        }
    }
    usage
}

/// A process and all that descend from it.
pub fn family(root: u32) -> Vec<u32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The command's name may hold spaces and parentheses; the last one ends it.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1));
        if let Some(parent) = parent.and_then(|p| p.parse::<u32>().ok()) {
            parents.push((pid, parent));
        }
    }
    let mut family = vec![root];
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        family.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    family
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_and_code_are_told_apart() {
        let smaps = "\
55d0-55d1 r--p 00000000 08:01 1 /usr/bin/x\nSize: 4 kB\nRss: 4 kB\nPss: 2 kB\n\
7f00-7f01 rw-s 00000000 00:01 2 /memfd:guest-ram (deleted)\nRss: 1000 kB\nPss: 1000 kB\n\
7f02-7f03 rw-p 00000000 00:00 0\nRss: 16 kB\nPss: 16 kB\n\
7f04-7f05 rw-s 00000000 00:01 3 /dev/zero (deleted)\nRss: 64 kB\nPss: 32 kB\n\
7f06-7f07 r-xs 00000000 00:01 3 /dev/zero (deleted)\nRss: 64 kB\nPss: 32 kB\n";
        let usage = Usage { rss_kib: 148, pss_kib: 82, guest_kib: 1000, code_kib: 64, kept_kib: 0 };
        assert_eq!(sum(smaps), usage);
        assert_eq!(usage.rest_kib(), 18);
        assert_eq!(Usage { kept_kib: 11, ..usage }.rest_kib(), 7);
    }

    #[test]
    fn what_is_kept_of_code_is_in_three_counters() {
        let stats = "\
                            all       vcpu 0\ncode cache\n\
  size                              96.0 MiB      96.0 MiB\n\
  code in use                       12.5 MiB      12.5 MiB\n\
  kept of blocks                    4273 KiB      4000 KiB\n\
  tables of jumps                    3000 B         2000 B\n\
run loop\n  blocks decoded                       51421        51421\n\
  decoded code                      10.5 MiB      10.5 MiB\n";
        assert_eq!(kept_of_code(stats), 4273 + 2 + 10752);
        assert_eq!(kept_of_code("sarang: no"), 0);
    }

    #[test]
    fn this_process_uses_memory() {
        assert!(usage(std::process::id()).rss_kib > 100);
    }
}
