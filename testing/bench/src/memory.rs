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
    }
    total
}

/// Guest RAM is a memfd in every contender that is measured: `guest-ram` here,
/// `memory-backend-memfd` in QEMU.
fn is_guest_ram(header: &str) -> bool {
    header.contains("/memfd:guest-ram") || header.contains("/memfd:memory-backend-memfd")
}

fn sum(smaps: &str) -> Usage {
    let mut usage = Usage::default();
    let mut guest = false;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if !first.ends_with(':') {
            guest = is_guest_ram(line);
            continue;
        }
        let mut kib = || words.next().and_then(|w| w.parse::<u64>().ok()).unwrap_or(0);
        match (first, guest) {
            ("Rss:", false) => usage.rss_kib += kib(),
            ("Pss:", false) => usage.pss_kib += kib(),
            ("Rss:", true) => usage.guest_kib += kib(),
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
    fn guest_ram_is_told_apart() {
        let smaps = "\
55d0-55d1 r--p 00000000 08:01 1 /usr/bin/x\nSize: 4 kB\nRss: 4 kB\nPss: 2 kB\n\
7f00-7f01 rw-s 00000000 00:01 2 /memfd:guest-ram (deleted)\nRss: 1000 kB\nPss: 1000 kB\n\
7f02-7f03 rw-p 00000000 00:00 0\nRss: 16 kB\nPss: 16 kB\n";
        assert_eq!(sum(smaps), Usage { rss_kib: 20, pss_kib: 18, guest_kib: 1000 });
    }

    #[test]
    fn this_process_uses_memory() {
        assert!(usage(std::process::id()).rss_kib > 100);
    }
}
