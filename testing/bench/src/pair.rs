//! What a second vCPU gives: the work done on two vCPUs against that done on one.
//!
//! Each run of the guest measures, ten times in turn, one worker on the first processor, two
//! threads, one worker on the second, and two processes, each for a tenth of a second or more. It
//! counts the work done in that time, so that a worker that the host holds up costs what it did
//! not do and no more. A machine's cores are disturbed one by one, by what else the host does and
//! by what runs on the other thread of the core, for seconds at a time: so what two do is divided
//! by the mean of what each processor did alone just before and after, and the median of all such
//! quotients is shown, beside that of the same program on the host itself.

use crate::contender::{Contender, Setup};
use crate::options::Options;
use crate::stats;
use crate::suite::{self, Outcome};
use serde::Serialize;
use std::collections::BTreeMap;

/// The shortest time for which work is counted, in milliseconds: many times what the guest's
/// scheduler needs to find the second processor, and far less than a disturbance lasts.
const LEAST_MS: u32 = 100;
/// How often a run measures.
pub const TIMES: u32 = 10;

/// Throughput on two vCPUs relative to one; medians.
#[derive(Debug, Serialize)]
pub struct Pair {
    pub name: &'static str,
    /// Two threads of one process.
    pub threads: Option<f64>,
    /// Two processes.
    pub processes: Option<f64>,
    /// Of how many processors the two threads, and the two processes, had the time, as the guest
    /// counts it.
    pub cpus: [Option<f64>; 2],
}

/// One quotient of each kind.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Gain {
    threads: f64,
    processes: f64,
    cpus: [f64; 2],
}

/// Runs all rounds with two vCPUs. Native runs use two of the host's.
pub fn measure(
    options: &Options,
    setup: &Setup,
    contenders: &[Contender],
    faults: &mut Vec<String>,
) -> Vec<Pair> {
    let setup = setup.with_cpus(2);
    // User-Mode Linux has one processor.
    let able = || contenders.iter().copied().filter(|c| *c != Contender::Uml);
    let args = format!("-t,{},-r,{TIMES},pair", loop_ms(options));
    let mut gains = BTreeMap::<Contender, Vec<Gain>>::new();
    let mut outcome = Outcome::default();
    for round in 1..=options.rounds {
        for contender in able() {
            eprintln!("bench: two vCPUs, {round} of {}: {}", options.rounds, contender.name());
            let text = suite::output(options, &args, &setup, contender, &mut outcome);
            let found = text.map(|text| text.lines().filter_map(gain).collect::<Vec<_>>());
            match found {
                Ok(found) if found.len() == TIMES as usize => {
                    gains.entry(contender).or_default().extend(found);
                }
                Ok(found) => outcome.faults.push(format!(
                    "{}, round {round}: {} results instead of {TIMES}",
                    contender.name(),
                    found.len()
                )),
                Err(why) => {
                    outcome.faults.push(format!("{}, round {round}: {why}", contender.name()));
                }
            }
        }
    }
    faults.extend(outcome.faults.iter().map(|fault| format!("two vCPUs: {fault}")));
    let pair =
        |contender: Contender| median(contender, gains.get(&contender).map_or(&[], Vec::as_slice));
    able().map(pair).collect()
}

/// For how long work is counted, of all contenders alike.
pub fn loop_ms(options: &Options) -> u32 {
    options.ms.max(LEAST_MS)
}

/// From a line of the guest; see `guest/s_pair.c`.
fn gain(line: &str) -> Option<Gain> {
    let mut words = line.trim().strip_prefix("PAIR ")?.split_whitespace();
    let mut next = |name: Option<&str>| {
        let named = name.is_none_or(|name| words.next() == Some(name));
        words.next().filter(|_| named)?.parse::<f64>().ok()
    };
    let alone = next(Some("alone"))? + next(None)?;
    let (threads, processes) = (next(Some("threads"))?, next(Some("processes"))?);
    let cpus = [next(Some("cpus"))?, next(None)?];
    let of = |both: f64| 2.0 * both / alone;
    (alone > 0.0).then(|| Gain { threads: of(threads), processes: of(processes), cpus })
}

fn median(contender: Contender, gains: &[Gain]) -> Pair {
    let of = |f: fn(&Gain) -> f64| stats::median(&gains.iter().map(f).collect::<Vec<_>>());
    Pair {
        name: contender.name(),
        threads: of(|g| g.threads),
        processes: of(|g| g.processes),
        cpus: [of(|g| g.cpus[0]), of(|g| g.cpus[1])],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "PAIR alone 3.00 5.00 threads 6.00 processes 8.00 cpus 2.00 1.50\r";

    #[test]
    fn loops_are_long_whatever_the_others_are() {
        let parse = |line: &str| {
            Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        };
        assert_eq!(loop_ms(&parse("--ms 10").unwrap()), LEAST_MS);
        assert_eq!(loop_ms(&parse("--ms 900").unwrap()), 900);
    }

    #[test]
    fn both_processors_count_alone() {
        let found = gain(LINE).unwrap();
        assert_eq!(found, Gain { threads: 1.5, processes: 2.0, cpus: [2.0, 1.5] });
        for bad in ["", "PAIR", "PAIR alone 3.00", &LINE.replace("threads", "thread")] {
            assert_eq!(gain(bad), None, "{bad}");
        }
        assert_eq!(gain(&LINE.replace("3.00 5.00", "0.00 0.00")), None);
    }

    #[test]
    fn medians_of_all_rounds() {
        let gains =
            [1.0, 9.0, 2.0].map(|n| Gain { threads: n, processes: 2.0 * n, cpus: [n, 2.0] });
        let pair = median(Contender::Native, &gains);
        assert_eq!((pair.threads, pair.processes), (Some(2.0), Some(4.0)));
        assert_eq!(pair.cpus, [Some(2.0), Some(2.0)]);
        assert_eq!(median(Contender::Sarang, &[]).threads, None);
    }
}
