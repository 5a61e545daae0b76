//! What a second vCPU gives: twice the work on two vCPUs against once the work on one.

use crate::contender::{Contender, Setup};
use crate::options::Options;
use crate::stats;
use crate::suite::Outcome;
use serde::Serialize;

/// The member that does the work once, on one vCPU.
const ONCE: &str = "par1";
/// Those that do it twice: two threads, two processes.
const TWICE: [&str; 2] = ["par2", "proc2"];

/// The shortest loop, in milliseconds. A guest's scheduler moves one of two busy processes to the
/// other processor only after a while, which shorter loops would measure instead.
pub const LOOP_MS: u32 = 400;

/// Throughput on two vCPUs relative to one.
#[derive(Debug, Serialize)]
pub struct Pair {
    pub name: &'static str,
    /// Two threads of one process; medians over the rounds.
    pub threads: Option<f64>,
    /// Two processes.
    pub processes: Option<f64>,
}

/// Runs all rounds with two vCPUs. Native runs use two of the host's.
pub fn measure(
    options: &Options,
    setup: &Setup,
    contenders: &[Contender],
    faults: &mut Vec<String>,
) -> Vec<Pair> {
    let setup = setup.with_cpus(2);
    let mut members = vec![ONCE];
    members.extend(TWICE);
    // User-Mode Linux has one processor.
    let able: Vec<Contender> =
        contenders.iter().copied().filter(|c| *c != Contender::Uml).collect();
    let outcome = crate::suite::measure(options, &members, loop_ms(options), &setup, &able);
    faults.extend(outcome.faults.iter().map(|fault| format!("two vCPUs: {fault}")));
    let pair = |contender: Contender| {
        let [threads, processes] = TWICE.map(|member| gain(&outcome, contender, member));
        Pair { name: contender.name(), threads, processes }
    };
    able.into_iter().map(pair).collect()
}

/// How long the loops are, of all contenders alike.
pub fn loop_ms(options: &Options) -> u32 {
    options.ms.max(LOOP_MS)
}

/// Median over the rounds of the throughput's ratio.
fn gain(outcome: &Outcome, contender: Contender, member: &str) -> Option<f64> {
    let rounds = outcome.rounds.get(&contender)?.iter();
    let gains: Vec<f64> =
        rounds.filter_map(|r| Some(2.0 * r.get(ONCE)?.ns / r.get(member)?.ns)).collect();
    stats::median(&gains)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::Sample;
    use std::collections::BTreeMap;

    #[test]
    fn loops_are_long_whatever_the_others_are() {
        let parse = |line: &str| {
            Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        };
        assert_eq!(loop_ms(&parse("--ms 10").unwrap()), LOOP_MS);
        assert_eq!(loop_ms(&parse("--ms 900").unwrap()), 900);
    }

    #[test]
    fn twice_the_work_in_the_same_time_is_a_gain_of_two() {
        let sample = |ns| Sample { ns, shown: ns, unit: "ns/op", checksum: 0 };
        let round = BTreeMap::from([("par1", sample(10.0)), ("par2", sample(12.5))]);
        let mut outcome = Outcome::default();
        outcome.rounds.insert(Contender::Native, vec![round]);
        assert_eq!(gain(&outcome, Contender::Native, "par2"), Some(1.6));
        assert_eq!(gain(&outcome, Contender::Native, "proc2"), None);
        assert_eq!(gain(&outcome, Contender::Sarang, "par2"), None);
    }
}
