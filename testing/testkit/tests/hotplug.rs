//! Devices that come and go under a stock kernel's own hot-plug driver.

use std::{
    fs,
    net::TcpListener,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};
use testkit::{BOOT, COMMAND, Error, Guest, Options, guest_files, status};

struct Image(PathBuf);

impl Image {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sarang-{name}-{}.img", std::process::id()));
        fs::write(&path, vec![0x5a; 4 << 20]).unwrap();
        Self(path)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Removes what is behind a port, and waits until the guest has let go of it.
fn remove(guest: &mut Guest, port: usize) -> Result<(), Error> {
    assert!(guest.monitor(&format!("device remove {port}"))?.contains("asked"));
    let limit = Instant::now() + COMMAND;
    let empty = format!("port {port}  empty");
    while !guest.monitor("device list")?.contains(&empty) {
        assert!(Instant::now() < limit, "the guest does not let go");
        thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

#[test]
fn devices_come_and_go() -> Result<(), Error> {
    if guest_files("linux-image-6.1.0-*-cloud-amd64").is_none() {
        return Ok(());
    }
    let image = Image::new("plugged");
    let mut guest = Guest::boot(&Options::default().cpus(2).arg("--ports", "2"))?;
    guest.shell()?;
    guest.says("modprobe virtio_pci && modprobe virtio_blk && modprobe virtio_net")?;
    let none = "! ls /sys/block | grep -q vd";
    guest.says(none)?;

    // A disk, twice in the same place.
    for round in 1..=2 {
        let add = format!("device add disk {},serial=ROUND-{round}", image.0.display());
        let answer = guest.monitor(&add)?;
        assert!(answer.contains("behind port 0"), "{answer}");
        guest.command("until [ -b /dev/vda ]; do sleep 1; done", BOOT)?;
        assert_eq!(guest.says("cat /sys/block/vda/serial")?, format!("ROUND-{round}"));
        assert_eq!(guest.says("head -c 100 /dev/vda | tr -d Z | wc -c")?, "0");
        let write = "dd of=/dev/vda bs=512 conv=fsync,notrunc 2> /dev/null";
        guest.says(&format!("echo round {round} | {write} seek={round}"))?;
        let again = guest.monitor(&format!("device add disk {}", image.0.display()))?;
        assert!(again.contains("another program uses it"), "{again}");
        remove(&mut guest, 0)?;
        guest.command(&format!("until {none}; do sleep 1; done"), COMMAND)?;
        let at = 512 * round;
        assert_eq!(fs::read(&image.0).unwrap()[at..at + 8], *format!("round {round}\n").as_bytes());
    }

    // A network card and an entropy device side by side; there is no third port.
    let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let answer = guest.monitor(&format!("device add net user,forward=tcp:{at}-:80"))?;
    assert!(answer.contains("behind port 0"), "{answer}");
    assert!(guest.monitor("device add rng")?.contains("behind port 1"));
    assert!(guest.monitor("device add rng")?.contains("no port that is free"));
    assert!(guest.monitor("device add disk /nonexistent")?.contains("no such file"));
    guest.command("until ip link set eth0 up; do sleep 1; done", BOOT)?;
    guest.says("ip addr add 10.0.2.15/24 dev eth0; ping -c 1 10.0.2.2")?;
    guest.says("modprobe virtio_rng; head -c 16 /dev/hwrng | wc -c")?;
    remove(&mut guest, 0)?;
    guest.says("! ip link show eth0 2> /dev/null")?;
    guest.says("head -c 16 /dev/hwrng | wc -c")?;
    assert!(TcpListener::bind(at).is_ok(), "the forward ended with the card");

    // What is plugged in is there after a reset, too.
    guest.send("reboot -f")?;
    guest.shell()?;
    let class = "cat /sys/bus/pci/devices/*:02:00.0/device";
    assert!(guest.says(class)?.ends_with("0x1044"));
    remove(&mut guest, 1)?;
    guest.power_off()
}

#[test]
fn a_machine_without_ports_says_so() -> Result<(), Error> {
    let mut guest = Guest::boot(&Options::default().built_in(""))?;
    guest.expect("Type help", COMMAND)?;
    assert!(guest.monitor("device add rng")?.contains("--ports N"));
    assert!(guest.monitor("device list")?.contains("--ports N"));
    assert!(guest.monitor("device remove 0")?.contains("nothing is behind"));
    guest.send_bytes(b"\x01x")?;
    assert_eq!(guest.finish(COMMAND)?.status, Some(status::QUIT));
    Ok(())
}
