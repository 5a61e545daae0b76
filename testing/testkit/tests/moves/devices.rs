//! A guest with the devices of an older PC and those beside a virtio disk and card: it writes to a
//! SCSI and a SATA disk, has a TCP connection open through an e1000, has its balloon inflated, and
//! takes its time from the HPET.

use crate::{harness::*, peer::Peer};
use machine::Machine;
use std::{
    fs,
    time::{Duration, Instant},
};
use testkit::{COMMAND, KERNEL_FULL, guest_files};
use vm_spec::{DiskBus, NetModel};

/// All that is written to the disks goes over the connection and comes back.
const WORK: &str = "/etc/devices
modprobe -a ahci sd_mod virtio_scsi e1000 virtio_balloon
for d in sda sdb; do until [ -b /dev/$d ]; do sleep 1; done; echo disks; done
until ip link set eth0 up; do sleep 1; done; ip addr add 10.9.0.2/24 dev eth0
sed s/^/clock-/ /sys/devices/system/clocksource/clocksource0/current_clocksource
echo be''gun
for i in $(seq 0 29); do
    dd if=/dev/urandom of=/tmp/part bs=64k count=4 2> /dev/null
    cat /tmp/part >> /tmp/all
    for d in sda sdb; do dd if=/tmp/part of=/dev/$d bs=64k seek=$((i * 4)) conv=fsync 2> /dev/null; done
    cat /tmp/part
    echo done-$i >&2
done | nc 10.9.0.1 7 > /tmp/back
echo 3 > /proc/sys/vm/drop_caches
for d in sda sdb; do head -c 7864320 /dev/$d | cmp - /tmp/all && echo $d-sa''me; done
cmp /tmp/back /tmp/all && echo connection-sa''me
sed s/^/clock-now-/ /sys/devices/system/clocksource/clocksource0/current_clocksource
sha256sum < /tmp/all";

const SIZE: u64 = 30 * 4 * (64 << 10);
const BALLOON: u64 = 24 << 20;

/// The balloon is asked for before the first move, and is what was asked for at every later one.
fn balloon(count: usize, machine: &Machine) {
    let handle = machine.handle();
    if count == 0 {
        assert_eq!(handle.balloon(MEMORY - BALLOON), Ok(true));
        return;
    }
    let limit = Instant::now() + COMMAND;
    loop {
        let info = handle.balloon_info().unwrap().unwrap();
        assert_eq!(info.target, BALLOON, "before move {count}");
        if info.actual == BALLOON {
            return;
        }
        // It is inflated by the second move, and stays so.
        assert!(count == 1 && Instant::now() < limit, "before move {count}: {info}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn sum(image: &Image) -> String {
    let sum = std::process::Command::new("sha256sum").arg(&image.0).output().unwrap();
    String::from_utf8_lossy(&sum.stdout).split_whitespace().next().unwrap().into()
}

#[test]
fn a_guest_moves_with_the_devices_of_an_older_pc() {
    let Some(files) = guest_files(KERNEL_FULL) else { return };
    let (scsi, sata) = (Image::new("moves-scsi", SIZE), Image::new("moves-sata", SIZE));
    let peer = Peer::start();
    let world = World {
        disks: vec![(scsi, DiskBus::Scsi), (sata, DiskBus::Sata)],
        peer: Some(peer.clone()),
        model: NetModel::E1000,
        balloon: true,
        options: "clocksource=hpet",
        before: balloon,
        ..World::new(files, Image::new("moves-none", 0), WORK)
    };
    world.run(&[
        ("begun", By::Translator),
        ("done-3\r", By::Translator),
        ("done-9\r", By::Interpreter),
        ("done-10\r", By::Translator),
        ("done-17\r", By::Translator),
        ("done-24\r", By::Translator),
    ]);
    let said = world.text.all();
    for mark in ["clock-hpet", "clock-now-hpet", "sda-same", "sdb-same", "connection-same"] {
        assert!(said.contains(mark), "no {mark}:\n{said}");
    }
    assert_eq!(peer.counted.lock().unwrap().1, SIZE);
    for (image, bus) in &world.disks {
        assert_eq!(fs::metadata(&image.0).unwrap().len(), SIZE);
        assert!(said.contains(&sum(image)), "the file of the {bus:?} disk differs");
    }
}
