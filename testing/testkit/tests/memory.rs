//! Memory that comes and goes while a stock kernel runs, by its own driver.

use std::{
    thread,
    time::{Duration, Instant},
};
use testkit::{BOOT, COMMAND, Error, Guest, KERNEL_6_12, Options, guest_files};

const KERNEL: &str = "linux-image-6.1.0-*-cloud-amd64";

/// MiB that the guest has, as the monitor knows it.
fn has(guest: &mut Guest) -> Result<u64, Error> {
    let info = guest.monitor("info memory")?;
    let line = info.lines().find_map(|line| line.trim().strip_prefix("memory of the guest"));
    let line = line.unwrap_or_else(|| panic!("{info}"));
    Ok(line.split_whitespace().next().unwrap().parse().unwrap())
}

/// MiB that the guest's kernel has to give.
fn total(guest: &mut Guest) -> Result<u64, Error> {
    let text = guest.says("grep MemTotal /proc/meminfo")?;
    Ok(text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10)
}

fn until(
    guest: &mut Guest,
    what: &str,
    done: impl Fn(&mut Guest) -> Result<bool, Error>,
) -> Result<(), Error> {
    let limit = Instant::now() + COMMAND;
    while !done(guest)? {
        assert!(Instant::now() < limit, "{what}: {}", guest.monitor("info memory")?);
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

    assert!(guest.monitor("memory 1024")?.contains("asked"));
    until(&mut guest, "growing", |guest| Ok(has(guest)? == 1024 && total(guest)? >= before + 500))?;
    // All of it can be used: more than there was.
    let line = "mount -t tmpfs -o size=800m none /mnt && \
                dd if=/dev/urandom of=/mnt/a bs=1M count=300 2> /dev/null && \
                cp /mnt/a /mnt/b && cmp /mnt/a /mnt/b";
    guest.says(line)?;
    let full = guest.held_memory();
    assert!(full > 600 << 10, "{full} KiB");

    // What is in use stays until it can be moved.
    guest.says("rm /mnt/a /mnt/b && umount /mnt")?;
    assert!(guest.monitor("memory 512M")?.contains("asked"));
    until(&mut guest, "shrinking", |guest| Ok(has(guest)? == 512 && total(guest)? <= before + 8))?;
    let small = guest.held_memory();
    assert!(small + (200 << 10) < full, "{small} KiB are held of {full}");

    let refused = guest.monitor("memory 2G")?;
    assert!(refused.contains("512 to 1536 MiB"), "{refused}");
    guest.power_off()
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
    guest.monitor("memory 768")?;
    until(&mut guest, "growing", |guest| Ok(has(guest)? == 768))?;
    // Its driver plugs again what the operator wants.
    guest.monitor("memory 640")?;
    guest.monitor("reset")?;
    guest.shell()?;
    until(&mut guest, "growing again", |guest| Ok(has(guest)? == 640))?;
    let (text, code) =
        guest.command("dmesg | grep -c 'unplugging all memory is required'", COMMAND)?;
    assert_ne!(code, 0, "nothing was plugged when it started: {text}");
    guest.power_off()
}
