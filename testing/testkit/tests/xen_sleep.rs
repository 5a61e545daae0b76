//! A stock kernel that suspends itself as a Xen PV guest, and goes on; NMIs; run states.

use std::{
    thread,
    time::{Duration, Instant},
};
use testkit::{BOOT, COMMAND, Error, Folder, Guest, KERNEL_6_12, Options, guest_files, serve};

const KERNEL: &str = "linux-image-6.1.0-*-cloud-amd64";

/// `seq 1 20000 | sha256sum`
const SUM: &str = "f6351f5ead9a700e34275480b3856ea738122a7c57bdeb744a631251c069587a";

fn domain() -> Options {
    Options::default().arg("--guest", "xen-pv")
}

/// An empty file of 16 MiB, removed with its folder.
fn image(folder: &Folder) -> String {
    let path = folder.text("disk.raw");
    std::fs::File::create(&path).unwrap().set_len(16 << 20).unwrap();
    path
}

fn until_state(guest: &mut Guest, state: &str) -> Result<(), Error> {
    let limit = Instant::now() + COMMAND;
    while !guest.monitor("info")?.contains(&format!("state    {state}")) {
        assert!(Instant::now() < limit, "not {state}: {}", guest.said());
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// The disk, the network, all CPUs and the clock do what they should.
fn works(guest: &mut Guest, round: &str, port: u16, cpus: u32) -> Result<(), Error> {
    guest.says(&format!(
        "(echo {round}; head -c 4194304 /dev/zero) | dd of=/dev/xvda bs=64k conv=fsync 2>&-"
    ))?;
    guest.says("echo 3 > /proc/sys/vm/drop_caches")?;
    assert_eq!(guest.says("head -1 /dev/xvda")?.trim(), round);
    assert_eq!(guest.says(&format!("nc 10.0.2.2 {port} < /dev/null"))?.trim(), "from outside");
    assert_eq!(guest.says("nproc")?.trim(), cpus.to_string());
    for cpu in 0..cpus {
        let sum = guest.says(&format!("seq 1 20000 | taskset -c {cpu} sha256sum"))?;
        assert!(sum.starts_with(SUM), "{sum}");
    }
    let slept = "a=$(date +%s); sleep 2; b=$(date +%s); echo $((b - a))";
    let slept: u64 = guest.says(slept)?.trim().parse().unwrap_or(0);
    assert!(slept >= 2, "{slept}");
    Ok(())
}

fn now(guest: &mut Guest) -> Result<i64, Error> {
    let here = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64;
    Ok(guest.says("date +%s")?.trim().parse::<i64>().unwrap_or(0) - here)
}

fn sleeps(options: Options, cpus: u32) -> Result<(), Error> {
    let folder = Folder::new(&format!("xen-sleep-{cpus}"));
    let disk = image(&folder);
    let options = options.cpus(cpus).arg("--net", "user,loopback").arg("--disk", &disk);
    let mut guest = Guest::boot(&options)?;
    guest.shell()?;
    assert!(guest.monitor("wake")?.contains("not asleep"));
    guest.says("modprobe -a xen_blkfront xen_netfront")?;
    guest.says("until ip link set eth0 up; do sleep 1; done; ip addr add 10.0.2.15/24 dev eth0")?;
    let port = serve("from outside\n");
    works(&mut guest, "before", port, cpus)?;
    let ahead = now(&mut guest)?;
    for round in ["first", "second"] {
        // A program that goes on where it was.
        guest.says("(sleep 1; for i in $(seq 1 200); do echo $i; done > /tmp/count) & true")?;
        assert!(guest.monitor("sleep")?.contains("asked"));
        until_state(&mut guest, "asleep")?;
        assert!(guest.monitor("sleep")?.contains("the guest is asleep"));
        thread::sleep(Duration::from_secs(3));
        until_state(&mut guest, "asleep")?;
        assert!(guest.monitor("wake")?.contains("goes on"));
        until_state(&mut guest, "running")?;
        guest.says("wait; tail -1 /tmp/count | grep -q 200")?;
        works(&mut guest, round, port, cpus)?;
        // Its clock knows of the time that it slept.
        assert!((now(&mut guest)? - ahead).abs() <= 2);
    }
    let dmesg = guest.says("dmesg")?;
    for bad in ["WARNING: CPU", "BUG:", "Call Trace", "not quiescent", "Cannot save"] {
        assert!(!dmesg.contains(bad), "{bad}: {dmesg}");
    }
    // It has forgotten nothing of what an operator may want.
    guest.monitor("powerdown")?;
    let finished = guest.finish(COMMAND)?;
    assert_eq!(finished.status, Some(0), "{finished:?}");
    assert!(std::fs::read(&disk).unwrap().starts_with(b"second\n\0\0"));
    Ok(())
}

#[test]
fn a_domain_sleeps_and_goes_on() -> Result<(), Error> {
    if guest_files(KERNEL).is_none() {
        return Ok(());
    }
    sleeps(domain(), 1)
}

#[test]
fn a_domain_of_a_newer_kernel_sleeps_with_two_cpus() -> Result<(), Error> {
    if guest_files(KERNEL_6_12).is_none() {
        return Ok(());
    }
    sleeps(domain().arg("--package", KERNEL_6_12), 2)
}

#[test]
fn a_sleep_is_called_off_and_a_power_button_wakes() -> Result<(), Error> {
    if guest_files(KERNEL).is_none() {
        return Ok(());
    }
    let mut guest = Guest::boot(&domain().cpus(2))?;
    guest.shell()?;
    // Whether it has seen the request or not: it does not sleep.
    for _ in 0..3 {
        guest.monitor("sleep")?;
        let told = guest.monitor("wake")?;
        assert!(told.contains("does not go to sleep") || told.contains("goes on"), "{told}");
        assert_eq!(guest.says("echo still he''re")?.trim(), "still here");
    }
    assert!(guest.monitor("wake")?.contains("not asleep"));
    guest.monitor("sleep")?;
    until_state(&mut guest, "asleep")?;
    guest.monitor("powerdown")?;
    assert_eq!(guest.says("echo awa''ke")?.trim(), "awake");
    // One that sleeps may start anew.
    guest.monitor("sleep")?;
    until_state(&mut guest, "asleep")?;
    guest.monitor("reset")?;
    guest.expect("Run /init", BOOT)?;
    guest.shell()?;
    guest.power_off()
}

#[test]
fn sleeps_that_are_called_off_follow_each_other() -> Result<(), Error> {
    if guest_files(KERNEL).is_none() {
        return Ok(());
    }
    let mut guest = Guest::boot(&domain().cpus(2))?;
    guest.shell()?;
    for round in 0..20 {
        // At some of these moments the kernel is on its way to what the first one asked for, and has
        // not seen the second.
        guest.send_bytes(b"\x01c")?;
        guest.expect("(sarang) ", COMMAND)?;
        guest.send_bytes(b"sleep\r")?;
        thread::sleep(Duration::from_millis(2 * round));
        guest.send_bytes(b"wake\rsleep\rwake\r\x01c")?;
        for _ in 0..4 {
            guest.expect("(sarang) ", COMMAND)?;
        }
        assert_eq!(guest.says("echo still he''re")?.trim(), "still here");
    }
    // On its way to sleep, it powers off all the same.
    guest.monitor("sleep")?;
    guest.monitor("powerdown")?;
    let finished = guest.finish(COMMAND)?;
    assert_eq!(finished.status, Some(0), "{finished:?}");
    Ok(())
}

#[test]
fn an_nmi_reaches_every_cpu() -> Result<(), Error> {
    if guest_files(KERNEL).is_none() {
        return Ok(());
    }
    let mut guest = Guest::boot(&domain().cpus(2))?;
    guest.shell()?;
    guest.says("echo 0 > /proc/sys/kernel/unknown_nmi_panic")?;
    let count = "awk '/NMI:/ { print $2 + 0, $3 + 0 }' /proc/interrupts";
    assert_eq!(guest.says(count)?.trim(), "0 0");
    assert!(guest.monitor("nmi")?.contains("sent"));
    // While it idles, and in the middle of a program.
    assert_eq!(guest.says(&format!("sleep 1; {count}"))?.trim(), "1 1");
    assert!(guest.says("dmesg")?.contains("NMI received for unknown reason"));
    guest.says("for i in 1 2; do (while true; do :; done) & done; sleep 1")?;
    assert!(guest.monitor("nmi")?.contains("sent"));
    assert_eq!(guest.says(&format!("sleep 2; {count}"))?.trim(), "2 2");
    guest.says("kill %1 %2")?;
    // Of two CPUs that both panic, one was seen in `smp_call_function_many_cond` for ever, while the
    // other stood in `nmi_panic_self_stop`: it waits for a call that the other does not see any more.
    guest.says("echo 0 > /sys/devices/system/cpu/cpu1/online")?;
    guest.says("echo 1 > /proc/sys/kernel/unknown_nmi_panic")?;
    // At rest: an NMI in the middle of its console's lock would leave its panic waiting for that.
    thread::sleep(Duration::from_secs(1));
    guest.monitor("nmi")?;
    guest.expect("NMI: Not continuing", COMMAND)?;
    Ok(())
}
