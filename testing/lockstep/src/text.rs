//! Cases as text, one a line, so that those that once differed stay in the tree.
//!
//! `MODE SEED CODE AT FLAGS [NAME=VALUE ...] [# why]`, numbers in hexadecimal without prefix;
//! registers that are absent are zero, or as FNINIT leaves them. `fpu` holds all bytes that
//! differ from that, as `offset:bytes` joined by commas.

use crate::case::{CODE_LEN, Case, Mode};
use std::fmt::Write;
use vcpu_state::FpuState;
use x86_defs::xsave;

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

const MODES: [(&str, Mode); 4] = [
    ("long", Mode::Long),
    ("compat", Mode::Compat),
    ("seg16", Mode::Seg16),
    ("seg32", Mode::Seg32),
];

/// A case with its mode and the seed of its background.
#[derive(Clone, Debug)]
pub struct Kept {
    pub mode: Mode,
    pub seed: u64,
    pub case: Case,
}

impl Kept {
    pub fn to_line(&self) -> String {
        let mode = MODES.iter().find(|(_, mode)| *mode == self.mode).map_or("", |(name, _)| name);
        let code: String = self.case.bytes().iter().map(|b| format!("{b:02x}")).collect();
        let (at, flags) = (self.case.at, self.case.rflags);
        let mut line = format!("{mode} {:x} {code} {at:x} {flags:x}", self.seed);
        let bases = [("fs", self.case.fs_base), ("gs", self.case.gs_base)];
        let gpr = NAMES.iter().copied().zip(self.case.gpr);
        for (name, value) in gpr.chain(bases).filter(|(_, value)| *value != 0) {
            // Writing to a string cannot fail.
            let _ = write!(line, " {name}={value:x}");
        }
        let fpu = runs(&self.case.fpu);
        if !fpu.is_empty() {
            let _ = write!(line, " fpu={}", fpu.join(","));
        }
        line
    }

    /// `None` for an empty line or a remark.
    pub fn parse(line: &str) -> Result<Option<Self>, String> {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(mode) = words.next() else { return Ok(None) };
        let known = MODES.iter().find(|(name, _)| *name == mode);
        let mode = known.ok_or(format!("mode {mode}"))?.1;
        let mut next = || words.next().ok_or("a case has at least five words");
        let seed = number(next()?)?;
        let code = hex(next()?)?;
        let at = number(next()?)? as u32;
        if code.len() > CODE_LEN {
            return Err("too much code".to_owned());
        }
        let mut case = Case::new(&code, at);
        case.rflags = number(next()?)?;
        for word in words {
            let (name, value) = word.split_once('=').ok_or(format!("no value: {word}"))?;
            match (name, NAMES.iter().position(|n| *n == name)) {
                (_, Some(n)) => case.gpr[n] = number(value)?,
                ("fs", _) => case.fs_base = number(value)?,
                ("gs", _) => case.gs_base = number(value)?,
                ("fpu", _) => {
                    for run in value.split(',') {
                        let (at, bytes) = run.split_once(':').ok_or("fpu without offset")?;
                        let (at, bytes) = (number(at)? as usize, hex(bytes)?);
                        let to = case.fpu.get_mut(at..at.saturating_add(bytes.len()));
                        to.ok_or("fpu outside the area")?.copy_from_slice(&bytes);
                    }
                }
                _ => return Err(format!("what is {name}?")),
            }
        }
        Ok(Some(Self { mode, seed, case }))
    }
}

/// Runs of bytes that differ from the initial state.
fn runs(fpu: &[u8; xsave::LEN]) -> Vec<String> {
    let init = FpuState::init().area;
    let mut all = Vec::new();
    let mut at = 0;
    while at < fpu.len() {
        let len = (at..fpu.len()).take_while(|&n| fpu[n] != init[n]).count();
        if len > 0 {
            let bytes: String = fpu[at..at + len].iter().map(|b| format!("{b:02x}")).collect();
            all.push(format!("{at:x}:{bytes}"));
        }
        at += len + 1;
    }
    all
}

fn number(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16).map_err(|e| format!("{text}: {e}"))
}

fn hex(text: &str) -> Result<Vec<u8>, String> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || !text.is_ascii() {
        return Err(format!("odd: {text}"));
    }
    (0..digits.len() / 2)
        .map(|n| {
            u8::from_str_radix(&text[2 * n..2 * n + 2], 16).map_err(|e| format!("{text}: {e}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Generator, Rng, generate::values};

    #[test]
    fn any_case_survives_being_written_and_read() {
        for mode in Mode::ALL {
            let mut generator = Generator::new(mode, true);
            let mut rng = Rng::new(3);
            let background = values::background(3);
            for _ in 0..500 {
                let case = generator.case(&mut rng, &background);
                let line = Kept { mode, seed: 7, case }.to_line();
                let back = Kept::parse(&line).unwrap().unwrap();
                assert_eq!((back.mode, back.seed), (mode, 7));
                assert_eq!(back.case.bytes(), case.bytes());
                assert_eq!((back.case.gpr, back.case.fpu), (case.gpr, case.fpu));
                assert_eq!(back.to_line(), line);
            }
        }
    }

    #[test]
    fn remarks_are_no_cases_and_nonsense_is_refused() {
        assert!(Kept::parse("  # why").unwrap().is_none());
        for line in
            ["long", "long 0 9 0 0", "long 0 90 0 zz", "long 0 90 0 0 fpu=400:00", "x 0 90 0 0"]
        {
            assert!(Kept::parse(line).is_err(), "{line}");
        }
    }
}
