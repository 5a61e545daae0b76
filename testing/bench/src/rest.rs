//! What a guest costs while it does nothing, and how late its timer is.

use crate::contender::{Contender, Setup};
use crate::options::Options;
use crate::session::Session;
use std::fs;
use std::time::{Duration, Instant};

/// After the shell's prompt, before the processor time is counted.
const SETTLE: Duration = Duration::from_secs(2);
/// How long it is counted.
const WATCH: Duration = Duration::from_secs(5);
/// `/proc/PID/stat` counts in hundredths of a second (`USER_HZ`).
const TICKS: f64 = 100.0;

/// Processor time of a guest at its prompt, in percent of one processor.
pub fn idle(pid: u32) -> f64 {
    std::thread::sleep(SETTLE);
    let (start, before) = (Instant::now(), ticks(pid));
    std::thread::sleep(WATCH);
    let used = ticks(pid).saturating_sub(before) as f64 / TICKS;
    100.0 * used / start.elapsed().as_secs_f64()
}

/// User and system time of a process and what descends from it.
fn ticks(pid: u32) -> u64 {
    let family = crate::memory::family(pid);
    let stats = family.iter().map(|pid| fs::read_to_string(format!("/proc/{pid}/stat")));
    stats.filter_map(|stat| of_stat(&stat.ok()?)).sum()
}

/// The 14th and 15th field; the second is the command's name, which may hold anything.
fn of_stat(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// How much later than asked a sleeping process runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Latency {
    pub median_us: f64,
    pub p99_us: f64,
}

/// Asks one contender's guest, or the host itself.
pub fn latency(options: &Options, setup: &Setup, contender: Contender) -> Result<Latency, String> {
    let mut command = contender.command(setup, "latency")?;
    let session = Session::start(&mut command, options.timeout)?;
    let (text, _) = session.finish()?;
    parse(&text).ok_or_else(|| "no line LATENCY".to_owned())
}

fn parse(text: &str) -> Option<Latency> {
    let (_, rest) = text.split_once("LATENCY timer median ")?;
    let mut words = rest.lines().next()?.split_whitespace();
    let median: f64 = words.next()?.parse().ok()?;
    let p99: f64 = words.nth(1)?.parse().ok()?;
    Some(Latency { median_us: median / 1000.0, p99_us: p99 / 1000.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_guest() {
        let text = "x\r\nLATENCY timer median 9496 p99 142089 ns\r\nGBENCH-DONE";
        let latency = Latency { median_us: 9.496, p99_us: 142.089 };
        assert_eq!(parse(text), Some(latency));
        assert_eq!(parse("LATENCY timer median 1"), None);
    }

    #[test]
    fn fields_are_counted_from_the_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 50 6 7 8 20 0 1 0";
        assert_eq!(of_stat(stat), Some(56));
        assert_eq!(of_stat("7 (a"), None);
    }
}
