//! Lines for the operator, on standard error.

use std::io::Write;

use crate::terminal;

/// The line that says why the command failed.
pub fn failure(line: &str) {
    write_line(line);
}

/// Something the operator should know, though the command goes on.
pub fn notice(line: &str) {
    write_line(line);
}

fn write_line(text: &str) {
    let mut line = String::from("sarang: ");
    // Whatever a file's name or a guest put into it, it stays a line and moves no cursor.
    line.extend(text.chars().map(|c| if c.is_control() { ' ' } else { c }));
    lines(&line);
}

/// Text of several lines, as it is.
pub fn lines(text: &str) {
    // In raw mode a line feed alone leaves the cursor where it is in the line.
    let end = if terminal::is_raw() { "\r\n" } else { "\n" };
    let mut out = String::new();
    for line in text.lines() {
        out.push_str(line);
        out.push_str(end);
    }
    // Standard error may be closed; there is nobody left to tell.
    let _ = std::io::stderr().write_all(out.as_bytes());
}

/// The operating system's word for an error, without its number.
pub fn os_reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_string(),
        None => text,
    }
}
