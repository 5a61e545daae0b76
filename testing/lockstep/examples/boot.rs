//! Boots a guest under the interpreter and the translator in lockstep.
//!
//! `boot KERNEL INITRD [option=value ...]`: `append` to the command line, `memory` in MiB, `hot`,
//! `code` MiB of code memory, `piece` instructions at most, `seed`, `limit` of instructions,
//! `trace=1`, `close` from so many instructions on. The exit status is 1 at a difference.

use engine_translate::Windowing;
use lockstep::boots::{Error, Pair, Plan, Start};
use std::{process::ExitCode, time::Instant};

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool, Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initrd, options @ ..] = args.as_slice() else {
        return Err("boot KERNEL INITRD [option=value ...]".into());
    };
    let mut start = Start {
        kernel: std::fs::read(kernel)?,
        initrd: (!initrd.is_empty()).then(|| std::fs::read(initrd)).transpose()?,
        command_line: "console=ttyS0".into(),
        memory: 512 << 20,
    };
    let mut plan = Plan::default();
    for option in options {
        let (name, value) = option.split_once('=').ok_or("an option without a value")?;
        let number = || value.parse::<u64>();
        match name {
            "append" => start.command_line = format!("console=ttyS0 {value}"),
            "memory" => start.memory = number()? << 20,
            "hot" => plan.translation.hot = number()? as u32,
            "windows" => {
                plan.translation.windows = match value {
                    "eager" => Windowing::Eager,
                    "off" => Windowing::Off,
                    _ => Windowing::Patient,
                };
            }
            "code" => plan.translation.code_memory = (number()? as usize) << 20,
            "piece" => plan.piece = number()?,
            "seed" => plan.seed = number()?,
            "limit" => plan.limit = number()?,
            "close" => plan.close = Some((number()?, 1000)),
            "trace" => plan.trace = number()? != 0,
            _ => return Err(format!("no option {name}").into()),
        }
    }
    let began = Instant::now();
    let (pair, end) = loop {
        let mut pair = Pair::new(&start, plan.clone())?;
        let end = pair.run()?;
        let closer = match &end {
            Err(found) => plan.closer(found).inspect(|plan| {
                eprintln!("# different {found}# closer: {:?}", plan.close);
            }),
            Ok(_) => None,
        };
        let Some(closer) = closer else { break (pair, end) };
        plan = closer;
    };
    print!("{}", pair.console());
    println!("# {:?}, {:.1?}", pair.counts(), began.elapsed());
    match end {
        Ok(end) => {
            let regs = pair.state().regs;
            println!(
                "# the same to the end: {end:?} rip {:#x} rflags {:#x}",
                regs.rip, regs.rflags
            );
        }
        Err(found) => {
            println!("# different {found}");
            return Ok(false);
        }
    }
    Ok(true)
}
