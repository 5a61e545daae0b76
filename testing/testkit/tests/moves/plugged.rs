//! A guest to which a SCSI disk, a balloon, a keyboard and a channel come while it runs, and which
//! moves while it takes them, and while it uses them.

use crate::harness::*;
use byte_stream::{Input, Output};
use disk_raw::RawDisk;
use display::Key;
use machine::{ChannelPart, DiskPart, Machine, Plug};
use std::{
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use testkit::{COMMAND, KERNEL_FULL, guest_files};
use vm_spec::DiskBus;

/// Each line that goes over the channel comes back. `MOVES` keys are pressed meanwhile.
const WORK: &str = "/etc/devices
modprobe -a virtio_scsi sd_mod virtio_balloon virtio_input evdev virtio_console
echo re''ady
until [ -b /dev/sda ]; do sleep 1; done
until grep -x agent /sys/class/virtio-ports/*/name; do sleep 1; done
until grep keyboard /sys/class/input/event*/device/name; do sleep 1; done
until ls /sys/bus/virtio/drivers/virtio_balloon/virtio*; do sleep 1; done
K=$(grep -l virtio.keyboard /sys/class/input/event*/device/name | cut -d / -f 5)
until [ -c /dev/input/$K ]; do sleep 1; done
(head -c 480 /dev/input/$K > /tmp/events) &
exec 3<>/dev/$(basename $(dirname $(grep -lx agent /sys/class/virtio-ports/*/name)))
echo be''gun
for i in $(seq 0 29); do
    dd if=/dev/urandom of=/tmp/part bs=64k count=4 2> /dev/null
    cat /tmp/part >> /tmp/all
    dd if=/tmp/part of=/dev/sda bs=64k seek=$((i * 4)) conv=fsync 2> /dev/null
    echo line-$i >&3; read -r l <&3; echo $l >> /tmp/lines
    echo done-$i
done
wait
od -An -v -tx1 -w24 /tmp/events | cut -c 50- | sort | uniq -c | sed 's/^ */events /'
seq 0 29 | sed s/^/line-/ | cmp - /tmp/lines && echo lines-sa''me
echo 3 > /proc/sys/vm/drop_caches
head -c 7864320 /dev/sda | cmp - /tmp/all && echo disk-sa''me
sha256sum < /tmp/all";

const SIZE: u64 = 30 * 4 * (64 << 10);
const BALLOON: u64 = 24 << 20;
/// Those before which a key is pressed.
const MOVES: usize = 5;

/// Sends back what comes, to the machine that the guest is on.
#[derive(Default)]
struct Echo(Mutex<Option<Arc<dyn Input>>>);

impl Output for Echo {
    fn write(&self, bytes: &[u8]) {
        let input = self.0.lock().unwrap().clone().unwrap();
        assert_eq!(input.receive(bytes), bytes.len());
    }
}

fn plugs(image: &Arc<Image>) -> Vec<Plug> {
    let disk = Arc::new(RawDisk::open(&image.0, false).unwrap());
    let disk = DiskPart { disk, serial: String::new(), bus: DiskBus::Scsi };
    let echo = Arc::new(Echo::default());
    let channel = ChannelPart { name: "agent".into(), output: echo.clone(), peer: true };
    let carry = Box::new(move |input| {
        *echo.0.lock().unwrap() = Some(input);
        Ok(Box::new(()) as machine::Keep)
    });
    vec![Plug::Scsi, Plug::Disk(disk), Plug::Balloon, Plug::Keyboard, Plug::Channel(channel, carry)]
}

fn before(count: usize, machine: &Machine) {
    let handle = machine.handle();
    if count == 0 {
        assert_eq!(handle.balloon(MEMORY - BALLOON), Ok(true));
        return;
    }
    [true, false].into_iter().for_each(|down| handle.seat().key(Key::LEFT_ALT, down));
    let limit = Instant::now() + COMMAND;
    loop {
        let info = handle.balloon_info().unwrap().unwrap();
        assert_eq!(info.target, BALLOON, "before move {count}");
        if info.actual == BALLOON {
            return;
        }
        assert!(count == 1 && Instant::now() < limit, "before move {count}: {info}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_guest_moves_with_devices_that_came_late() {
    let Some(files) = guest_files(KERNEL_FULL) else { return };
    let image = Arc::new(Image::new("moves-late", SIZE));
    let disk = image.clone();
    let world = World {
        disks: Vec::new(),
        plugs: Box::new(move || plugs(&disk)),
        before,
        ..World::new(files, Image::new("moves-late-none", 0), WORK)
    };
    let words = ["ready", "begun", "done-3\r", "done-9\r", "done-10\r", "done-17\r"];
    assert_eq!(words.len(), MOVES + 1);
    world.run(&words.map(|word| {
        let by = if word.contains("-9") { By::Interpreter } else { By::Translator };
        (word, by)
    }));
    let said = world.text.all();
    let presses: Vec<&str> =
        said.lines().filter_map(|line| line.trim().strip_prefix("events ")).collect();
    let keys =
        ["10 00 00 00 00 00 00 00 00", "5 01 00 38 00 00 00 00 00", "5 01 00 38 00 01 00 00 00"];
    assert_eq!(presses, keys, "{said}");
    assert!(said.contains("lines-same") && said.contains("disk-same"), "{said}");
    let sum = Command::new("sha256sum").arg(&image.0).output().unwrap();
    let sum = String::from_utf8_lossy(&sum.stdout).into_owned();
    assert!(said.contains(sum.split_whitespace().next().unwrap()), "the host's file differs");
}
