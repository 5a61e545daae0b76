//! The command line.

use crate::contender::Contender;
use crate::members;
use std::path::PathBuf;
use std::time::Duration;

/// Printed by `--help`.
pub const USAGE: &str = "\
usage: cargo xtask bench [OPTIONS]

  --members LIST     members or groups, comma separated, or none [all]
  --contenders LIST  of native,qemu,qemu-microvm,uml,sarang,xen-pv [all that are here]
  --rounds N         rounds, each of which runs every contender once [5]
  --ms N             shortest timed loop of a member, in milliseconds [50]
  --boot             also measure boot time, memory beyond guest RAM, an idle guest's
                     processor time and the lateness of timers
  --debian           also boot a whole Debian from a qcow2 disk to its login prompt
  --io               also measure disks and a network, each for as long as a member's loop; a
                     second or more is a good length
  --smp              also measure what a second vCPU gives, for 100 ms or more at a time
  --rings            only measure how much of a virtio request is the handling of its rings
  --kernel FILE      the guest's bzImage [that of the default guest]
  --initrd FILE      the initrd that --boot takes to its shell [the default guest's]
  --memory MIB       guest RAM [512]
  --engine NAME      the engine of sarang [translate]
  --sarang FILE      the program [target/release/sarang]
  --timeout SECONDS  longest run of one contender [3600]
  --out DIR          where bench.md and bench.json go [target/bench]
";

/// What to measure.
#[derive(Debug)]
pub struct Options {
    pub members: Vec<&'static str>,
    pub contenders: Vec<Contender>,
    pub rounds: usize,
    pub ms: u32,
    pub boot: bool,
    pub debian: bool,
    pub io: bool,
    pub smp: bool,
    pub rings: bool,
    pub kernel: Option<PathBuf>,
    pub initrd: Option<PathBuf>,
    pub memory_mib: u32,
    pub engine: String,
    pub sarang: Option<PathBuf>,
    pub timeout: Duration,
    pub out: Option<PathBuf>,
    /// The command line as it was given, for the report.
    pub given: String,
}

impl Options {
    /// Parses the arguments after the program's name.
    pub fn parse(args: &[String]) -> Result<Self, String> {
        let mut options = Self {
            members: members::all(),
            contenders: Contender::ALL.to_vec(),
            rounds: 5,
            ms: 50,
            boot: false,
            debian: false,
            io: false,
            smp: false,
            rings: false,
            kernel: None,
            initrd: None,
            memory_mib: 512,
            engine: "translate".to_owned(),
            sarang: None,
            timeout: Duration::from_secs(3600),
            out: None,
            given: args.join(" "),
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--boot" => options.boot = true,
                "--debian" => options.debian = true,
                "--io" => options.io = true,
                "--smp" => options.smp = true,
                "--rings" => options.rings = true,
                _ => {
                    let value = args.next().ok_or_else(|| format!("{arg} needs a value"))?;
                    options.set(arg, value)?;
                }
            }
        }
        if options.rounds == 0 || options.ms == 0 || options.memory_mib < 128 {
            return Err("--rounds and --ms are at least 1, --memory at least 128".to_owned());
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "--members" => self.members = members::select(value)?,
            "--contenders" => {
                self.contenders =
                    value.split(',').map(Contender::named).collect::<Result<_, _>>()?;
            }
            "--rounds" => self.rounds = number(name, value)?,
            "--ms" => self.ms = number(name, value)?,
            "--memory" => self.memory_mib = number(name, value.trim_end_matches('M'))?,
            "--timeout" => self.timeout = Duration::from_secs(number(name, value)?),
            "--engine" => self.engine = value.to_owned(),
            "--kernel" => self.kernel = Some(value.into()),
            "--initrd" => self.initrd = Some(value.into()),
            "--sarang" => self.sarang = Some(value.into()),
            "--out" => self.out = Some(value.into()),
            _ => return Err(format!("no option `{name}` (--help lists them)")),
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{name}: `{value}` is not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn a_full_line() {
        let options =
            parse("--members fib --contenders native,qemu --rounds 7 --boot --debian").unwrap();
        assert_eq!(options.members, ["fib"]);
        assert_eq!(options.contenders, [Contender::Native, Contender::Qemu]);
        assert_eq!((options.rounds, options.boot, options.debian), (7, true, true));
    }

    #[test]
    fn bad_lines() {
        for line in ["--rounds", "--rounds x", "--rounds 0", "--members q", "--what 1"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
