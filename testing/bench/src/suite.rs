//! The benchmark itself: rounds, checks, ratios.

use crate::contender::{Contender, Setup};
use crate::options::Options;
use crate::parse::{self, Sample};
use crate::session::Session;
use crate::stats;
use std::collections::BTreeMap;

/// The guest's clock may differ from the host's by this share of the run ...
const CLOCK_SHARE: f64 = 0.01;
/// ... or by this many seconds, which is what the two stamps and their way cost.
const CLOCK_SLACK: f64 = 0.02;

type Samples = BTreeMap<&'static str, Sample>;

/// What came out of all rounds.
#[derive(Debug, Default)]
pub struct Outcome {
    /// By contender, one entry a round.
    pub rounds: BTreeMap<Contender, Vec<Samples>>,
    pub faults: Vec<String>,
    /// Largest share by which a guest's clock was off, by contender.
    pub clock_error: BTreeMap<Contender, f64>,
}

/// Runs all rounds, interleaved, with loops of at least `ms` milliseconds.
pub fn measure(
    options: &Options,
    members: &[&'static str],
    ms: u32,
    setup: &Setup,
    contenders: &[Contender],
) -> Outcome {
    let mut outcome = Outcome::default();
    for round in 1..=options.rounds {
        for &contender in contenders {
            eprintln!("bench: round {round} of {}: {}", options.rounds, contender.name());
            let samples = match once(options, members, ms, setup, contender, &mut outcome) {
                Ok(samples) => samples,
                Err(why) => {
                    outcome.faults.push(format!("{}, round {round}: {why}", contender.name()));
                    Samples::new()
                }
            };
            outcome.rounds.entry(contender).or_default().push(samples);
        }
    }
    check_sums(members, &mut outcome);
    outcome
}

fn once(
    options: &Options,
    members: &[&'static str],
    ms: u32,
    setup: &Setup,
    contender: Contender,
    outcome: &mut Outcome,
) -> Result<Samples, String> {
    let args = format!("-t,{ms},-r,1,{}", members.join(","));
    let text = output(options, &args, setup, contender, outcome)?;
    let (samples, failures) = parse::samples(&text);
    outcome.faults.extend(failures.into_iter().map(|f| format!("{}: {f}", contender.name())));
    let missing: Vec<&str> = members.iter().copied().filter(|m| !samples.contains_key(m)).collect();
    if !missing.is_empty() {
        outcome.faults.push(format!("{}: no result of {}", contender.name(), missing.join(", ")));
    }
    Ok(samples)
}

/// What the guest's program prints with these arguments. Its clock is held against the host's.
pub fn output(
    options: &Options,
    args: &str,
    setup: &Setup,
    contender: Contender,
    outcome: &mut Outcome,
) -> Result<String, String> {
    let mut command = contender.command(setup, args)?;
    let mut session = Session::start(&mut command, options.timeout)?;
    if contender == Contender::Native {
        return Ok(session.finish()?.0);
    }
    let (init, at) = session.wait_for("GBENCH-INIT boottime=", 0)?;
    let (done, at) = session.wait_for("GBENCH-DONE boottime=", at)?;
    session.wait_for("\n", at)?;
    let text = session.text().to_owned();
    session.finish()?;
    let error = clock_error(&text, (done - init).as_secs_f64())?;
    let worst = outcome.clock_error.entry(contender).or_default();
    *worst = worst.max(error);
    Ok(text)
}

/// By which share the guest's clock is off; an error when it is more than allowed.
fn clock_error(text: &str, wall: f64) -> Result<f64, String> {
    let stamp = |mark| parse::stamp(text, mark).ok_or_else(|| format!("no time after {mark}"));
    let guest = stamp("GBENCH-DONE")? - stamp("GBENCH-INIT")?;
    let off = (guest - wall).abs();
    if off > CLOCK_SHARE * wall && off > CLOCK_SLACK {
        return Err(format!("the guest counted {guest:.3} s, the host {wall:.3} s"));
    }
    Ok(off / wall.max(f64::MIN_POSITIVE))
}

/// Every checksum equals the native one of the first round.
fn check_sums(members: &[&'static str], outcome: &mut Outcome) {
    let native = outcome.rounds.get(&Contender::Native).and_then(|rounds| rounds.first());
    let Some(native) = native.cloned() else {
        outcome.faults.push("checksums are not checked: native did not run".to_owned());
        return;
    };
    let mut faults = Vec::new();
    for (contender, rounds) in &outcome.rounds {
        for member in members {
            let Some(want) = native.get(member) else { continue };
            let wrong =
                rounds.iter().filter_map(|r| r.get(member)).find(|s| s.checksum != want.checksum);
            if let Some(wrong) = wrong {
                faults.push(format!(
                    "{}: {member} gives {:016x}, native {:016x}",
                    contender.name(),
                    wrong.checksum,
                    want.checksum
                ));
            }
        }
    }
    outcome.faults.extend(faults);
}

impl Outcome {
    /// The median over the rounds of this contender's time relative to native.
    pub fn ratio(&self, contender: Contender, member: &str) -> Option<f64> {
        let ours = self.rounds.get(&contender)?.iter();
        let native = self.rounds.get(&Contender::Native)?.iter();
        let ratios: Vec<f64> = ours
            .zip(native)
            .filter_map(|(ours, native)| Some(ours.get(member)?.ns / native.get(member)?.ns))
            .collect();
        stats::median(&ratios)
    }

    /// The median over the rounds of what a contender printed, with its unit.
    pub fn shown(&self, contender: Contender, member: &str) -> Option<(f64, &'static str)> {
        let samples: Vec<Sample> =
            self.rounds.get(&contender)?.iter().filter_map(|r| r.get(member).copied()).collect();
        let values: Vec<f64> = samples.iter().map(|s| s.shown).collect();
        Some((stats::median(&values)?, samples.first()?.unit))
    }

    /// The checksum that a contender gave first.
    pub fn checksum(&self, contender: Contender, member: &str) -> Option<u64> {
        let rounds = self.rounds.get(&contender)?;
        rounds.iter().find_map(|r| r.get(member)).map(|s| s.checksum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(ns: f64, checksum: u64) -> Samples {
        Samples::from([("fib", Sample { ns, shown: ns, unit: "ns/op", checksum })])
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let mut outcome = Outcome::default();
        outcome
            .rounds
            .insert(Contender::Native, vec![round(1.0, 7), round(10.0, 7), round(1.0, 7)]);
        outcome.rounds.insert(Contender::Qemu, vec![round(5.0, 7), round(50.0, 7), round(9.0, 7)]);
        assert_eq!(outcome.ratio(Contender::Qemu, "fib"), Some(5.0));
        check_sums(&["fib"], &mut outcome);
        assert!(outcome.faults.is_empty());
    }

    #[test]
    fn a_wrong_checksum_is_a_fault() {
        let mut outcome = Outcome::default();
        outcome.rounds.insert(Contender::Native, vec![round(1.0, 7), round(1.0, 7)]);
        outcome.rounds.insert(Contender::Sarang, vec![round(1.0, 7), round(0.1, 8)]);
        check_sums(&["fib"], &mut outcome);
        assert_eq!(outcome.faults.len(), 1, "{:?}", outcome.faults);
    }

    #[test]
    fn a_lying_clock_is_a_fault() {
        let text = "GBENCH-INIT boottime=1.000\nGBENCH-DONE boottime=3.000\n";
        assert!(clock_error(text, 2.015).is_ok());
        assert!(clock_error(text, 2.5).is_err());
        assert!(clock_error(text, 1.0).is_err());
    }
}
