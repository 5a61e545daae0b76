//! Long runs, and single cases, by hand.
//!
//! `lockstep search COUNT [SEED [MNEMONIC ...]]` prints the minimised differences, one of each
//! instruction and kind, as lines to keep; `lockstep replay < LINES` shows both outcomes.

use engine_translate::Translate;
use lockstep::{Case, Kept, Mode, Oracle, generate};
use std::{collections::BTreeMap, io::BufRead};

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("search") => search(&args[1..]),
        Some("replay") => replay(),
        _ => Err("lockstep search COUNT [SEED [MNEMONIC ...]] | lockstep replay".into()),
    }
}

/// With `SARANG_TRANSLATE=1` everything is translated at its first execution.
fn engine() -> Result<Translate, Error> {
    let engine = Translate::new()?;
    Ok(if translated() { engine.with_translation(lockstep::at_once()) } else { engine })
}

fn translated() -> bool {
    std::env::var_os("SARANG_TRANSLATE").is_some_and(|value| value == "1")
}

fn warmed(oracle: Oracle) -> Oracle {
    if translated() { oracle.warm() } else { oracle }
}

fn search(args: &[String]) -> Result<(), Error> {
    let count = args.first().map_or(Ok(100_000), |n| n.parse())?;
    let seed = args.get(1).map_or(Ok(1), |n| n.parse())?;
    let names: Vec<String> = args.iter().skip(2).map(|n| n.to_lowercase()).collect();
    let engine = engine()?;
    for mode in Mode::ALL {
        let mut oracle = warmed(Oracle::new(&engine, mode)?);
        let mut generator = oracle.generator();
        if !names.is_empty() {
            generator.only(|code| names.contains(&format!("{:?}", code.mnemonic()).to_lowercase()));
        }
        let mut found = BTreeMap::new();
        let mut total = 0;
        let tally = oracle.search(&mut generator, seed, count, None, |difference| {
            total += 1;
            let case = &difference.case;
            let from = difference.rip.wrapping_sub(case.rip(mode)) as usize;
            let bytes = case.bytes().get(from..).filter(|b| !b.is_empty());
            let insn = generate::encode::decode(bytes.unwrap_or(case.bytes()), mode, 0);
            let what = difference.what.first().cloned().unwrap_or_default();
            let kind = what.split(':').next().unwrap_or_default().to_owned();
            let entry =
                found.entry((format!("{:?}", insn.code()), kind)).or_insert((0, difference));
            entry.0 += 1;
        })?;
        println!("# {mode:?}: {tally:?}, {total} differ, {} kinds", found.len());
        for ((code, kind), (times, difference)) in found {
            let small = oracle.minimise(&difference)?;
            println!("# {code} {kind}, {times} times: {}", small.what.join("; "));
            println!("# {}", disassembly(mode, &small.case));
            println!("{}", Kept { mode, seed: small.seed, case: small.case }.to_line());
        }
    }
    Ok(())
}

fn disassembly(mode: Mode, case: &Case) -> String {
    let (mut offset, mut all) = (0, Vec::new());
    while offset < case.bytes().len() {
        let ip = case.rip(mode) + offset as u64;
        let insn = generate::encode::decode(&case.bytes()[offset..], mode, ip);
        all.push(insn.to_string());
        offset += insn.len().max(1);
    }
    all.join("; ")
}

fn replay() -> Result<(), Error> {
    let engine = engine()?;
    for line in std::io::stdin().lock().lines() {
        let Some(kept) = Kept::parse(&line?)? else { continue };
        let mut oracle = warmed(Oracle::new(&engine, kept.mode)?);
        let background = generate::values::background(kept.seed);
        let (native, guest) = oracle.both(&background, &kept.case)?;
        println!("{}", disassembly(kept.mode, &kept.case));
        println!("  natively {native:x?}\n  guest    {guest:x?}");
        match oracle.judge(kept.seed, &kept.case)? {
            Some(what) => println!("  {}", what.join("\n  ")),
            None => println!("  no difference"),
        }
    }
    Ok(())
}
