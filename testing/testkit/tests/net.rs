//! The network of a stock kernel: its own driver and a busybox's clients, against this host.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};
use testkit::{COMMAND, Error, Guest, KERNEL_FULL, Options, guest_files};

const SIZE: usize = 3_000_000;

fn here() -> bool {
    guest_files("linux-image-6.1.0-*-cloud-amd64").is_some()
}

/// A guest with an address, which it got by DHCP.
fn boot(options: &Options) -> Result<Guest, Error> {
    boot_with(options, "modprobe virtio_net && modprobe virtio_pci")
}

fn boot_with(options: &Options, driver: &str) -> Result<Guest, Error> {
    let mut guest = Guest::boot(options)?;
    guest.shell()?;
    guest.says(driver)?;
    guest.says("until ip link set eth0 up; do sleep 1; done")?;
    for line in [
        "echo '[ $1 = bound ] || exit 0' > /tmp/dhcp",
        "echo 'ifconfig $interface $ip netmask $subnet' >> /tmp/dhcp",
        "echo 'route add default gw $router; echo nameserver $dns > /etc/resolv.conf' >> /tmp/dhcp",
        "sed -i '1i #!/bin/sh' /tmp/dhcp; chmod +x /tmp/dhcp",
    ] {
        guest.says(line)?;
    }
    let told = guest.says("udhcpc -i eth0 -n -q -t 20 -s /tmp/dhcp 2>&1")?;
    assert!(told.contains("lease of 10.0.2.15 obtained from 10.0.2.2"), "{told}");
    Ok(guest)
}

fn contents() -> Vec<u8> {
    (0..SIZE as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// Answers requests for a file by HTTP, whatever its name; the port.
fn serve_http() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                request.push(byte[0]);
            }
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {SIZE}\r\n\r\n");
            let _ = stream.write_all(head.as_bytes());
            let _ = stream.write_all(&contents());
        }
    });
    port
}

/// Takes one connection and everything that comes over it, then says how much that was.
fn serve_upload() -> (u16, mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        writeln!(stream, "got {}", all.len()).unwrap();
        let _ = tell.send(all);
    });
    (port, told)
}

/// A file into the guest and out again.
fn transfer(guest: &mut Guest) -> Result<(), Error> {
    let http = serve_http();
    guest.says(&format!("wget -q -O /tmp/file http://10.0.2.2:{http}/file"))?;
    assert_eq!(guest.says("wc -c < /tmp/file")?, SIZE.to_string());
    let (upload, told) = serve_upload();
    let reply = guest.says(&format!("nc 10.0.2.2 {upload} < /tmp/file"))?;
    assert_eq!(reply, format!("got {SIZE}"), "the end of one side is not that of the other");
    assert!(told.recv().unwrap() == contents(), "what went in and out again is the same");
    Ok(())
}

#[test]
fn files_come_and_go() -> Result<(), Error> {
    if !here() {
        return Ok(());
    }
    let options = Options::default().cpus(2).arg("--net", "user,loopback,mac=52:54:00:aa:bb:cc");
    let mut guest = boot(&options)?;
    assert_eq!(guest.says("cat /sys/class/net/eth0/address")?, "52:54:00:aa:bb:cc");
    assert_eq!(guest.says("cat /sys/class/net/eth0/mtu")?, "1500");
    // A pair of queues for each CPU, with interrupts of their own.
    assert_eq!(guest.says("ls -d /sys/class/net/eth0/queues/[rt]x-? | wc -l")?, "4");
    assert_eq!(guest.says("grep -cE 'virtio.-(input|output)' /proc/interrupts")?, "4");
    for cpu in ["1", "2"] {
        guest.says(&format!("taskset {cpu} ping -c 1 10.0.2.2"))?;
    }
    // VLANs are filtered, and a card that was moved is announced: features of the driver's.
    let features = guest.says("cat /sys/class/net/eth0/device/features")?;
    for bit in [19, 21, 22] {
        assert_eq!(features.as_bytes().get(bit), Some(&b'1'), "bit {bit} of {features}");
    }
    let prefix =
        "until ip -6 addr show eth0 | grep -q 'fd53:6172:616e:0:.*global'; do sleep 1; done";
    guest.says(prefix)?;
    transfer(&mut guest)?;

    // What nobody serves, and what a guest may not reach.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (text, code) = guest.command(&format!("nc 10.0.2.2 {closed} 2>&1"), COMMAND)?;
    assert!(code != 0 && text.contains("refused"), "{text}");
    let (text, code) = guest.command("nc 169.254.169.254 80 2>&1", COMMAND)?;
    assert!(code != 0 && text.contains("refused"), "{text}");
    guest.power_off()
}

#[test]
fn a_card_whose_registers_are_in_memory_carries_files() -> Result<(), Error> {
    if !here() {
        return Ok(());
    }
    let options = Options::default().cpus(2).arg("--virtio", "mmio").arg("--net", "user,loopback");
    let mut guest = boot_with(&options, "modprobe virtio_net && modprobe virtio_mmio")?;
    let place = guest.says("readlink -f /sys/class/net/eth0/device")?;
    assert!(place.contains("/LNRO0005:00/"), "{place}");
    transfer(&mut guest)?;
    guest.power_off()
}

/// The driver that a stock kernel has for Intel's controllers.
#[test]
fn an_e1000_carries_files() -> Result<(), Error> {
    if guest_files(KERNEL_FULL).is_none() {
        return Ok(());
    }
    let options = Options::default()
        .cpus(2)
        .arg("--package", KERNEL_FULL)
        .arg("--net", "user,model=e1000,loopback,mac=52:54:00:aa:bb:cc");
    let mut guest = boot_with(&options, "modprobe e1000")?;
    assert_eq!(guest.says("cat /sys/class/net/eth0/address")?, "52:54:00:aa:bb:cc");
    assert_eq!(guest.says("cat /sys/class/net/eth0/speed")?, "1000");
    let bound = guest.says("readlink /sys/class/net/eth0/device/driver")?;
    assert!(bound.ends_with("/e1000"), "{bound}");
    guest.says("ping -c 1 10.0.2.2")?;
    transfer(&mut guest)?;
    // A VLAN of its own, a group, long frames, and all of them.
    guest.says("ip link set eth0 mtu 9000 && ip link set eth0 promisc on")?;
    guest.says("until [ $(cat /sys/class/net/eth0/operstate) = up ]; do sleep 1; done")?;
    transfer(&mut guest)?;
    assert_eq!(guest.says("dmesg | grep -ciE 'e1000.*(hang|reset adapter|fail)' || true")?, "0");
    let stats = guest.monitor("stats")?;
    assert!(stats.contains("e1000 in slot"), "{stats}");
    guest.power_off()
}

#[test]
fn a_forward_reaches_a_server_of_the_guest() -> Result<(), Error> {
    if !here() {
        return Ok(());
    }
    let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let net = format!("user,forward=tcp:{at}-:80");
    let mut guest = boot(&Options::default().arg("--net", &net))?;
    guest.says("mkdir /tmp/www; seq 1 100000 > /tmp/www/numbers")?;
    guest.says("{ while true; do nc -l -p 80 < /tmp/www/numbers; done > /tmp/got 2>&1 & }")?;
    let got = call(at);
    let numbers: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    assert!(got == numbers, "{} bytes", got.len());
    assert_eq!(guest.says("head -n 1 /tmp/got")?, "from outside");
    guest.power_off()
}

/// Calls until the guest's server answers.
fn call(at: SocketAddr) -> String {
    let limit = Instant::now() + COMMAND;
    loop {
        let mut stream = TcpStream::connect(at).unwrap();
        let mut got = String::new();
        // The guest's `nc` ends when its peer does, so this side stays open.
        let sent = stream.write_all(b"from outside\n");
        if sent.and_then(|()| stream.read_to_string(&mut got)).is_ok() && !got.is_empty() {
            return got;
        }
        assert!(Instant::now() < limit, "the guest's server does not answer");
        thread::sleep(Duration::from_millis(200));
    }
}
