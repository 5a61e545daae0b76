//! Boots under the interpreter and the translator in lockstep: the built-in guest, and the
//! default guest's boot, of which a build with checks of overflow and the like does the first
//! part; all of it in three ways where tests may take long.

use device::PowerEvent;
use engine_translate::{Translation, Windowing};
use lockstep::boots::{End, Error, Pair, Plan, Start};

/// Blocks are translated when they have run so often: at once, almost at once, and as usual.
fn translation(hot: u32) -> Translation {
    let windows = if hot < 64 { Windowing::Eager } else { Windowing::Patient };
    Translation { hot, windows, ..Translation::default() }
}

/// Both to the end, which is expected; what the guest printed.
fn same(start: &Start, plan: Plan, end: End) -> Result<String, Error> {
    let mut pair = Pair::new(start, plan)?;
    match pair.run()? {
        Ok(found) => assert_eq!(found, end, "{}", pair.console()),
        Err(found) => panic!("{found}"),
    }
    Ok(pair.console())
}

/// Runs these commands of the built-in guest.
fn built_in(commands: &str, hot: u32, piece: u64) -> Result<String, Error> {
    let start = Start {
        kernel: microguest::GUEST.to_vec(),
        initrd: None,
        command_line: format!("run={commands}"),
        memory: 16 << 20,
    };
    let plan = Plan { translation: translation(hot), piece, trace: hot == 2, ..Plan::default() };
    same(&start, plan, End::Power(PowerEvent::PowerOff))
}

#[test]
fn the_built_in_guest() -> Result<(), Error> {
    for (hot, piece) in [(1, 100_000), (2, 3000), (64, 20_000)] {
        let console = built_in("info;memory;timer;x2apic;garbage-mmio;timer", hot, piece)?;
        assert_eq!(console.matches("five timer interrupts").count(), 2, "{console}");
    }
    // Noise may turn interrupts on that the guest does not expect, and end it.
    built_in("garbage-ports", 1, 100_000).map(drop)
}

#[test]
fn pieces_shorter_than_blocks() -> Result<(), Error> {
    let console = built_in("info;timer", 1, 30)?;
    assert!(console.contains("five timer interrupts"), "{console}");
    Ok(())
}

#[test]
fn looking_closer_changes_nothing() -> Result<(), Error> {
    let start = Start {
        kernel: microguest::GUEST.to_vec(),
        initrd: None,
        command_line: "run=info;timer".into(),
        memory: 16 << 20,
    };
    let run = |close| -> Result<(u64, String), Error> {
        let plan = Plan { translation: translation(1), piece: 3000, close, ..Plan::default() };
        let mut pair = Pair::new(&start, plan)?;
        if let Err(found) = pair.run()? {
            panic!("{found}");
        }
        Ok((pair.counts().retired, pair.console()))
    };
    let as_usual = run(None)?;
    assert_eq!(run(Some((5000, 1)))?, as_usual);
    assert_eq!(run(Some((0, 37)))?, as_usual);
    Ok(())
}

#[test]
fn a_difference_is_found_at_its_instruction() -> Result<(), Error> {
    let start = Start {
        kernel: microguest::GUEST.to_vec(),
        initrd: None,
        command_line: "run=info".into(),
        memory: 16 << 20,
    };
    let plan = Plan { translation: translation(1), other_brand: true, ..Plan::default() };
    let Err(found) = Pair::new(&start, plan)?.run()? else { panic!("nothing was found") };
    assert!(found.again, "{found}");
    assert!(found.path.last().is_some_and(|line| line.contains(" cpuid ")), "{found}");
    assert!(matches!(found.first.as_slice(), [first] if first.starts_with("rbx: ")), "{found}");
    let [a, b] = &*found.states;
    assert_eq!(a.regs.gpr[3] ^ b.regs.gpr[3], 1);
    Ok(())
}

/// The default guest of a kernel; `None` without packages or network.
fn debian(pattern: &str) -> Result<Option<Start>, Error> {
    let Some(files) = testkit::guest_files(pattern) else { return Ok(None) };
    Ok(Some(Start {
        kernel: std::fs::read(files.kernel)?,
        initrd: Some(std::fs::read(files.initrd)?),
        command_line: "console=ttyS0 sarang.exec=nproc".into(),
        memory: 256 << 20,
    }))
}

fn boot(pattern: &str) -> Result<(), Error> {
    let Some(start) = debian(pattern)? else { return Ok(()) };
    let long = std::env::var_os("SARANG_LONG").is_some();
    if cfg!(debug_assertions) && !long {
        let plan = Plan { translation: translation(2), limit: 25_000_000, ..Plan::default() };
        return same(&start, plan, End::Enough).map(drop);
    }
    let all = [2, 1, 64];
    for hot in &all[..if long { 3 } else { 1 }] {
        let plan = Plan { translation: translation(*hot), seed: (*hot).into(), ..Plan::default() };
        let console = same(&start, plan, End::Power(PowerEvent::PowerOff))?;
        assert!(console.contains("SARANG-EXIT 0"), "{console}");
    }
    Ok(())
}

#[test]
fn debian_6_1() -> Result<(), Error> {
    boot("linux-image-6.1.0-*-cloud-amd64")
}

#[test]
fn debian_6_12() -> Result<(), Error> {
    boot(testkit::KERNEL_6_12)
}
