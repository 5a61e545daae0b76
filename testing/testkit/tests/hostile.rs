//! The built-in guest: what it says, and what becomes of a machine that a guest mistreats.
//!
//! A guest that writes noise to every port and MMIO address, loads page tables made of noise or
//! triple-faults ends as a guest error, never as a failure of the monitor: `Guest::finish`
//! fails when the monitor panics, dumps core or hangs.

use std::fs;
use testkit::{BOOT, COMMAND, Error, Finished, Guest, Options, status};

/// Every engine that can execute the built-in guest here. A software KVM cannot: it lacks some
/// of the instructions by which a guest looks around.
fn engines() -> Vec<Options> {
    let mut engines = vec![Options::default().engine("translate")];
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let hardware = cpu.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    let open = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    match open {
        Ok(_) if hardware => engines.push(Options::default().engine("kvm")),
        Ok(_) => eprintln!("skipped: engine kvm, /dev/kvm works without VT-x or AMD-V"),
        Err(e) => eprintln!("skipped: engine kvm, /dev/kvm: {e}"),
    }
    engines
}

fn end(options: Options, commands: &str) -> Result<Finished, Error> {
    Guest::boot(&options.built_in(commands))?.finish(BOOT)
}

fn ends_with(commands: &str, statuses: &[i32], said: &str) -> Result<(), Error> {
    for options in engines() {
        let shown = format!("{options:?}");
        let end = end(options, commands)?;
        assert!(
            end.status.is_some_and(|code| statuses.contains(&code)),
            "{commands} under {shown}: {:?}\n{}\n{}",
            end.status,
            end.console,
            end.stderr
        );
        assert!(end.console.contains(said), "{commands} under {shown}:\n{}", end.console);
    }
    Ok(())
}

#[test]
fn commands_are_executed() -> Result<(), Error> {
    ends_with("info;echo forty-two;timer;memory", &[status::POWERED_OFF], "forty-two")
}

#[test]
fn other_processors_start() -> Result<(), Error> {
    for options in engines() {
        let end = end(options.cpus(3), "smp")?;
        assert_eq!(end.status, Some(status::POWERED_OFF), "{}", end.stderr);
        assert!(end.console.contains("3 of 3 processors run"), "{}", end.console);
    }
    Ok(())
}

#[test]
fn noise_to_all_ports() -> Result<(), Error> {
    ends_with("garbage-ports", &[status::POWERED_OFF], "garbage-ports done")
}

#[test]
fn noise_to_all_devices_in_memory() -> Result<(), Error> {
    ends_with("garbage-mmio", &[status::POWERED_OFF], "garbage-mmio done")
}

#[test]
fn noise_to_the_ports_that_end_a_machine() -> Result<(), Error> {
    // Which of them comes first is the guest's affair; any end but a failure of the host.
    let ends = [status::POWERED_OFF, status::GUEST_PANIC, status::GUEST_ERROR, status::TIMEOUT];
    for options in engines() {
        let end = end(options.timeout("30s"), "garbage-power")?;
        assert!(end.status.is_some_and(|code| ends.contains(&code)), "{end:?}");
    }
    Ok(())
}

#[test]
fn page_tables_made_of_noise() -> Result<(), Error> {
    ends_with("bad-tables", &[status::GUEST_ERROR], "bad-tables")
}

#[test]
fn a_triple_fault() -> Result<(), Error> {
    ends_with("triple-fault", &[status::GUEST_ERROR], "triple-fault")
}

#[test]
fn a_prompt_that_answers() -> Result<(), Error> {
    let mut guest = Guest::boot(&Options::default().built_in(""))?;
    guest.expect("Type help", COMMAND)?;
    guest.send_bytes(b"echo hel")?;
    guest.send_bytes(b"lo there\r")?;
    guest.expect("\nhello there", COMMAND)?;
    guest.send_bytes(b"poweroff\r")?;
    assert_eq!(guest.finish(COMMAND)?.status, Some(status::POWERED_OFF));
    Ok(())
}
