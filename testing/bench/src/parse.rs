//! What the guest prints: one line a member, and time stamps.

use crate::members;
use std::collections::BTreeMap;

/// One member's result.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Nanoseconds per operation, or per kilobyte (1000 bytes) for members that print MB/s.
    pub ns: f64,
    /// The number as printed.
    pub shown: f64,
    pub unit: &'static str,
    pub checksum: u64,
}

/// The results of one run by member, and the lines in which the guest reports failures.
pub fn samples(text: &str) -> (BTreeMap<&'static str, Sample>, Vec<String>) {
    let mut found = BTreeMap::new();
    let mut failures = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with("FAIL ") {
            failures.push(line.to_owned());
        } else if let Some((name, sample)) = sample(line) {
            found.insert(name, sample);
        }
    }
    (found, failures)
}

fn sample(line: &str) -> Option<(&'static str, Sample)> {
    let mut words = line.split_whitespace();
    let name = words.next()?;
    let name = members::all().into_iter().find(|m| *m == name)?;
    let shown: f64 = words.next()?.parse().ok()?;
    let (unit, ns) = match words.next()? {
        "ns/op" => ("ns/op", shown),
        "MB/s" => ("MB/s", 1e6 / shown),
        _ => return None,
    };
    let checksum = u64::from_str_radix(words.next()?, 16).ok()?;
    (ns.is_finite() && ns > 0.0).then_some((name, Sample { ns, shown, unit, checksum }))
}

/// The seconds since boot that follow `mark` in the guest's output.
pub fn stamp(text: &str, mark: &str) -> Option<f64> {
    let (_, rest) = text.split_once(mark)?;
    let rest = rest.trim_start().strip_prefix("boottime=")?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "GBENCH-INIT boottime=1.704\r\nclocksource tsc\r\n\
        fib               11.02 ns/op  0000000000004f47\r\n\
        bytesum           500.0 MB/s   b09f1f121e1de2f1\r\nFAIL lz status 100\r\n\
        nonsense 1 ns/op 0\r\nGBENCH-DONE boottime=1.889\r\n";

    #[test]
    fn lines() {
        let (samples, failures) = samples(OUTPUT);
        assert_eq!(failures, ["FAIL lz status 100"]);
        assert_eq!(samples.len(), 2);
        assert_eq!(samples["fib"].checksum, 0x4f47);
        assert_eq!(samples["bytesum"].ns, 2000.0);
    }

    #[test]
    fn stamps() {
        assert_eq!(stamp(OUTPUT, "GBENCH-INIT"), Some(1.704));
        assert_eq!(stamp(OUTPUT, "GBENCH-DONE"), Some(1.889));
        assert_eq!(stamp(OUTPUT, "GBENCH-NEVER"), None);
    }
}
