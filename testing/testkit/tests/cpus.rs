//! CPUs that come and go while a stock kernel runs, by ACPI.

use std::{
    thread,
    time::{Duration, Instant},
};
use testkit::{COMMAND, Error, Guest, KERNEL_6_12, Options, guest_files};

const KERNEL: &str = "linux-image-6.1.0-*-cloud-amd64";

/// The CPUs that the guest's kernel uses, as it lists them: `0-2`.
fn online(guest: &mut Guest) -> Result<String, Error> {
    Ok(guest.says("cat /sys/devices/system/cpu/online")?.trim().to_owned())
}

/// What the monitor says of one CPU.
fn monitored(guest: &mut Guest, id: u32) -> Result<String, Error> {
    let info = guest.monitor("info cpus")?;
    let name = format!("CPU {id} ");
    let line = info.lines().find(|line| line.trim_start().starts_with(&name));
    Ok(line.unwrap_or_else(|| panic!("{info}")).trim().to_owned())
}

fn until(
    guest: &mut Guest,
    what: &str,
    done: impl Fn(&mut Guest) -> Result<bool, Error>,
) -> Result<(), Error> {
    let limit = Instant::now() + COMMAND;
    while !done(guest)? {
        assert!(Instant::now() < limit, "{what}: {}", guest.monitor("info cpus")?);
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// Lets the guest have these, which it then brings online itself.
fn grow(guest: &mut Guest, to: u32) -> Result<(), Error> {
    guest.monitor(&format!("cpu {to}"))?;
    let last = to - 1;
    let there = format!("/sys/devices/system/cpu/cpu{last}/online");
    until(guest, "a CPU comes", |guest| {
        Ok(guest.says(&format!("test -e {there} && echo there || echo absent"))?.contains("there"))
    })?;
    assert!(monitored(guest, last)?.contains("not in use"));
    for id in 1..to {
        let file = format!("/sys/devices/system/cpu/cpu{id}/online");
        guest.says(&format!("test $(cat {file}) = 1 || echo 1 > {file}"))?;
    }
    assert_eq!(online(guest)?, format!("0-{last}"));
    Ok(())
}

/// Something to do on each of these, and nowhere else: how much each has done for its program.
fn work(guest: &mut Guest, cpus: u32) -> Result<(), Error> {
    let line = format!(
        "for c in $(seq 0 {}); do taskset -c $c sh -c 'i=0; while [ $i -lt 3000 ]; do i=$((i+1)); \
         done; echo $i on $(cut -d \" \" -f 39 /proc/self/stat)' & done; wait",
        cpus - 1
    );
    let text = guest.says(&line)?;
    for id in 0..cpus {
        assert!(text.contains(&format!("3000 on {id}")), "{text}");
    }
    Ok(())
}

fn comes_and_goes(options: Options) -> Result<(), Error> {
    let mut guest = Guest::boot(&options.arg("--cpus", "1,max=3"))?;
    guest.shell()?;
    assert_eq!(online(&mut guest)?, "0");
    assert_eq!(guest.says("cat /sys/devices/system/cpu/possible")?.trim(), "0-2");
    assert_eq!(monitored(&mut guest, 2)?, "CPU 2    absent");
    let refused = guest.monitor("cpu 4")?;
    assert!(refused.contains("can have 1 to 3 CPUs"), "{refused}");

    for _ in 0..2 {
        grow(&mut guest, 3)?;
        work(&mut guest, 3)?;
        assert_eq!(guest.says("nproc")?.trim(), "3");
        guest.monitor("cpu 1")?;
        until(&mut guest, "the CPUs go", |guest| {
            Ok(monitored(guest, 1)?.ends_with("absent") && monitored(guest, 2)?.ends_with("absent"))
        })?;
        assert_eq!(online(&mut guest)?, "0");
        assert_eq!(guest.says("nproc")?.trim(), "1");
        let gone = guest.says("test -e /sys/devices/system/cpu/cpu2 && echo there || echo gone")?;
        assert!(gone.contains("gone"), "{gone}");
    }
    let faults = guest.says("dmesg | grep -iE 'ACPI (Error|BIOS)|call trace|incomplete' ; true")?;
    assert!(!faults.to_lowercase().contains("acpi error"), "{faults}");
    assert!(!faults.to_lowercase().contains("call trace"), "{faults}");

    // One that is not the last may be given up by the guest itself.
    grow(&mut guest, 3)?;
    guest.says("echo 1 > /sys/bus/acpi/devices/ACPI0007:01/eject")?;
    until(&mut guest, "one CPU goes", |guest| Ok(monitored(guest, 1)?.ends_with("absent")))?;
    assert_eq!(online(&mut guest)?, "0,2");
    guest.power_off()
}

#[test]
fn cpus_come_and_go() -> Result<(), Error> {
    if guest_files(KERNEL_6_12).is_none() {
        return Ok(());
    }
    comes_and_goes(Options::default().arg("--package", KERNEL_6_12))
}

#[test]
fn cpus_come_and_go_with_an_older_kernel() -> Result<(), Error> {
    if guest_files(KERNEL).is_none() {
        return Ok(());
    }
    comes_and_goes(Options::default())
}
