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
    /// Of `pss_kib`, translated code. What is kept of it lies on the heap: a run with a small code
    /// cache tells what is neither.
    pub code_kib: u64,
}

impl Usage {
    /// All but guest RAM and code memory.
    pub fn rest_kib(&self) -> u64 {
        self.pss_kib.saturating_sub(self.code_kib)
    }
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
        let usage = Usage { rss_kib: 148, pss_kib: 82, guest_kib: 1000, code_kib: 64 };
        assert_eq!(sum(smaps), usage);
        assert_eq!(usage.rest_kib(), 18);
    }

    #[test]
    fn this_process_uses_memory() {
        assert!(usage(std::process::id()).rss_kib > 100);
    }
}
