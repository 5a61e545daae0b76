//! Where unsafe code lives: exactly in the modules of `xtask/unsafe-modules.txt`.
//!
//! The workspace denies `unsafe_code`; a module that needs it opens with
//! `#![expect(unsafe_code, reason = "...")]`. The table makes each new one a visible change.

use crate::tree;
use std::collections::BTreeSet;
use std::path::Path;

const TABLE: &str = "xtask/unsafe-modules.txt";

/// Checks the table against the tree.
pub fn check() -> Result<(), String> {
    let table = tree::read(Path::new(TABLE))?;
    let listed: BTreeSet<&str> =
        table.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
    let mut found = BTreeSet::new();
    let mut faults = Vec::new();
    let files = tree::rust_files()?;
    for file in files.iter().filter(|f| !f.starts_with("xtask")) {
        let name = file.display().to_string();
        match lifted(&tree::read(file)?) {
            Lifted::No => {}
            Lifted::Module => {
                found.insert(name);
            }
            Lifted::Otherwise(line) => faults
                .push(format!("{name}:{line}: write #![expect(unsafe_code, reason = \"...\")]")),
        }
    }
    faults.extend(
        found
            .iter()
            .filter(|name| !listed.contains(name.as_str()))
            .map(|name| format!("{name} has unsafe code and is not in {TABLE}")),
    );
    faults.extend(
        listed
            .iter()
            .filter(|name| !found.contains(**name))
            .map(|name| format!("{TABLE} lists {name}, which has no unsafe code")),
    );
    tree::verdict("unsafe", files.len(), faults)
}

enum Lifted {
    No,
    Module,
    /// By an attribute of another form, on this line.
    Otherwise(usize),
}

/// How a file lifts the workspace's denial of unsafe code.
fn lifted(text: &str) -> Lifted {
    let mut module = false;
    let mut code = String::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with("//") {
            continue;
        }
        if line.starts_with('#') && line.contains("allow(") && line.contains("unsafe_code") {
            return Lifted::Otherwise(index + 1);
        }
        if line.starts_with('#') && line.ends_with("expect(unsafe_code)]") {
            return Lifted::Otherwise(index + 1);
        }
        code.push_str(line);
        // An attribute that rustfmt has wrapped reads like one that it has not.
        module |= code.ends_with("[expect(unsafe_code,")
            || line.contains("[expect(unsafe_code, reason = ");
    }
    if module { Lifted::Module } else { Lifted::No }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms() {
        assert!(matches!(lifted("fn a() {}"), Lifted::No));
        let head = "//! Doc.\n#![expect(unsafe_code, reason = \"maps memory\")]\n";
        assert!(matches!(lifted(head), Lifted::Module));
        let wrapped = "#![expect(\n    unsafe_code,\n    reason = \"maps memory\"\n)]\n";
        assert!(matches!(lifted(wrapped), Lifted::Module));
        let item = "fn a() {\n    #[expect(unsafe_code, reason = \"a file descriptor\")]\n    let b = 1;\n}\n";
        assert!(matches!(lifted(item), Lifted::Module));
        assert!(matches!(lifted("#![allow(unsafe_code)]"), Lifted::Otherwise(1)));
        assert!(matches!(lifted("\n#[expect(unsafe_code)]\nfn a() {}"), Lifted::Otherwise(2)));
    }
}
