//! The host processor against engine `translate`: kept cases, generated ones, and whether the
//! comparison would see a mistake.
//!
//! `SARANG_LONG=1` makes millions of cases. A case that differs is printed, minimised, as a
//! line for `cases/kept.txt` and for the example's `replay`.

use engine::stats::Value;
use engine_translate::Translate;
use lockstep::{Kept, Mode, Oracle, Outcome, Tally};
use std::time::{SystemTime, UNIX_EPOCH};
use x86_defs::rflags;

/// Kernels without modify_ldt do not have the modes with segments of their own.
fn oracle(engine: &Translate, mode: Mode) -> Option<Oracle> {
    match Oracle::new(engine, mode) {
        Ok(oracle) => Some(oracle),
        Err(error) if mode.segmented() => {
            println!("skipped: {mode:?}: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Judges `count` cases of each mode; panics on differences.
fn search(name: &str, seed: u64, count: usize) -> Tally {
    let engine = Translate::new().unwrap();
    let mut all = Tally::default();
    for mode in Mode::ALL {
        let Some(mut oracle) = oracle(&engine, mode) else { continue };
        let mut generator = oracle.generator();
        let mut found = Vec::new();
        let keep = |difference| {
            if found.len() < 20 {
                found.push(difference);
            }
        };
        let tally = oracle.search(&mut generator, seed, count, None, keep).unwrap();
        println!("{name}, seed {seed:#x}, {mode:?}: {tally:?}");
        for difference in &found {
            let small = oracle.minimise(difference).unwrap();
            let kept = Kept { mode, seed: small.seed, case: small.case };
            println!("# {}\n{}", small.what.join("; "), kept.to_line());
        }
        assert!(found.is_empty(), "{name}, seed {seed:#x}, {mode:?}: see above");
        // A generator that has gone astray finds nothing.
        let judged = if lockstep::is_amd() { 15 } else { 50 };
        assert!(tally.completed * 2 > tally.cases && tally.unjudged * judged < tally.cases);
        all.cases += tally.cases;
    }
    all
}

fn long_run() -> bool {
    std::env::var_os("SARANG_LONG").is_some_and(|value| value == "1")
}

#[test]
fn kept_cases_agree() {
    let engine = Translate::new().unwrap();
    let mut count = 0;
    for mode in Mode::ALL {
        let Some(mut oracle) = oracle(&engine, mode) else { continue };
        for line in include_str!("../cases/kept.txt").lines() {
            let Some(kept) = Kept::parse(line).unwrap() else { continue };
            if kept.mode == mode {
                assert_eq!(oracle.judge(kept.seed, &kept.case).unwrap(), None, "{line}");
                count += 1;
            }
        }
    }
    assert!(count >= 20, "{count}");
}

#[test]
fn generated_cases_agree() {
    let count = if long_run() { 1_000_000 } else { 12_000 };
    search("fixed seed", 0x5a72_616e, count);
}

#[test]
fn cases_never_seen_before_agree() {
    let count = if long_run() { 500_000 } else { 3_000 };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    search("seed from the clock", now.as_nanos() as u64, count);
}

/// The same by translated code, with memory known and not: its accesses are other ones then.
#[test]
fn translated_cases_agree() {
    let count = if long_run() { 1_000_000 } else { 6_000 };
    let engine = Translate::new().unwrap().with_translation(lockstep::at_once());
    for warm in [false, true] {
        let mut oracle = Oracle::new(&engine, Mode::Long).unwrap();
        if warm {
            oracle = oracle.warm();
        }
        let mut generator = oracle.generator();
        let mut found = Vec::new();
        let keep = |difference| found.push(difference);
        let seed = 0x7472_616e + u64::from(warm);
        let tally = oracle.search(&mut generator, seed, count, None, keep).unwrap();
        println!("translated, warm {warm}: {tally:?}");
        for difference in found.iter().take(20) {
            let small = oracle.minimise(difference).unwrap();
            let kept = Kept { mode: Mode::Long, seed: small.seed, case: small.case };
            println!("# {}\n{}", small.what.join("; "), kept.to_line());
        }
        assert!(found.is_empty(), "warm {warm}: see above");
        if std::is_x86_feature_detected!("bmi2") {
            let counted = |name| match oracle.stats().get("translated code", name) {
                Some(Value::Count(n)) => n,
                other => panic!("{name}: {other:?}"),
            };
            assert!(counted("entries") as usize > count / 3, "{}", counted("entries"));
        }
    }
}

/// Each kind of wrong result is found, and where nothing is wrong, nothing is.
#[test]
fn a_wrong_result_is_found() {
    /// What is wrong, how the comparison names it, and the mistake.
    type Mistake = (&'static str, &'static str, fn(&mut Outcome));
    let spoils: [Mistake; 9] = [
        ("a register", "R9", |out| out.gpr[9] ^= 1 << 40),
        ("a status flag", "RFLAGS", |out| out.rflags ^= rflags::ZF),
        ("a control flag", "RFLAGS", |out| out.rflags ^= rflags::DF),
        ("the instruction pointer", "RIP", |out| out.rip += 1),
        ("half a vector", "YMM7 high", |out| {
            let mut fpu = out.fpu();
            fpu.set_ymm_hi(7, fpu.ymm_hi(7) ^ 1 << 100);
            out.fpu = fpu.area;
        }),
        ("MXCSR", "MXCSR", |out| out.fpu[x86_defs::xsave::MXCSR] ^= 1),
        ("an x87 register", "ST0", |out| out.fpu[x86_defs::xsave::ST + 7] ^= 0x80),
        ("memory", "memory", |out| out.push(77, 0x1234_5678_9abc_def0)),
        ("the FS base", "FS base", |out| out.fs_base ^= 1 << 33),
    ];
    let engine = Translate::new().unwrap();
    let mut oracle = Oracle::new(&engine, Mode::Long).unwrap();
    for (name, line, spoil) in spoils {
        let mut generator = oracle.generator();
        generator.only(|code| code.mnemonic() == iced_x86::Mnemonic::Mov);
        let mut seen = 0;
        let count = 400;
        let found = |difference: lockstep::Difference| {
            seen += usize::from(difference.what.iter().any(|what| what.starts_with(line)));
        };
        let tally = oracle.search(&mut generator, 1, count, Some(&spoil), found).unwrap();
        assert!(seen * 10 > (tally.cases - tally.unjudged) * 7, "{name}: {seen} of {tally:?}");
    }
}

/// A vector that the engine did not deliver, and one that it made up.
#[test]
fn a_wrong_exception_is_found() {
    let engine = Translate::new().unwrap();
    for mode in Mode::ALL {
        let Some(mut oracle) = oracle(&engine, mode) else { continue };
        let mut generator = oracle.generator();
        let (mut wrong, mut right) = (0, 0);
        let count = 1_000;
        let spoil = |out: &mut Outcome| out.vector = if out.vector == 3 { 14 } else { 3 };
        oracle.search(&mut generator, 2, count, Some(&spoil), |_| wrong += 1).unwrap();
        let mut generator = oracle.generator();
        oracle.search(&mut generator, 2, count, None, |_| right += 1).unwrap();
        assert!(wrong * 10 > count * 9 && right * 100 < count, "{mode:?}: {wrong}, {right}");
    }
}
