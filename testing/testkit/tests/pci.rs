//! PCI as a stock kernel finds it.

use testkit::{COMMAND, Error, Guest, Options, guest_files};

#[test]
fn the_host_bridge_is_found() -> Result<(), Error> {
    if guest_files("linux-image-6.1.0-*-cloud-amd64").is_none() {
        return Ok(());
    }
    let mut guest = Guest::boot(&Options::default())?;
    guest.shell()?;
    let (text, _) = guest.command("dmesg | grep -i -e pci", COMMAND)?;
    for line in [
        "PCI: MMCONFIG for domain 0000 [bus 00-00] at [mem 0xb0000000-0xb00fffff]",
        "pci_bus 0000:00: root bus resource [mem 0xc0000000-0xfebfffff window]",
        "pci 0000:00:00.0: [8086:29c0] type 00 class 0x060000",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    for trouble in ["conflict", "can't", "failed to assign", "no compatible bridge", "FW bug"] {
        assert!(!text.contains(trouble), "{trouble} in {text}");
    }
    let line = "cd /sys/bus/pci/devices/0000:00:00.0 && cat vendor device class | tr '\\n' ' '";
    let (text, _) = guest.command(line, COMMAND)?;
    assert_eq!(text.trim(), "0x8086 0x29c0 0x060000");
    guest.power_off()
}
