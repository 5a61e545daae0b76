//! Why a guest did not do what its test expects.

use std::fmt;

/// A failed expectation, with what the guest and the monitor said last.
#[derive(thiserror::Error)]
#[error("{what}\n--- the end of the console:\n{console}\n--- standard error:\n{stderr}\n---")]
pub struct Error {
    pub what: String,
    pub console: String,
    pub stderr: String,
}

impl fmt::Debug for Error {
    // A test that returns an error prints it in this form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Error {
    pub(crate) fn new(what: impl Into<String>, console: &str, stderr: &str) -> Self {
        Self { what: what.into(), console: tail(console), stderr: tail(stderr) }
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
