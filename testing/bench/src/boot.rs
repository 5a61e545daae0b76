//! Boot time to `/init` and to a shell, memory beyond guest RAM, and a guest at rest.

use crate::contender::{Contender, Setup};
use crate::memory::{self, Usage};
use crate::options::Options;
use crate::rest;
use crate::session::Session;
use crate::stats;
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// What the default guest prints when its shell waits for input.
const PROMPT: &str = "\nsarang:";

/// A boot that takes longer hangs.
const LONGEST_BOOT: Duration = Duration::from_secs(600);

/// What `stats` at the monitor prompt of a machine on standard input and output prints.
fn counters(session: &mut Session) -> Result<String, String> {
    const MONITOR: &str = "(sarang) ";
    let from = session.text().len();
    session.send(b"\x01c")?;
    let (_, at) = session.wait_for(MONITOR, from)?;
    session.send(b"stats\r")?;
    let (_, end) = session.wait_for(MONITOR, at)?;
    Ok(session.text().get(at..end).unwrap_or_default().to_owned())
}

/// One contender's boots.
#[derive(Debug, Serialize)]
pub struct Boot {
    #[serde(skip)]
    pub contender: Contender,
    pub name: &'static str,
    /// Median wall seconds from start to the first line of `/init`.
    pub init_seconds: Option<f64>,
    /// Median wall seconds from start to the prompt of the default guest's shell.
    pub shell_seconds: Option<f64>,
    /// At the shell's prompt, else at the end of `/init`; the largest of all rounds.
    pub memory: Usage,
    /// Processor time at the shell's prompt, in percent of one processor; median.
    pub idle_percent: Option<f64>,
    /// How late a timer is, in microseconds; medians of each boot's median and 99th percentile.
    pub late_median_us: Option<f64>,
    pub late_p99_us: Option<f64>,
    pub faults: Vec<String>,
}

/// Boots interleaved, each contender once a round.
pub fn measure(options: &Options, setup: &Setup, contenders: &[Contender]) -> Vec<Boot> {
    let initrd = &setup.files.initrd;
    let mut results: Vec<(Contender, Times)> =
        contenders.iter().map(|c| (*c, Times::default())).collect();
    for round in 1..=options.rounds {
        for (contender, times) in &mut results {
            eprintln!("bench: boot {round} of {}: {}", options.rounds, contender.name());
            if contender.powers_off() {
                times.latency(options, setup, *contender);
            }
            if *contender == Contender::Native {
                continue;
            }
            times.init(options, setup, *contender);
            if let Some(initrd) = initrd {
                times.shell(options, setup, *contender, initrd);
            }
        }
    }
    if initrd.is_none() {
        eprintln!("bench: boot to the shell is left out: give one with --initrd FILE");
    }
    results.into_iter().map(|(contender, times)| times.median(contender)).collect()
}

#[derive(Debug, Default)]
struct Times {
    init: Vec<f64>,
    shell: Vec<f64>,
    memory: Usage,
    idle: Vec<f64>,
    late_median: Vec<f64>,
    late_p99: Vec<f64>,
    faults: Vec<String>,
}

impl Times {
    fn latency(&mut self, options: &Options, setup: &Setup, contender: Contender) {
        match rest::latency(options, setup, contender) {
            Ok(latency) => {
                self.late_median.push(latency.median_us);
                self.late_p99.push(latency.p99_us);
            }
            Err(why) => self.faults.push(format!("{}, latency: {why}", contender.name())),
        }
    }

    fn init(&mut self, options: &Options, setup: &Setup, contender: Contender) {
        let run = || -> Result<(f64, Usage), String> {
            let mut command = contender.command(setup, "none")?;
            let mut session = Session::start(&mut command, options.timeout.min(LONGEST_BOOT))?;
            let (time, at) = session.wait_for("GBENCH-INIT", 0)?;
            session.wait_for("GBENCH-DONE", at)?;
            let memory = memory::usage(session.pid());
            let seconds = (time - session.started()).as_secs_f64();
            if contender.powers_off() {
                session.finish()?;
            }
            Ok((seconds, memory))
        };
        match run() {
            Ok((seconds, memory)) => {
                self.init.push(seconds);
                self.keep(memory);
            }
            Err(why) => self.faults.push(format!("{}, to /init: {why}", contender.name())),
        }
    }

    fn shell(&mut self, options: &Options, setup: &Setup, contender: Contender, initrd: &Path) {
        let run = || -> Result<(f64, Usage, f64), String> {
            let mut command = contender.boot(setup, initrd, "quiet")?;
            let mut session = Session::start(&mut command, options.timeout.min(LONGEST_BOOT))?;
            let (time, _) = session.wait_for(PROMPT, 0)?;
            let (seconds, pid) = ((time - session.started()).as_secs_f64(), session.pid());
            let idle = rest::idle(pid);
            let mut memory = memory::usage(pid);
            if contender.is_ours() && setup.engine != "kvm" {
                memory.kept_kib = memory::kept_of_code(&counters(&mut session)?);
            }
            Ok((seconds, memory, idle))
        };
        match run() {
            Ok((seconds, memory, idle)) => {
                self.shell.push(seconds);
                self.idle.push(idle);
                self.keep(memory);
            }
            Err(why) => self.faults.push(format!("{}, to the shell: {why}", contender.name())),
        }
    }

    fn keep(&mut self, memory: Usage) {
        if memory.rss_kib > self.memory.rss_kib {
            self.memory = memory;
        }
    }

    fn median(self, contender: Contender) -> Boot {
        Boot {
            contender,
            name: contender.name(),
            init_seconds: stats::median(&self.init),
            shell_seconds: stats::median(&self.shell),
            memory: self.memory,
            idle_percent: stats::median(&self.idle),
            late_median_us: stats::median(&self.late_median),
            late_p99_us: stats::median(&self.late_p99),
            faults: self.faults,
        }
    }
}
