//! The members of the guest's benchmark and the groups that are averaged.

/// A group, and its members in the order of the table.
pub const GROUPS: &[(&str, &[&str])] = &[
    (
        "integer",
        &[
            "interp", "chase-l1", "chase-l2", "coremix", "lz", "sha256", "fib", "virtual",
            "sortcb", "tree", "hash", "bytesum",
        ],
    ),
    ("SIMD/FP", &["aesni", "nbody", "matmul"]),
    ("memory", &["memcpy", "memset", "repmovs"]),
    ("libraries", &["deflate", "inflate", "sqlite"]),
    (
        "system",
        &[
            "getppid",
            "stat",
            "read1",
            "write4k",
            "pagefault",
            "mmap1",
            "mprotect",
            "fork",
            "forkexec",
            "pipe",
            "signal",
            "segv",
        ],
    ),
    // Shown one by one: their mean would say nothing.
    (
        "other",
        &[
            "chase-ram",
            "clock",
            "futex",
            "smc",
            "jit",
            "atomic1",
            "atomic2",
            "par1",
            "par2",
            "proc2",
        ],
    ),
];

/// Whether the members of a group have a common mean.
pub fn has_mean(group: &str) -> bool {
    group != "other"
}

/// All members.
pub fn all() -> Vec<&'static str> {
    GROUPS.iter().flat_map(|(_, members)| members.iter().copied()).collect()
}

/// Members by name or by group; an error names the first unknown word.
pub fn select(words: &str) -> Result<Vec<&'static str>, String> {
    let mut chosen = Vec::new();
    for word in words.split(',').filter(|w| !w.is_empty()) {
        if word == "none" {
            continue;
        }
        if let Some((_, members)) = GROUPS.iter().find(|(group, _)| *group == word) {
            chosen.extend(members.iter().copied());
        } else if let Some(member) = all().into_iter().find(|m| *m == word) {
            chosen.push(member);
        } else {
            return Err(format!("no member or group `{word}`"));
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_each_member_of_the_guest_once() {
        let table = include_str!("../guest/table.h");
        let mut guest: Vec<&str> = table
            .lines()
            .filter_map(|l| l.trim().strip_prefix("X("))
            .filter_map(|l| l.split(',').next())
            .collect();
        let mut ours = all();
        guest.sort_unstable();
        ours.sort_unstable();
        assert_eq!(guest, ours);
    }

    #[test]
    fn selection() {
        assert_eq!(select("fib,memory").unwrap(), ["fib", "memcpy", "memset", "repmovs"]);
        assert!(select("none").unwrap().is_empty());
        assert!(select("fibb").is_err());
    }
}
