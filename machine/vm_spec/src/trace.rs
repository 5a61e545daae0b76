//! What is written down of a run while it goes on.

use std::{path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::SpecError;

const OPTION: &str = "--trace";
const ADVICE: &str = "give exits, interrupts and exceptions, with commas, and :FILE if wanted";

/// One kind of event that can be traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TraceKind {
    /// Calls from a vCPU to its host: ports, MMIO, MSRs, halts.
    Exits,
    /// Interrupts that a vCPU accepts.
    Interrupts,
    /// Exceptions that a vCPU raises.
    Exceptions,
}

/// Which events are traced, and to where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trace {
    pub exits: bool,
    pub interrupts: bool,
    pub exceptions: bool,
    /// `None` is standard error.
    pub file: Option<PathBuf>,
}

impl Trace {
    /// Whether anything is traced at all.
    pub fn any(&self) -> bool {
        self.exits || self.interrupts || self.exceptions
    }

    /// Whether events of this kind are traced.
    pub fn wants(&self, kind: TraceKind) -> bool {
        match kind {
            TraceKind::Exits => self.exits,
            TraceKind::Interrupts => self.interrupts,
            TraceKind::Exceptions => self.exceptions,
        }
    }

    pub(crate) fn validate(&self) -> Result<(), SpecError> {
        match &self.file {
            Some(path) if path.as_os_str().is_empty() => {
                Err(SpecError::new(OPTION, ":", "the file's name is missing", ADVICE))
            }
            Some(_) if !self.any() => {
                Err(SpecError::new(OPTION, "", "nothing to trace is named", ADVICE))
            }
            _ => Ok(()),
        }
    }
}

impl FromStr for Trace {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (kinds, file) = match text.split_once(':') {
            Some((_, "")) => {
                return Err(SpecError::new(OPTION, text, "the file's name is missing", ADVICE));
            }
            Some((kinds, file)) => (kinds, Some(file.into())),
            None => (text, None),
        };
        let mut trace = Self { file, ..Self::default() };
        for kind in kinds.split(',') {
            match kind {
                "exits" => trace.exits = true,
                "interrupts" => trace.interrupts = true,
                "exceptions" => trace.exceptions = true,
                _ => return Err(SpecError::new(OPTION, text, "no such event to trace", ADVICE)),
            }
        }
        Ok(trace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_file() {
        let trace: Trace = "exits,exceptions:/tmp/a:b".parse().unwrap();
        assert!(trace.any() && trace.wants(TraceKind::Exits) && trace.wants(TraceKind::Exceptions));
        assert!(!trace.wants(TraceKind::Interrupts));
        assert_eq!(trace.file, Some("/tmp/a:b".into()));
        assert_eq!("interrupts".parse::<Trace>().unwrap().file, None);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", ",", "exits,", "all", "exits:", ":file"] {
            assert_eq!(text.parse::<Trace>().expect_err(text).option(), "--trace");
        }
        let nothing = Trace { file: Some("x".into()), ..Trace::default() };
        assert!(nothing.validate().is_err());
    }
}
