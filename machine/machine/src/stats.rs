//! What was counted, as a table: a line for each counter, a column for each vCPU; and what
//! devices count.

use crate::info::Exits;
use engine::{Stats, stats::Value};
use std::fmt;

/// Columns of single vCPUs; with more there is only the sum.
const COLUMNS: usize = 8;
/// Lines of a group whose counters are ranked.
const RANKED: usize = 16;

/// A device's name, and its counters by theirs.
pub type DeviceCounters = (String, Vec<(&'static str, u64)>);

/// What each vCPU of a machine has counted, and each device.
#[derive(Clone, Debug, Default)]
pub struct MachineStats {
    pub vcpus: Vec<Stats>,
    pub devices: Vec<DeviceCounters>,
}

impl MachineStats {
    /// That of all vCPUs together.
    pub fn sum(&self) -> Stats {
        let mut sum = Stats::default();
        self.vcpus.iter().for_each(|vcpu| sum.merge(vcpu));
        sum
    }
}

/// Adds what the board counts of a vCPU.
pub(crate) fn add_exits(stats: &mut Stats, exits: &Exits, retired: Option<u64>) {
    let Exits { runs, idle, pio, mmio, msr, interrupts, traps } = *exits;
    let group = stats.group("board");
    group
        .count("port accesses", pio)
        .count("MMIO", mmio)
        .count("MSRs", msr)
        .count("interrupts taken", interrupts)
        .count("idle", idle)
        .count("returns of the engine", runs);
    if traps > 0 {
        group.count("traps to the personality", traps);
    }
    if let Some(retired) = retired {
        group.count("instructions", retired);
    }
}

impl fmt::Display for MachineStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = if matches!(self.vcpus.len(), 2..=COLUMNS) { self.vcpus.len() } else { 0 };
        if columns > 0 {
            write!(f, "{:<36}{:>14}", "", "all")?;
            for id in 0..columns {
                write!(f, "{:>14}", format!("vcpu {id}"))?;
            }
            writeln!(f)?;
        }
        for mut group in self.sum().groups {
            if group.ranked {
                group.counters.retain(|c| !c.value.is_zero());
                group.counters.sort_by_key(|c| std::cmp::Reverse(rank(c.value)));
                group.counters.truncate(RANKED);
            }
            if group.counters.is_empty() {
                continue;
            }
            writeln!(f, "{}", group.name)?;
            for counter in &group.counters {
                write!(f, "  {:<34}{:>14}", counter.name, Shown(counter.value))?;
                for vcpu in self.vcpus.iter().take(columns) {
                    match vcpu.get(group.name, &counter.name) {
                        Some(value) => write!(f, "{:>14}", Shown(value))?,
                        None => write!(f, "{:>14}", "-")?,
                    }
                }
                writeln!(f)?;
            }
        }
        for (name, counters) in &self.devices {
            writeln!(f, "{name}")?;
            for (counter, value) in counters {
                writeln!(f, "  {counter:<34}{value:>14}")?;
            }
        }
        Ok(())
    }
}

fn rank(value: Value) -> u64 {
    match value {
        Value::Count(n) | Value::Bytes(n) | Value::Time(n) | Value::Longest(n) => n,
        Value::Ratio(n, of) => n.checked_div(of).unwrap_or(0),
    }
}

/// A value with its unit.
struct Shown(Value);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            Value::Count(n) => n.to_string(),
            Value::Bytes(n) if n >= 10 << 20 => {
                format!("{}.{} MiB", n >> 20, (n >> 10) % 1024 * 10 / 1024)
            }
            Value::Bytes(n) if n >= 10 << 10 => format!("{} KiB", n >> 10),
            Value::Bytes(n) => format!("{n} B"),
            Value::Time(n) | Value::Longest(n) if n >= 10_000_000 => {
                format!("{} ms", n / 1_000_000)
            }
            Value::Time(n) | Value::Longest(n) => format!("{} us", n / 1_000),
            Value::Ratio(_, 0) => "-".to_owned(),
            Value::Ratio(n, of) => format!("{:.2}", n as f64 / of as f64),
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vcpu(n: u64) -> Stats {
        let mut stats = Stats::default();
        stats.group("work").count("things", n).ratio("share", n, 4).longest("pause", 11_000_000);
        for (name, count) in [("mov", 0), ("cli", 1), ("sti", n)] {
            stats.ranking("kinds").count(name, count);
        }
        stats
    }

    fn stats(vcpus: Vec<Stats>) -> MachineStats {
        MachineStats { vcpus, devices: vec![("disk".to_owned(), vec![("requests", 12)])] }
    }

    #[test]
    fn a_line_for_each_counter_and_a_column_for_each_vcpu() {
        let stats = stats(vec![vcpu(3), vcpu(5)]);
        let text = stats.to_string();
        let line = |name: &str| {
            let line = text.lines().find(|l| l.trim_start().starts_with(name)).unwrap();
            line.trim_start()[name.len()..].split_whitespace().collect::<Vec<_>>()
        };
        assert_eq!(line("things"), ["8", "3", "5"]);
        assert_eq!(line("share"), ["1.00", "0.75", "1.25"]);
        assert_eq!(line("pause"), ["11", "ms", "11", "ms", "11", "ms"]);
        assert!(!text.contains("mov"));
        assert!(text.contains("\ndisk\n") && line("requests") == ["12"]);
        assert!(text.find("sti").unwrap() < text.find("cli").unwrap());
        let width = |l: &str| l.chars().count();
        let widths: Vec<_> = text
            .lines()
            .take_while(|l| *l != "disk")
            .filter(|l| l.starts_with("  "))
            .map(width)
            .collect();
        assert!(widths.windows(2).all(|w| w[0] == w[1]), "{text}");
    }

    #[test]
    fn bytes_are_rounded_down() {
        let shown = |n| Shown(Value::Bytes(n)).to_string();
        assert_eq!(shown((12 << 20) - 1), "11.9 MiB");
        assert_eq!(shown((12 << 20) + (512 << 10)), "12.5 MiB");
        assert_eq!(
            [shown(10_239), shown(10_240), shown((4 << 20) - 1)],
            ["10239 B", "10 KiB", "4095 KiB"]
        );
    }

    #[test]
    fn one_vcpu_needs_no_columns() {
        let text = stats(vec![vcpu(3)]).to_string();
        assert!(!text.contains("vcpu") && text.contains("things"));
        let many = stats(vec![vcpu(1); 9]).to_string();
        assert!(!many.contains("vcpu"));
    }
}
