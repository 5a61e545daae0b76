//! The tables: Markdown for people, JSON for programs.

use crate::boot::Boot;
use crate::contender::{Contender, Setup};
use crate::debian::Login;
use crate::host::Host;
use crate::io::Io;
use crate::members;
use crate::options::Options;
use crate::pair::Pair;
use crate::stats;
use crate::suite::Outcome;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

/// A column that compares two contenders' times.
struct Quotient {
    head: &'static str,
    above: &'static str,
    below: &'static str,
}

/// How much faster than the peer that this is measured against; and what it costs a guest to be a
/// Xen PV domain.
const QUOTIENTS: [Quotient; 2] = [
    Quotient { head: "faster than qemu", above: "qemu", below: "sarang" },
    Quotient { head: "xen-pv to sarang", above: "xen-pv", below: "sarang" },
];

impl Quotient {
    fn is_of(&self, peers: &[&str]) -> bool {
        [self.above, self.below].iter().all(|name| peers.contains(name))
    }

    fn value(&self, ratios: &BTreeMap<&'static str, f64>) -> Option<f64> {
        Some(ratios.get(self.above)? / ratios.get(self.below)?)
    }
}

/// One member of the benchmark under all contenders.
#[derive(Debug, Serialize)]
struct Row {
    group: &'static str,
    member: &'static str,
    unit: &'static str,
    /// The median of the native runs, in `unit`.
    native: Option<f64>,
    checksum: Option<String>,
    /// Time relative to native by contender.
    ratios: BTreeMap<&'static str, f64>,
}

/// What was measured of whole guests.
#[derive(Debug, Serialize)]
pub struct Guests {
    pub boots: Vec<Boot>,
    pub logins: Vec<Login>,
    pub devices: Io,
    pub pairs: Vec<Pair>,
}

/// Everything that one invocation found.
#[derive(Debug, Serialize)]
pub struct Report {
    command: String,
    host: Host,
    guest_kernel: String,
    guest_memory_mib: u32,
    rounds: usize,
    loop_ms: u32,
    /// Of `pairs`.
    pair_loop_ms: u32,
    /// Contenders that ran, with their versions.
    versions: BTreeMap<&'static str, String>,
    absent: BTreeMap<&'static str, String>,
    rows: Vec<Row>,
    /// Geometric means of the ratios by group and contender.
    means: BTreeMap<&'static str, BTreeMap<&'static str, f64>>,
    clock_error: BTreeMap<&'static str, f64>,
    #[serde(flatten)]
    guests: Guests,
    /// Wrong checksums, failed runs, clocks that disagree.
    pub faults: Vec<String>,
    #[serde(skip)]
    order: Vec<Contender>,
}

impl Report {
    /// Puts the results together.
    pub fn new(
        options: &Options,
        setup: &Setup,
        contenders: Vec<(Contender, String)>,
        absent: Vec<(&'static str, String)>,
        suite: Outcome,
        guests: Guests,
    ) -> Self {
        let order: Vec<Contender> = contenders.iter().map(|(c, _)| *c).collect();
        let rows = rows(options, &suite, &order);
        let mut faults = suite.faults;
        faults.extend(guests.boots.iter().flat_map(|b| b.faults.iter().cloned()));
        faults.extend(guests.logins.iter().flat_map(|login| login.faults.iter().cloned()));
        faults.extend(guests.devices.faults.iter().cloned());
        Self {
            command: format!("cargo xtask bench {}", options.given).trim_end().to_owned(),
            host: Host::here(),
            guest_kernel: setup.files.label.clone(),
            guest_memory_mib: setup.memory_mib,
            rounds: options.rounds,
            loop_ms: options.ms,
            pair_loop_ms: crate::pair::loop_ms(options),
            versions: contenders.into_iter().map(|(c, v)| (c.name(), v)).collect(),
            absent: absent.into_iter().collect(),
            means: means(&rows, &order),
            rows,
            clock_error: suite.clock_error.into_iter().map(|(c, e)| (c.name(), e)).collect(),
            guests,
            faults,
            order,
        }
    }

    /// The report for people.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        let host = &self.host;
        let _ = writeln!(out, "`{}`, {} UTC, commit {}  ", self.command, host.date, host.commit);
        let _ = writeln!(
            out,
            "{}, {} CPUs, {} MiB, {}, load {}; guest: one vCPU, {} MiB, {}; {} rounds, loops of {} ms  ",
            host.processor,
            host.cpus,
            host.memory_mib,
            host.kernel,
            host.load,
            self.guest_memory_mib,
            self.guest_kernel,
            self.rounds,
            self.loop_ms
        );
        let versions: Vec<String> =
            self.versions.iter().map(|(name, version)| format!("{name}: {version}")).collect();
        let _ = writeln!(out, "{}\n", versions.join("; "));
        self.suite_table(&mut out);
        self.boot_table(&mut out);
        self.login_table(&mut out);
        self.guests.devices.markdown(&mut out);
        self.pair_table(&mut out);
        for (name, why) in &self.absent {
            let _ = writeln!(out, "{name} is left out: {why}\n");
        }
        if self.faults.is_empty() {
            let _ = writeln!(out, "No faults: checksums equal the native ones, clocks agree.");
        } else {
            let _ = writeln!(out, "FAULTS\n\n- {}", self.faults.join("\n- "));
        }
        out
    }

    fn suite_table(&self, out: &mut String) {
        if self.rows.is_empty() {
            return;
        }
        let peers: Vec<&str> =
            self.order.iter().filter(|c| **c != Contender::Native).map(|c| c.name()).collect();
        let columns: Vec<&Quotient> = QUOTIENTS.iter().filter(|q| q.is_of(&peers)).collect();
        let heads: Vec<&str> =
            peers.iter().copied().chain(columns.iter().map(|q| q.head)).collect();
        let cells = |ratios: Option<&BTreeMap<&'static str, f64>>, bold| {
            let of = |name: &str| ratios.and_then(|r| r.get(name)).copied();
            let mut cells: Vec<String> =
                peers.iter().map(|p| number(of(p).as_ref(), bold)).collect();
            cells.extend(
                columns
                    .iter()
                    .map(|q| number(ratios.and_then(|ratios| q.value(ratios)).as_ref(), bold)),
            );
            cells.join(" | ")
        };
        let _ = writeln!(out, "Time relative to native (smaller is better), medians:\n");
        let _ = writeln!(out, "| member | native | {} |", heads.join(" | "));
        let _ = writeln!(out, "|---|---:|{}", "---:|".repeat(heads.len()));
        for (group, _) in members::GROUPS {
            let rows: Vec<&Row> = self.rows.iter().filter(|r| r.group == *group).collect();
            if rows.is_empty() {
                continue;
            }
            let _ = writeln!(out, "| **{group}** | | {} |", cells(self.means.get(group), true));
            for row in rows {
                let native = row.native.map_or("-".to_owned(), |v| format!("{v:.2} {}", row.unit));
                let cells = cells(Some(&row.ratios), false);
                let _ = writeln!(out, "| {} | {native} | {cells} |", row.member);
            }
        }
        let _ = writeln!(out);
    }

    fn pair_table(&self, out: &mut String) {
        if self.guests.pairs.is_empty() {
            return;
        }
        let _ = writeln!(
            out,
            "Throughput of two vCPUs relative to one (of two CPUs, natively), medians of {} \
             measurements of {} ms; how much of native's gain that is; CPU time that the guest \
             gave the two:\n",
            self.rounds * crate::pair::TIMES as usize,
            self.pair_loop_ms
        );
        let _ = writeln!(out, "| | two threads | of native | two processes | of native | CPUs |");
        let _ = writeln!(out, "|---|---:|---:|---:|---:|---:|");
        let native = self.guests.pairs.iter().find(|p| p.name == Contender::Native.name());
        for pair in &self.guests.pairs {
            let number =
                |n: Option<f64>, unit| n.map_or("-".to_owned(), |n| format!("{n:.2}{unit}"));
            let cells = |of: fn(&Pair) -> Option<f64>| {
                let part = of(pair).zip(native.and_then(of)).map(|(ours, native)| ours / native);
                format!("{} | {}", number(of(pair), "x"), number(part, ""))
            };
            let cpus = pair.cpus.map(|n| number(n, "")).join(", ");
            let (threads, processes) = (cells(|p| p.threads), cells(|p| p.processes));
            let _ = writeln!(out, "| {} | {threads} | {processes} | {cpus} |", pair.name);
        }
        let _ = writeln!(out);
    }

    fn boot_table(&self, out: &mut String) {
        if self.guests.boots.is_empty() {
            return;
        }
        let _ = writeln!(
            out,
            "Boot (wall time, medians), memory beyond guest RAM (the largest), a guest at its \
             prompt (percent of one CPU), how late timers are:\n"
        );
        let _ = writeln!(
            out,
            "| | to /init | to the shell | PSS | of it not for code | RSS | at rest | timer, median | p99 |"
        );
        let _ = writeln!(out, "|---|---:|---:|---:|---:|---:|---:|---:|---:|");
        for boot in &self.guests.boots {
            let seconds = |s: Option<f64>| s.map_or("-".to_owned(), |s| format!("{s:.2} s"));
            let micros = |us: Option<f64>| us.map_or("-".to_owned(), |us| format!("{us:.0} us"));
            let mib = |kib: u64| format!("{:.1} MiB", kib as f64 / 1024.0);
            // Its RAM is a deleted file, not a memfd, and is mapped by each of its processes.
            let (pss, rss) = if matches!(boot.contender, Contender::Uml | Contender::Native) {
                ("-".to_owned(), "-".to_owned())
            } else {
                (mib(boot.memory.pss_kib), mib(boot.memory.rss_kib))
            };
            // Others keep code in memory that cannot be told from the rest. What is kept of code
            // is known of boots to the shell.
            let other = match boot.contender {
                ours if ours.is_ours() => mib(boot.memory.rest_kib()),
                _ => "-".to_owned(),
            };
            let rest = boot.idle_percent.map_or("-".to_owned(), |p| format!("{p:.1} %"));
            let _ = writeln!(
                out,
                "| {} | {} | {} | {pss} | {other} | {rss} | {rest} | {} | {} |",
                boot.name,
                seconds(boot.init_seconds),
                seconds(boot.shell_seconds),
                micros(boot.late_median_us),
                micros(boot.late_p99_us)
            );
        }
        let _ = writeln!(out);
    }

    fn login_table(&self, out: &mut String) {
        if self.guests.logins.is_empty() {
            return;
        }
        let _ = writeln!(
            out,
            "Debian 12 with systemd from a qcow2 disk to its login prompt (wall time, medians; \
             relative to QEMU's of the same round):\n"
        );
        let _ = writeln!(out, "| | to the login prompt | of qemu |\n|---|---:|---:|");
        for login in &self.guests.logins {
            let cell = |n: Option<f64>, unit| n.map_or("-".to_owned(), |n| format!("{n:.2}{unit}"));
            let (time, part) = (cell(login.median, " s"), cell(login.of_qemu, ""));
            let _ = writeln!(out, "| {} | {time} | {part} |", login.name);
        }
        let _ = writeln!(out);
    }

    /// Writes `bench.md` and `bench.json`.
    pub fn write(&self, options: &Options, markdown: &str) -> Result<(), String> {
        let folder = options.out.clone().unwrap_or_else(crate::guest::out_dir);
        let fail = |e: &dyn std::fmt::Display| format!("{}: {e}", folder.display());
        fs::create_dir_all(&folder).map_err(|e| fail(&e))?;
        let json = serde_json::to_string_pretty(self).map_err(|e| fail(&e))?;
        fs::write(folder.join("bench.md"), markdown).map_err(|e| fail(&e))?;
        fs::write(folder.join("bench.json"), json + "\n").map_err(|e| fail(&e))?;
        eprintln!("bench: written to {}/bench.md and bench.json", folder.display());
        Ok(())
    }
}

fn rows(options: &Options, suite: &Outcome, order: &[Contender]) -> Vec<Row> {
    let mut rows = Vec::new();
    if suite.rounds.is_empty() {
        return rows;
    }
    for (group, names) in members::GROUPS {
        for member in names.iter().filter(|m| options.members.contains(m)) {
            let native = suite.shown(Contender::Native, member);
            let ratios = order
                .iter()
                .filter(|c| **c != Contender::Native)
                .filter_map(|c| Some((c.name(), suite.ratio(*c, member)?)))
                .collect();
            let checksum = suite.checksum(Contender::Native, member);
            rows.push(Row {
                group,
                member,
                unit: native.map_or("", |(_, unit)| unit),
                native: native.map(|(value, _)| value),
                checksum: checksum.map(|c| format!("{c:016x}")),
                ratios,
            });
        }
    }
    rows
}

fn means(rows: &[Row], order: &[Contender]) -> BTreeMap<&'static str, BTreeMap<&'static str, f64>> {
    let mut means = BTreeMap::new();
    for (group, _) in members::GROUPS.iter().filter(|(group, _)| members::has_mean(group)) {
        let of_group = || rows.iter().filter(|r| r.group == *group);
        let mean = |name: &'static str| {
            let ratios: Vec<f64> = of_group().filter_map(|r| r.ratios.get(name).copied()).collect();
            // A mean that leaves members out would flatter.
            (ratios.len() == of_group().count()).then(|| stats::geometric_mean(&ratios)).flatten()
        };
        let by_contender: BTreeMap<_, _> =
            order.iter().filter_map(|c| Some((c.name(), mean(c.name())?))).collect();
        means.insert(*group, by_contender);
    }
    means
}

fn number(ratio: Option<&f64>, bold: bool) -> String {
    let Some(ratio) = ratio else { return if bold { String::new() } else { "-".to_owned() } };
    let text = if *ratio < 10.0 { format!("{ratio:.2}x") } else { format!("{ratio:.1}x") };
    if bold { format!("**{text}**") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(member: &'static str, ratio: Option<f64>) -> Row {
        let ratios = ratio.into_iter().map(|r| ("qemu", r)).collect();
        Row { group: "memory", member, unit: "MB/s", native: Some(1.0), checksum: None, ratios }
    }

    #[test]
    fn means_leave_nobody_out() {
        let order = [Contender::Qemu];
        let full = means(&[row("memcpy", Some(2.0)), row("memset", Some(8.0))], &order);
        assert!((full["memory"]["qemu"] - 4.0).abs() < 1e-9);
        let part = means(&[row("memcpy", Some(2.0)), row("memset", None)], &order);
        assert!(part["memory"].is_empty());
    }

    #[test]
    fn quotients_are_of_two_that_ran() {
        let ratios = BTreeMap::from([("qemu", 12.0), ("sarang", 3.0), ("xen-pv", 6.0)]);
        let values = |peers: &[&str]| {
            let columns = QUOTIENTS.iter().filter(|q| q.is_of(peers));
            columns.map(|q| (q.head, q.value(&ratios))).collect::<Vec<_>>()
        };
        let both = [("faster than qemu", Some(4.0)), ("xen-pv to sarang", Some(2.0))];
        assert_eq!(values(&["qemu", "sarang", "xen-pv"]), both);
        assert_eq!(values(&["sarang", "xen-pv"]), both[1..]);
        assert!(values(&["qemu", "xen-pv"]).is_empty());
        assert_eq!(QUOTIENTS[0].value(&BTreeMap::new()), None);
    }

    #[test]
    fn cells() {
        assert_eq!(number(Some(&4.567), false), "4.57x");
        assert_eq!(number(Some(&104.2), true), "**104.2x**");
        assert_eq!(number(None, false), "-");
    }
}
