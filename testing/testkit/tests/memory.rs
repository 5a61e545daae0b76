//! Memory that comes and goes while a stock kernel runs, by its own driver.

use std::{
    fs, thread,
    time::{Duration, Instant},
};
use testkit::{BOOT, COMMAND, Error, Guest, KERNEL_6_12, Options, guest_files, status};

const KERNEL: &str = "linux-image-6.1.0-*-cloud-amd64";

/// KiB of guest RAM that the host holds: the shared memory of the process.
fn held(guest: &Guest) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", guest.process())).unwrap();
    let line = text.lines().find(|line| line.starts_with("RssShmem:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What the monitor answers.
fn monitor(guest: &mut Guest, line: &str) -> Result<String, Error> {
    guest.send_bytes(b"\x01c")?;
    guest.expect("(sarang) ", COMMAND)?;
    guest.send_bytes(format!("{line}\r").as_bytes())?;
    guest.expect("\n", COMMAND)?;
    let answer = guest.expect("(sarang) ", COMMAND)?;
    guest.send_bytes(b"\x01c")?;
    Ok(answer)
}

/// MiB that the guest has, as the monitor knows it.
fn has(guest: &mut Guest) -> Result<u64, Error> {
    let info = monitor(guest, "info memory")?;
    let line = info.lines().find_map(|line| line.trim().strip_prefix("memory of the guest"));
    let line = line.unwrap_or_else(|| panic!("{info}"));
    Ok(line.split_whitespace().next().unwrap().parse().unwrap())
}

/// MiB that the guest's kernel has to give.
fn total(guest: &mut Guest) -> Result<u64, Error> {
    let (text, code) = guest.command("grep MemTotal /proc/meminfo", COMMAND)?;
    assert_eq!(code, 0, "{text}");
    Ok(text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10)
}

fn until(
    guest: &mut Guest,
    what: &str,
    done: impl Fn(&mut Guest) -> Result<bool, Error>,
) -> Result<(), Error> {
    let limit = Instant::now() + COMMAND;
    while !done(guest)? {
        assert!(Instant::now() < limit, "{what}: {}", monitor(guest, "info memory")?);
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

fn grows_and_shrinks(options: Options) -> Result<(), Error> {
    let options = options.memory("512M,max=1536M").append("memhp_default_state=online_movable");
    let mut guest = Guest::boot(&options)?;
    guest.shell()?;
    let bound = "/sys/bus/virtio/drivers/virtio_mem/virtio*";
    guest.command(&format!("until ls -d {bound} > /dev/null 2>&1; do sleep 1; done"), BOOT)?;
    let before = total(&mut guest)?;
    assert!((300..512).contains(&before), "{before} MiB");
    assert_eq!(has(&mut guest)?, 512);

    assert!(monitor(&mut guest, "memory 1024")?.contains("asked"));
    until(&mut guest, "growing", |guest| Ok(has(guest)? == 1024 && total(guest)? >= before + 500))?;
    // All of it can be used: more than there was.
    let line = "mount -t tmpfs -o size=800m none /mnt && \
                dd if=/dev/urandom of=/mnt/a bs=1M count=300 2> /dev/null && \
                cp /mnt/a /mnt/b && cmp /mnt/a /mnt/b";
    let (text, code) = guest.command(line, COMMAND)?;
    assert_eq!(code, 0, "{text}");
    let full = held(&guest);
    assert!(full > 600 << 10, "{full} KiB");

    // What is in use stays until it can be moved.
    let (text, code) = guest.command("rm /mnt/a /mnt/b && umount /mnt", COMMAND)?;
    assert_eq!(code, 0, "{text}");
    assert!(monitor(&mut guest, "memory 512M")?.contains("asked"));
    until(&mut guest, "shrinking", |guest| Ok(has(guest)? == 512 && total(guest)? <= before + 8))?;
    let small = held(&guest);
    assert!(small + (200 << 10) < full, "{small} KiB are held of {full}");

    let refused = monitor(&mut guest, "memory 2G")?;
    assert!(refused.contains("512 to 1536 MiB"), "{refused}");
    guest.send("poweroff")?;
    assert_eq!(guest.finish(COMMAND)?.status, Some(status::POWERED_OFF));
    Ok(())
}

#[test]
fn memory_grows_and_shrinks() -> Result<(), Error> {
    if guest_files(KERNEL_6_12).is_none() {
        return Ok(());
    }
    grows_and_shrinks(Options::default().cpus(2).arg("--package", KERNEL_6_12))
}

#[test]
fn memory_grows_and_shrinks_with_an_older_kernel() -> Result<(), Error> {
    if guest_files(KERNEL).is_none() {
        return Ok(());
    }
    grows_and_shrinks(Options::default())
}

#[test]
fn a_guest_that_starts_again_has_what_it_had_at_first() -> Result<(), Error> {
    if guest_files(KERNEL_6_12).is_none() {
        return Ok(());
    }
    let options = Options::default()
        .arg("--package", KERNEL_6_12)
        .memory("512M,max=1G")
        .append("memhp_default_state=online_movable");
    let mut guest = Guest::boot(&options)?;
    guest.shell()?;
    monitor(&mut guest, "memory 768")?;
    until(&mut guest, "growing", |guest| Ok(has(guest)? == 768))?;
    // Its driver plugs again what the operator wants.
    monitor(&mut guest, "memory 640")?;
    monitor(&mut guest, "reset")?;
    guest.shell()?;
    until(&mut guest, "growing again", |guest| Ok(has(guest)? == 640))?;
    let (text, code) =
        guest.command("dmesg | grep -c 'unplugging all memory is required'", COMMAND)?;
    assert_ne!(code, 0, "nothing was plugged when it started: {text}");
    guest.send("poweroff")?;
    assert_eq!(guest.finish(COMMAND)?.status, Some(status::POWERED_OFF));
    Ok(())
}
