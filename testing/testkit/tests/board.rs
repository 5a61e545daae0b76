//! Parts of the board that a stock kernel uses when it is asked to.

use testkit::{Error, Guest, Options, guest_files};

const CLOCKSOURCE: &str = "/sys/devices/system/clocksource/clocksource0";

fn here() -> bool {
    guest_files("linux-image-6.1.0-*-cloud-amd64").is_some()
}

fn boot(append: &str) -> Result<Guest, Error> {
    let mut guest = Guest::boot(&Options::default().append(append))?;
    guest.shell()?;
    Ok(guest)
}

#[test]
fn the_event_timer_is_there_and_not_preferred() -> Result<(), Error> {
    if !here() {
        return Ok(());
    }
    let mut guest = boot("")?;
    let current = guest.says(&format!("cat {CLOCKSOURCE}/current_clocksource"))?;
    assert!(["tsc", "kvm-clock"].contains(&&*current), "{current}");
    let all = guest.says(&format!("cat {CLOCKSOURCE}/available_clocksource"))?;
    assert!(all.split(' ').any(|name| name == "hpet"), "{all}");
    guest.power_off()
}

const ALARM: &str = "echo +2 > /sys/class/rtc/rtc0/wakealarm; \
                     while [ \"$(cat /sys/class/rtc/rtc0/wakealarm)\" ]; do sleep 1; done; echo rang";

/// The event timer has taken the place of the clock's interrupt, so ACPI tells of alarms.
#[test]
fn alarms_of_the_clock_are_told_by_acpi() -> Result<(), Error> {
    if !here() {
        return Ok(());
    }
    let mut guest = boot("")?;
    let told = "awk '{ print $1 }' /sys/firmware/acpi/interrupts/ff_rt_clk";
    let before: u64 = guest.says(told)?.parse().unwrap();
    assert_eq!(guest.says(ALARM)?, "rang");
    let after: u64 = guest.says(told)?.parse().unwrap();
    assert!(after > before, "{before} {after}");
    guest.power_off()
}

#[test]
fn alarms_of_the_clock_interrupt_without_the_event_timer() -> Result<(), Error> {
    if !here() {
        return Ok(());
    }
    let mut guest = boot("hpet=disable")?;
    let all = guest.says(&format!("cat {CLOCKSOURCE}/available_clocksource"))?;
    assert!(!all.contains("hpet"), "{all}");
    let interrupts = "awk '/ rtc0$/ { print $2 }' /proc/interrupts";
    let before: u64 = guest.says(interrupts)?.parse().unwrap();
    assert_eq!(guest.says(ALARM)?, "rang");
    let after: u64 = guest.says(interrupts)?.parse().unwrap();
    assert!(after > before, "{before} {after}");
    guest.power_off()
}

/// With no other timer than that, whose interrupts come in the place of the PIT's.
#[test]
fn the_event_timer_keeps_time() -> Result<(), Error> {
    if !here() {
        return Ok(());
    }
    let mut guest = boot("clocksource=hpet hpet=force noapictimer no-kvmclock tsc=unstable")?;
    assert_eq!(guest.says(&format!("cat {CLOCKSOURCE}/current_clocksource"))?, "hpet");
    let count = "awk '/ timer$/ { print $2 }' /proc/interrupts";
    let before: u64 = guest.says(count)?.parse().unwrap();
    let slept = guest.says(
        "a=$(cut -d. -f1 /proc/uptime); sleep 3; b=$(cut -d. -f1 /proc/uptime); echo $((b - a))",
    )?;
    assert!(slept.parse::<u32>().unwrap() >= 2, "{slept}");
    let after: u64 = guest.says(count)?.parse().unwrap();
    assert!(after > before, "{before} {after}");
    guest.power_off()
}

#[test]
fn the_sleep_button_reaches_the_kernel() -> Result<(), Error> {
    if !here() {
        return Ok(());
    }
    let mut guest = boot("")?;
    let name = "until grep -q 'Sleep Button' /proc/bus/input/devices; do sleep 1; done; echo there";
    assert_eq!(guest.says(name)?, "there");
    let interrupts = "awk '/ acpi$/ { print $2 }' /proc/interrupts";
    let before: u64 = guest.says(interrupts)?.parse().unwrap();
    let told = guest.monitor("sleep")?;
    assert!(told.contains("pressed"), "{told}");
    let after = guest
        .says(&format!("until [ $({interrupts}) -gt {before} ]; do sleep 1; done; echo told"))?;
    assert_eq!(after, "told");
    guest.power_off()
}

fn identity(guest: &mut Guest, name: &str) -> Result<String, Error> {
    guest.says(&format!("cat /sys/class/dmi/id/{name}"))
}

#[test]
fn the_machine_is_who_it_is_told_to_be() -> Result<(), Error> {
    if !here() {
        return Ok(());
    }
    let uuid = "00112233-4455-6677-8899-aabbccddeeff";
    let options = Options::default()
        .memory("640M")
        .arg("--smbios", &format!("type=1,manufacturer=Acme,, Ltd,serial=S-1,uuid={uuid},family=F"))
        .arg("--smbios", "type=2,product=B-1,asset=A-1")
        .arg("--smbios", "type=3,serial=C-1")
        .arg("--smbios", "type=0,vendor=V,release=3.14")
        .arg("--smbios", "type=11,value=io.example:one");
    let mut guest = Guest::boot(&options)?;
    guest.shell()?;
    for (name, text) in [
        ("sys_vendor", "Acme, Ltd"),
        ("product_name", "Virtual Machine"),
        ("product_serial", "S-1"),
        ("product_uuid", uuid),
        ("product_family", "F"),
        ("board_name", "B-1"),
        ("board_asset_tag", "A-1"),
        ("chassis_serial", "C-1"),
        ("bios_vendor", "V"),
        ("bios_release", "3.14"),
    ] {
        assert_eq!(identity(&mut guest, name)?, text, "{name}");
    }
    let count = guest.says("strings /sys/firmware/dmi/tables/DMI | grep -c 'io.example:one'")?;
    assert_eq!(count, "1");
    assert!(guest.says("dmesg")?.contains("DMI: Acme, Ltd Virtual Machine/B-1"));
    guest.power_off()
}
