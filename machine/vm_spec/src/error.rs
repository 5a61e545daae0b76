//! The refusal of a description: one line that says what, why, and what to do.

/// Why a VM's description cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{option} {value}: {reason}; {advice}")]
pub struct SpecError {
    option: String,
    value: String,
    reason: String,
    advice: String,
}

impl SpecError {
    /// `option` is its name on the command line, `value` what was given.
    pub fn new(option: &str, value: &str, reason: &str, advice: &str) -> Self {
        let value = if value.is_empty() { "''" } else { value };
        Self {
            option: option.into(),
            // What an operator typed may hold anything; the report stays one line.
            value: value.chars().flat_map(printable).collect(),
            reason: reason.into(),
            advice: advice.into(),
        }
    }

    /// The option that is at fault.
    pub fn option(&self) -> &str {
        &self.option
    }

    /// The fault and the remedy, without the option and its value.
    pub fn reason(&self) -> String {
        format!("{}; {}", self.reason, self.advice)
    }
}

fn printable(c: char) -> Vec<char> {
    if c.is_control() { c.escape_default().collect() } else { vec![c] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_one_line() {
        let error = SpecError::new("--memory", "1\n2", "bad", "do better");
        assert_eq!(error.to_string(), "--memory 1\\n2: bad; do better");
        let error = SpecError::new("--memory", "", "bad", "do better");
        assert_eq!(error.to_string(), "--memory '': bad; do better");
    }
}
