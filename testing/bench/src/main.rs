//! The bench command: one guest, every contender, interleaved, one table.
//!
//! A figure counts when it is a ratio from one run on one machine. Every round runs each
//! contender once (A B C A B C), ratios are taken within a round, and the median over the
//! rounds is shown. A fast wrong answer is a failure: every checksum must equal the native
//! one, and the guest's clock must agree with the host's.

mod boot;
mod contender;
mod debian;
mod guest;
mod host;
mod io;
mod members;
mod memory;
mod options;
mod pair;
mod parse;
mod report;
mod rest;
mod rings;
mod session;
mod stats;
mod suite;

use contender::{Contender, Setup};
use options::Options;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|a| a == "--help" || a == "-h") {
        print!("{}", options::USAGE);
        return ExitCode::SUCCESS;
    }
    match Options::parse(&args).and_then(|options| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("bench: {message}");
            ExitCode::from(2)
        }
    }
}

/// Measures and reports; `false` when a contender gave a wrong answer or failed.
fn run(options: &Options) -> Result<bool, String> {
    if options.rings {
        let folder = options.out.clone().unwrap_or_else(guest::out_dir);
        return rings::run(&folder).map(|()| true);
    }
    let built = guest::build()?;
    let files = guest::files(options)?;
    let setup = Setup::new(options, built, files);
    let mut contenders = Vec::new();
    let mut absent = Vec::new();
    for contender in &options.contenders {
        match contender.present(&setup) {
            Ok(version) => contenders.push((*contender, version)),
            Err(why) => {
                eprintln!("bench: {} is left out: {why}", contender.name());
                absent.push((contender.name(), why));
            }
        }
    }
    if contenders.is_empty() {
        return Err("no contender is left".to_owned());
    }
    let names: Vec<Contender> = contenders.iter().map(|(c, _)| *c).collect();
    let boots = if options.boot { boot::measure(options, &setup, &names) } else { Vec::new() };
    let mut logins = Vec::new();
    if options.debian {
        logins = debian::measure(options, &setup, &names)?;
    }
    let devices =
        if options.io { io::measure(options, &setup, &names)? } else { io::Io::default() };
    contenders.retain(|(contender, _)| *contender != Contender::QemuMicrovm);
    let names: Vec<Contender> = contenders.iter().map(|(c, _)| *c).collect();
    let mut suite = match options.members.as_slice() {
        [] => suite::Outcome::default(),
        members => suite::measure(options, members, options.ms, &setup, &names),
    };
    let mut pairs = Vec::new();
    if options.smp {
        pairs = pair::measure(options, &setup, &names, &mut suite.faults);
    }
    let guests = report::Guests { boots, logins, devices, pairs };
    let report = report::Report::new(options, &setup, contenders, absent, suite, guests);
    let good = report.faults.is_empty();
    let markdown = report.markdown();
    println!("{markdown}");
    report.write(options, &markdown)?;
    Ok(good)
}
