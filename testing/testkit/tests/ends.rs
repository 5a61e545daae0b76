//! How a run ends, and what the exit status then says.

use std::time::Duration;
use testkit::{BOOT, COMMAND, Error, Guest, Options, guest_files, status};

fn here() -> bool {
    guest_files("linux-image-6.1.0-*-cloud-amd64").is_some()
}

/// Ctrl-A, the escape character of the console.
const ESCAPE: u8 = 0x01;

#[test]
fn the_operator_quits() -> Result<(), Error> {
    if !here() {
        return Ok(());
    }
    let mut guest = Guest::boot(&Options::default())?;
    guest.shell()?;
    guest.send_bytes(&[ESCAPE, b'x'])?;
    assert_eq!(guest.finish(COMMAND)?.status, Some(status::QUIT));
    Ok(())
}

#[test]
fn the_time_is_over() -> Result<(), Error> {
    if !here() {
        return Ok(());
    }
    let guest = Guest::boot(&Options::default().timeout("2s"))?;
    let end = guest.finish(BOOT)?;
    assert_eq!(end.status, Some(status::TIMEOUT), "{}", end.stderr);
    Ok(())
}

#[test]
fn a_termination_signal_asks_the_guest_to_power_down() -> Result<(), Error> {
    if !here() {
        return Ok(());
    }
    let mut guest = Guest::boot(&Options::default())?;
    guest.shell()?;
    // The listener for the power button starts beside the shell.
    guest.command("while ! pidof acpid; do sleep 1; done", COMMAND)?;
    guest.signal("TERM")?;
    let end = guest.finish(BOOT)?;
    assert_eq!(end.status, Some(status::POWERED_OFF), "{}", end.stderr);
    Ok(())
}

#[test]
fn the_monitor_prompt() -> Result<(), Error> {
    if !here() {
        return Ok(());
    }
    let mut guest = Guest::boot(&Options::default())?;
    guest.shell()?;
    guest.send_bytes(&[ESCAPE, b'c'])?;
    guest.send("info")?;
    guest.expect("translate", COMMAND)?;
    guest.send("quit")?;
    assert_eq!(guest.finish(COMMAND)?.status, Some(status::QUIT));
    Ok(())
}

#[test]
fn a_kernel_without_a_root_panics() -> Result<(), Error> {
    let Some(files) = guest_files("linux-image-6.1.0-*-cloud-amd64") else { return Ok(()) };
    // No initrd and no disk: "Unable to mount root fs", then the reset that panic= asks for.
    let options =
        Options::default().kernel(&files.kernel).append("console=ttyS0 panic=-1").timeout("600s");
    let end = Guest::boot(&options)?.finish(BOOT + Duration::from_secs(60))?;
    assert!(end.console.contains("Kernel panic"), "{}", end.console);
    assert!(
        matches!(end.status, Some(status::GUEST_PANIC | status::GUEST_ERROR | status::TIMEOUT)),
        "{:?}: {}",
        end.status,
        end.stderr
    );
    Ok(())
}
