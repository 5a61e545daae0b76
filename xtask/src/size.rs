//! Small rooms: how long files and functions may be.
//!
//! Functions are measured on rustfmt's output, where a function ends at the first line that is
//! its own indentation and a closing brace. Text inside string literals can fool this only into
//! ending early.

use crate::tree;

/// Files longer than this are listed.
const LONG_FILE: usize = 600;
/// Files longer than this are refused.
const LONGEST_FILE: usize = 1000;
/// Functions longer than this are refused.
const LONGEST_FUNCTION: usize = 100;

/// Checks all Rust files of the workspace.
pub fn check() -> Result<(), String> {
    let files = tree::rust_files()?;
    let mut faults = Vec::new();
    for file in &files {
        let text = tree::read(file)?;
        let lines = text.lines().count();
        if lines > LONGEST_FILE {
            faults.push(format!("{}: {lines} lines, at most {LONGEST_FILE}", file.display()));
        } else if lines > LONG_FILE {
            println!("size: note: {} has {lines} lines: think of splitting it", file.display());
        }
        for function in functions(&text).into_iter().filter(|f| f.lines > LONGEST_FUNCTION) {
            faults.push(format!(
                "{}:{}: fn {} has {} lines, at most {LONGEST_FUNCTION}",
                file.display(),
                function.line,
                function.name,
                function.lines
            ));
        }
    }
    tree::verdict("size", files.len(), faults)
}

#[derive(Debug, PartialEq, Eq)]
struct Function {
    name: String,
    /// Counted from 1.
    line: usize,
    lines: usize,
}

fn functions(text: &str) -> Vec<Function> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        let Some(end) = function_end(&lines, start, indent) else { continue };
        found.push(Function { name: name.to_owned(), line: start + 1, lines: end - start + 1 });
    }
    found
}

/// The name of the function whose signature begins on this line.
fn function_name(line: &str) -> Option<&str> {
    let mut words = line.trim_start();
    loop {
        let (word, rest) = words.split_once(' ')?;
        let qualifier = matches!(word, "pub" | "const" | "async" | "unsafe" | "extern")
            || word.starts_with("pub(")
            || word.starts_with('"');
        if word == "fn" {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_')?;
            return (end > 0).then(|| &rest[..end]);
        }
        if !qualifier {
            return None;
        }
        words = rest;
    }
}

/// The index of the line that closes the function, `None` for one without a body.
fn function_end(lines: &[&str], start: usize, indent: &str) -> Option<usize> {
    let open = (start..lines.len()).find(|&i| {
        let line = lines[i].trim_end();
        line.ends_with('{') || line.ends_with(';') || line.ends_with('}')
    })?;
    let line = lines[open].trim_end();
    if line.ends_with(';') {
        return None;
    }
    if line.ends_with('}') {
        return Some(open);
    }
    let close = format!("{indent}}}");
    (open + 1..lines.len()).find(|&i| lines[i].trim_end() == close)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "\
fn one() {
    if true {
    }
}

trait T {
    fn none(&self) -> u8;
    pub(crate) unsafe extern \"C\" fn two(
        a: [u8; 2],
    ) -> u8
    where
        u8: Copy,
    {
        a[0]
    }
}
fn short() {}
";

    #[test]
    fn functions_are_measured() {
        let found: Vec<_> =
            functions(SAMPLE).into_iter().map(|f| (f.name, f.line, f.lines)).collect();
        let want = [("one", 1, 4), ("two", 8, 8), ("short", 17, 1)];
        assert_eq!(found, want.map(|(name, line, lines)| (name.to_owned(), line, lines)));
    }

    #[test]
    fn words_that_are_no_functions() {
        assert_eq!(function_name("    let fn_count = 1;"), None);
        assert_eq!(function_name("// fn comment() {"), None);
        assert_eq!(function_name("type F = fn (u8);"), None);
    }
}
