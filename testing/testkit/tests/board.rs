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
    // The clock's periodic interrupt is the event timer's second one's now.
    let alarm = "echo 0 > /sys/class/rtc/rtc0/wakealarm; echo +2 > /sys/class/rtc/rtc0/wakealarm; \
                 sleep 4; awk '/rtc0$/ { print $2 > 0 }' /proc/interrupts";
    assert_eq!(guest.says(alarm)?, "1");
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
