//! Disks and networks: requests of 4 KiB at random places with 32 under way, on a raw and on a qcow2
//! image, and a TCP stream in and out; of virtio in PCs, of xen-blkfront and xen-netfront in a domain.
//!
//! The guest is the default one with the benchmark's program behind it. Images are prepared afresh for
//! each run; every block says which one it is and whether it was written, which the guest looks at
//! while it measures and reads all of afterwards. Both ends of the stream know what it is to be.

mod peer;

use crate::{
    contender::{Contender, Setup},
    options::Options,
    session::Session,
    stats,
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
};

const BLOCK: u64 = 4096;
/// Blocks of an image: 128 MiB, all of them in the host's cache.
const BLOCKS: u64 = 32_768;
/// What the guest measures, as it calls it, with the unit.
const MEMBERS: [(&str, &str); 6] = [
    ("raw-read", "requests/s"),
    ("raw-write", "requests/s"),
    ("qcow2-read", "requests/s"),
    ("qcow2-write", "requests/s"),
    ("net-in", "MB/s"),
    ("net-out", "MB/s"),
];
/// Whose throughput is divided by whose.
const QUOTIENTS: [(&str, &str); 2] = [("sarang", "qemu"), ("xen-pv", "sarang")];

/// What came of one member under all contenders.
#[derive(Debug, Serialize)]
pub struct Row {
    pub member: &'static str,
    pub unit: &'static str,
    /// By contender and round.
    pub rounds: BTreeMap<&'static str, Vec<Option<f64>>>,
}

/// Everything that was measured.
#[derive(Debug, Default, Serialize)]
pub struct Io {
    pub rows: Vec<Row>,
    /// Of each thing that a guest measures, in milliseconds.
    pub loop_ms: u32,
    #[serde(skip)]
    pub faults: Vec<String>,
}

/// Runs all rounds, interleaved.
pub fn measure(options: &Options, setup: &Setup, contenders: &[Contender]) -> Result<Io, String> {
    let folder = tempfile::tempdir().map_err(|e| format!("--io: {e}"))?;
    let initrd = initrd(setup, folder.path())?;
    let images = Images::new(folder.path())?;
    let port = peer::start().map_err(|e| format!("--io: the stream's other end: {e}"))?;
    let row = |(member, unit)| Row { member, unit, rounds: BTreeMap::new() };
    let rows = MEMBERS.into_iter().map(row).collect();
    let mut io = Io { rows, loop_ms: options.ms, faults: Vec::new() };
    let able = [Contender::Qemu, Contender::Sarang, Contender::XenPv];
    for round in 1..=options.rounds {
        for contender in able.into_iter().filter(|c| contenders.contains(c)) {
            eprintln!("bench: devices {round} of {}: {}", options.rounds, contender.name());
            let words = format!("quiet sarang.exec=/bin/io-bench%20{port}%20{}", options.ms);
            let run = images.prepare().and_then(|()| {
                let mut command = contender.boot(setup, &initrd, &words)?;
                images.add(contender, &mut command);
                Ok(Session::start(&mut command, options.timeout)?.finish()?.0)
            });
            io.take(contender, round, run);
        }
    }
    Ok(io)
}

impl Io {
    /// What a guest has said, or why it has not.
    fn take(&mut self, contender: Contender, round: usize, run: Result<String, String>) {
        let name = contender.name();
        let mut fault = |why: String| {
            self.faults.push(format!("{name}, devices, round {round}: {why}"));
        };
        let text = run.unwrap_or_else(|why| {
            fault(why);
            String::new()
        });
        let found = values(&text);
        text.lines().filter(|line| line.starts_with("FAIL ")).for_each(|line| fault(line.into()));
        for image in ["raw", "qcow2"] {
            let line = format!("IO-CHECKED {image} {BLOCKS}");
            if !text.lines().any(|said| said.trim() == line) {
                fault(format!("the blocks of the {image} image were not checked"));
            }
        }
        for row in &mut self.rows {
            let value = found.get(row.member).copied();
            if value.is_none() {
                fault(format!("no result of {}", row.member));
            }
            row.rounds.entry(name).or_default().push(value);
        }
    }

    /// The table for people.
    pub fn markdown(&self, out: &mut String) {
        let Some(first) = self.rows.first() else { return };
        let ran: Vec<&str> = first.rounds.keys().copied().collect();
        let shown: Vec<_> =
            QUOTIENTS.iter().filter(|(a, b)| ran.contains(a) && ran.contains(b)).collect();
        let _ = writeln!(
            out,
            "Disks (128 MiB, in the host's cache), 4 KiB at random places with 32 requests under way, \
             and a TCP stream from and to the host, {} ms of each: medians, and of quotients within a \
             round (larger is better):\n",
            self.loop_ms
        );
        let heads: String = shown.iter().map(|(a, b)| format!(" {a} to {b} |")).collect();
        let _ = writeln!(out, "| | unit | {} |{heads}", ran.join(" | "));
        let _ = writeln!(out, "|---|---|{}", "---:|".repeat(ran.len() + shown.len()));
        for row in &self.rows {
            let number = |n: Option<f64>, unit| n.map_or("-".into(), |n| format!("{n:.2}{unit}"));
            let median = |name: &&str| match row.median(name) {
                Some(n) if n >= 1000.0 => format!("{n:.0}"),
                other => number(other, ""),
            };
            let mut cells: Vec<String> = ran.iter().map(median).collect();
            cells.extend(shown.iter().map(|(a, b)| number(row.quotient(a, b), "x")));
            let _ = writeln!(out, "| {} | {} | {} |", row.member, row.unit, cells.join(" | "));
        }
        let _ = writeln!(out);
    }
}

impl Row {
    fn of(&self, contender: &str) -> &[Option<f64>] {
        self.rounds.get(contender).map_or(&[], Vec::as_slice)
    }

    fn median(&self, contender: &str) -> Option<f64> {
        stats::median(&self.of(contender).iter().flatten().copied().collect::<Vec<_>>())
    }

    fn quotient(&self, above: &str, below: &str) -> Option<f64> {
        let pairs = self.of(above).iter().zip(self.of(below));
        stats::median(&pairs.filter_map(|(a, b)| Some((*a)? / (*b)?)).collect::<Vec<_>>())
    }
}

/// Lines such as `IO raw-read 12345.6`.
fn values(text: &str) -> BTreeMap<&str, f64> {
    let value = |line: &'_ str| {
        let (name, value) = line.trim().strip_prefix("IO ")?.split_once(' ')?;
        let value = value.parse::<f64>().ok().filter(|value| value.is_finite() && *value > 0.0)?;
        MEMBERS.iter().find(|(member, _)| *member == name).map(|(member, _)| (*member, value))
    };
    text.lines().filter_map(value).collect()
}

/// The default guest's, with the program behind it.
fn initrd(setup: &Setup, folder: &Path) -> Result<PathBuf, String> {
    let default = setup.files.initrd.as_ref();
    let default = default.ok_or("--io: there is no initrd with drivers: give one with --initrd")?;
    let said = |e: io::Error| format!("--io: {}: {e}", default.display());
    let mut bytes = fs::read(default).map_err(said)?;
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes.extend(
        fs::read(&setup.built.io).map_err(|e| format!("{}: {e}", setup.built.io.display()))?,
    );
    let path = folder.join("initrd");
    fs::write(&path, bytes).map_err(said)?;
    Ok(path)
}

/// A raw image and a qcow2 image with the same blocks.
struct Images {
    folder: PathBuf,
}

impl Images {
    fn new(folder: &Path) -> Result<Self, String> {
        let said = |e: io::Error| format!("--io: {}: {e}", folder.display());
        let images = Self { folder: folder.to_owned() };
        let mut file = BufWriter::new(File::create(images.file("base.raw")).map_err(said)?);
        for word in 1..=BLOCKS * BLOCK / 8 {
            let word = word.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            file.write_all(&word.to_le_bytes()).map_err(said)?;
        }
        file.flush().map_err(said)?;
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-f", "raw", "-O", "qcow2"]);
        convert.arg(images.file("base.raw")).arg(images.file("base.qcow2"));
        let done =
            convert.output().map_err(|e| format!("qemu-img: {e} (apt-get install qemu-utils)"))?;
        if !done.status.success() {
            return Err(format!("qemu-img: {}", String::from_utf8_lossy(&done.stderr)));
        }
        Ok(images)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// As they were before anybody wrote.
    fn prepare(&self) -> Result<(), String> {
        for kind in ["raw", "qcow2"] {
            let (from, to) =
                (self.file(&format!("base.{kind}")), self.file(&format!("disk.{kind}")));
            fs::copy(&from, &to).map_err(|e| format!("{}: {e}", to.display()))?;
        }
        Ok(())
    }

    /// Puts them, and the network, on a guest's command line.
    fn add(&self, contender: Contender, command: &mut Command) {
        for kind in ["raw", "qcow2"] {
            let file = self.file(&format!("disk.{kind}"));
            let file = file.display();
            if contender.is_ours() {
                command.args(["--disk", &format!("{file},format={kind}")]);
            } else {
                let drive = format!("file={file},format={kind},if=none,id={kind},cache=writeback");
                command.args(["-drive", &drive]);
                command.args(["-device", &format!("virtio-blk-pci,drive={kind}")]);
            }
        }
        if contender.is_ours() {
            command.args(["--firmware", "none", "--net", "user,loopback"]);
        } else {
            command.args(["-netdev", "user,id=net"]);
            // Nobody boots from it.
            command.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "IO raw-read 100.0\r\nIO raw-write 90\r\nIO-CHECKED raw 32768\r\n\
        IO qcow2-read 80.5\r\nIO qcow2-write 70.0\r\nIO-CHECKED qcow2 32768\r\n\
        IO net-in 60.25\r\nIO net-out 50.0\r\nIO else 3\r\n";

    fn io() -> Io {
        let row = |(member, unit)| Row { member, unit, rounds: BTreeMap::new() };
        Io { rows: MEMBERS.into_iter().map(row).collect(), ..Io::default() }
    }

    #[test]
    fn all_that_is_said_is_taken() {
        let mut io = io();
        io.take(Contender::Sarang, 1, Ok(SAID.to_owned()));
        assert_eq!(io.faults, Vec::<String>::new());
        assert_eq!(io.rows[2].rounds["sarang"], [Some(80.5)]);
    }

    #[test]
    fn what_is_missing_or_wrong_is_a_fault() {
        for (from, to, faults) in [
            ("IO net-out 50.0", "", 1),
            ("IO net-out 50.0", "FAIL net: the stream was another", 2),
            ("CHECKED qcow2 32768", "CHECKED qcow2 32767", 1),
            ("IO raw-read 100.0", "IO raw-read 0", 1),
        ] {
            let mut io = io();
            io.take(Contender::XenPv, 1, Ok(SAID.replace(from, to)));
            assert_eq!(io.faults.len(), faults, "{:?}", io.faults);
        }
        let mut io = io();
        io.take(Contender::Qemu, 1, Err("it took too long".to_owned()));
        assert!(io.faults[0].contains("took too long"), "{:?}", io.faults);
        assert_eq!(io.rows[0].rounds["qemu"], [None]);
    }

    #[test]
    fn quotients_are_of_one_round() {
        let mut io = io();
        let said = |n: f64| Ok(SAID.replace("IO raw-read 100.0", &format!("IO raw-read {n}")));
        for (round, (sarang, xen)) in
            [(100.0, 50.0), (1000.0, 600.0), (10.0, 4.0)].iter().enumerate()
        {
            io.take(Contender::Sarang, round, said(*sarang));
            io.take(Contender::XenPv, round, said(*xen));
        }
        let mut out = String::new();
        io.markdown(&mut out);
        assert!(out.contains("| | unit | sarang | xen-pv | xen-pv to sarang |"), "{out}");
        assert!(out.contains("| raw-read | requests/s | 100.00 | 50.00 | 0.50x |"), "{out}");
    }
}
