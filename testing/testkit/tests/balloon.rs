//! The balloon under a stock kernel's own driver: memory goes back to the host, and comes again.

use std::{
    thread,
    time::{Duration, Instant},
};
use testkit::{BOOT, COMMAND, Error, Guest, Options, guest_files};

fn number(text: &str, name: &str) -> u64 {
    let line = text.lines().find(|line| line.trim_start().starts_with(name));
    let line = line.unwrap_or_else(|| panic!("no {name}: {text}"));
    line.trim_start()[name.len()..].split_whitespace().next().unwrap().parse().unwrap()
}

fn until(
    guest: &mut Guest,
    what: &str,
    done: impl Fn(&str, &Guest) -> bool,
) -> Result<String, Error> {
    let limit = Instant::now() + COMMAND;
    loop {
        let info = guest.monitor("info balloon")?;
        if done(&info, guest) {
            return Ok(info);
        }
        assert!(Instant::now() < limit, "{what}: {info}, {} KiB held", guest.held_memory());
        thread::sleep(Duration::from_millis(100));
    }
}

fn boot(memory: &str) -> Result<Option<Guest>, Error> {
    if guest_files("linux-image-6.1.0-*-cloud-amd64").is_none() {
        return Ok(None);
    }
    let mut guest = Guest::boot(&Options::default().memory(memory).flag("--balloon"))?;
    guest.shell()?;
    let bound = "/sys/bus/virtio/drivers/virtio_balloon/virtio*";
    guest.command(&format!("until ls -d {bound} > /dev/null 2>&1; do sleep 1; done"), BOOT)?;
    Ok(Some(guest))
}

#[test]
fn a_balloon_takes_memory_and_gives_it_back() -> Result<(), Error> {
    let Some(mut guest) = boot("512M")? else { return Ok(()) };
    // All of the memory was in use once.
    guest.command("dd if=/dev/zero of=/tmp/fill bs=1M count=200 2> /dev/null", COMMAND)?;
    let before = guest.held_memory();
    assert!(before > 200 << 10, "{before} KiB");
    let info = guest.monitor("info balloon")?;
    assert_eq!(number(&info, "given by the guest"), 0);
    assert!((400..512).contains(&(number(&info, "total") >> 10)), "{info}");

    guest.command("rm /tmp/fill", COMMAND)?;
    assert!(guest.monitor("balloon 200")?.contains("asked"));
    let info = until(&mut guest, "inflating", |info, _| number(info, "given by the guest") == 312)?;
    assert_eq!(number(&info, "wanted from the guest"), 312);
    // Where the balloon shrinks by itself its pages count as memory, but are not free.
    assert!(number(&info, "free") >> 10 < 190, "{info}");
    let small = guest.held_memory();
    assert!(small < 200 << 10 && small < before, "{small} KiB are held of {before}");

    assert!(guest.monitor("balloon 512M")?.contains("asked"));
    until(&mut guest, "deflating", |info, _| number(info, "given by the guest") == 0)?;
    let (text, code) = guest.command(
        "dd if=/dev/urandom of=/tmp/a bs=1M count=100 2> /dev/null; cp /tmp/a /tmp/b; cmp /tmp/a /tmp/b",
        COMMAND,
    )?;
    assert_eq!(code, 0, "{text}");
    assert!(guest.monitor("balloon lots")?.contains("give a size"));
    guest.power_off()
}

#[test]
fn free_memory_returns_by_itself() -> Result<(), Error> {
    let Some(mut guest) = boot("512M")? else { return Ok(()) };
    guest.command("dd if=/dev/zero of=/tmp/fill bs=1M count=250 2> /dev/null", COMMAND)?;
    let full = guest.held_memory();
    guest.command("rm /tmp/fill", COMMAND)?;
    // Linux reports some two seconds later, and again, in large blocks.
    until(&mut guest, "reporting", |_, guest| guest.held_memory() + (150 << 10) < full)?;
    guest.power_off()
}

#[test]
fn a_guest_without_memory_takes_from_its_balloon() -> Result<(), Error> {
    let Some(mut guest) = boot("512M")? else { return Ok(()) };
    guest.monitor("balloon 160")?;
    until(&mut guest, "inflating", |info, _| number(info, "given by the guest") > 300)?;
    // More than is left.
    let line = "dd if=/dev/urandom of=/tmp/fill bs=1M count=200 2> /dev/null";
    let (text, code) = guest.command(line, COMMAND)?;
    assert_eq!(code, 0, "{text}");
    let info = guest.monitor("info balloon")?;
    assert!(number(&info, "given by the guest") < 340, "{info}");
    guest.power_off()
}
