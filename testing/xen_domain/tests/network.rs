//! The driver of a stock kernel with the network back end, over the network of this process.

mod common;

use common::Guest;
use device::Device;
use nic::Mac;
use nic_user::{Config, UserNet};
use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::{Arc, mpsc},
    thread,
};
use testkit::KERNEL_6_12;
use xen_front::Backend;
use xen_net::XenNet;

const SIZE: usize = 3_000_000;

fn contents() -> Vec<u8> {
    (0..SIZE as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// Sends the file to each who comes; the port.
fn serve() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.unwrap().write_all(&contents());
        }
    });
    port
}

/// Takes what one sends.
fn receive() -> (u16, mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let mut all = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut all).unwrap();
        let _ = tell.send(all);
    });
    (port, told)
}

fn counter(card: &XenNet, name: &str) -> u64 {
    card.counters().into_iter().find(|(key, _)| *key == name).map_or(0, |(_, value)| value)
}

/// Gets an address, asks who is there, and carries a file in and out.
fn has_a_network(package: &str, vcpus: u32) {
    let network = UserNet::start(Config { host_loopback: true, ..Config::default() }, 0).unwrap();
    let mac = Mac([0x52, 0x54, 0, 0xaa, 0xbb, 0xcc]);
    let config = xen_net::Config { handle: 0, mac, mtu: 1500, queues: 4 };
    let card = XenNet::new(config, network.clone());
    network.resume();
    let backends: [Arc<dyn Backend>; 1] = [card.clone()];
    let Some(mut guest) = Guest::boot(package, vcpus, 256, &backends) else { return };
    // What the kernel says comes between what is asked.
    guest.says("dmesg -n 1 && modprobe xen_netfront");
    guest.says("until ip link set eth0 up; do sleep 1; done");
    assert_eq!(guest.value("cat /sys/class/net/eth0/address"), mac.to_string());
    let queues = guest.value("ls -d /sys/class/net/eth0/queues/[rt]x-? | wc -l");
    assert_eq!(queues, (2 * vcpus).to_string());
    for line in [
        "echo '[ $1 = bound ] || exit 0' > /tmp/dhcp",
        "echo 'ifconfig $interface $ip netmask $subnet' >> /tmp/dhcp",
        "echo 'route add default gw $router' >> /tmp/dhcp",
        "sed -i '1i #!/bin/sh' /tmp/dhcp; chmod +x /tmp/dhcp",
    ] {
        guest.says(line);
    }
    let told = guest.says("udhcpc -i eth0 -n -q -t 20 -s /tmp/dhcp 2>&1");
    assert!(told.contains("lease of 10.0.2.15 obtained from 10.0.2.2"), "{told}");
    guest.says("ping -c 2 -s 1400 10.0.2.2");
    guest.says("ping -c 2 -s 5000 10.0.2.2");

    // A file in, and out again; either way in fewer frames than its packets have.
    let packets = (SIZE / 1460) as u64;
    let before = counter(&card, "frames received");
    guest.says(&format!("nc 10.0.2.2 {} < /dev/null > /tmp/file", serve()));
    let received = counter(&card, "frames received") - before;
    assert_eq!(guest.value("wc -c < /tmp/file"), SIZE.to_string());
    let (port, told) = receive();
    let before = counter(&card, "frames sent");
    // Which writes so much at once that there is something to be cut.
    guest.says(&format!("nc 10.0.2.2 {port} -e dd if=/tmp/file bs=64k"));
    assert!(told.recv().unwrap() == contents(), "what went in and out again is the same");
    let sent = counter(&card, "frames sent") - before;
    eprintln!("{package}: {received} frames in, {sent} out, of {packets} packets");
    assert!(received < packets / 2 && sent < packets / 2, "{received} in, {sent} out");
    for name in ["frames dropped", "rings that the driver broke"] {
        assert_eq!(counter(&card, name), 0, "{name}");
    }

    // The driver lets go, and comes again.
    guest.says("cd /sys/bus/xen/drivers/vif && echo vif-0 > unbind && echo vif-0 > bind");
    guest.says("until ip link set eth0 up; do sleep 1; done");
    guest.says("ifconfig eth0 10.0.2.15 netmask 255.255.255.0 && ping -c 1 10.0.2.2");
    let faults = guest.value("dmesg | grep -cE 'BUG:|Oops|WARNING: CPU|net eth0:' || true");
    assert_eq!(faults, "0", "{}", guest.says("dmesg"));
    guest.power_off();
}

#[test]
fn debian_6_1_with_one_queue() {
    has_a_network("linux-image-6.1.0-*-cloud-amd64", 1);
}

#[test]
fn debian_6_12_with_two_queues() {
    has_a_network(KERNEL_6_12, 2);
}
