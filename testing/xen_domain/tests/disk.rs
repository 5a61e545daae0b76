//! The driver of a stock kernel with the disk back end: several queues, and several programs at once.

mod common;

use common::Guest;
use device::Device;
use disk::{Disk, Memory, Shape};
use std::sync::Arc;
use testkit::KERNEL_6_12;
use xen_blk::XenBlk;
use xen_front::Backend;

const MIB: usize = 1 << 20;
/// What each program writes, and where: one after the other.
const SIZE: usize = 12 * MIB;
const PROGRAMS: usize = 4;

fn counter(disk: &XenBlk, name: &str) -> u64 {
    let found = disk.counters().into_iter().find(|(key, _)| *key == name);
    found.unwrap_or_else(|| panic!("no counter {name}")).1
}

/// What programs write at once comes back, past the kernel's cache, in requests of all lengths; and
/// is where it belongs.
fn keeps_what_is_written(package: &str, vcpus: u32) {
    let memory = Arc::new(Memory::new(Shape::of_bytes((PROGRAMS * SIZE) as u64)));
    let config = xen_blk::Config { index: 0, queues: 4, cdrom: false, persistent_grants: true };
    let disk = XenBlk::new(&config, memory.clone());
    let backends: [Arc<dyn Backend>; 1] = [disk.clone()];
    let Some(mut guest) = Guest::boot(package, vcpus, 512, &backends) else { return };
    guest.says("dmesg -n 1; modprobe xen_blkfront; until [ -b /dev/xvda ]; do sleep 1; done");
    assert_eq!(guest.value("ls /sys/block/xvda/mq | wc -l"), vcpus.to_string());
    let mib = SIZE / MIB;
    // Of the kernel's own, which its cache gathers, and of the programs', as they are.
    for (round, flags) in [("cached", ""), ("direct", "direct")] {
        guest.says(&format!("dd if=/dev/urandom of=/tmp/noise bs=1M count={mib} 2> /dev/null"));
        let (to, from) = match flags {
            "" => (String::new(), String::new()),
            flags => (format!("oflag={flags}"), format!("iflag={flags}")),
        };
        // Four programs, with blocks of 4 to 256 KiB.
        let each = "for n in 0 1 2 3; do size=$((4096 << (2 * n)));";
        guest.says(&format!(
            "{each} dd if=/tmp/noise of=/dev/xvda bs=$size seek=$(({SIZE} / size * n)) \
             conv=fsync {to} 2> /dev/null & done; wait; sync; echo 3 > /proc/sys/vm/drop_caches"
        ));
        let same = guest.says(&format!(
            "{each} (dd if=/dev/xvda bs=$size skip=$(({SIZE} / size * n)) count=$(({SIZE} / size)) \
             {from} 2> /dev/null | cmp - /tmp/noise && echo same) & done; wait"
        ));
        assert_eq!(same.matches("same\n").count(), PROGRAMS, "{round}: {same}");
        let mut parts = (0..PROGRAMS).map(|n| {
            let mut bytes = vec![0; SIZE];
            memory.read((n * SIZE) as u64, &mut bytes).unwrap();
            bytes
        });
        let first = parts.next().unwrap();
        assert!(first.iter().any(|byte| *byte != 0), "{round}");
        assert!(parts.all(|part| part == first), "{round}: all have written the same");
    }
    assert!(memory.flushes() > 0);
    for name in ["failed requests", "guest errors", "failures"] {
        assert_eq!(counter(&disk, name), 0, "{name}");
    }
    let faults = guest.value("dmesg | grep -cE 'BUG:|Oops|WARNING: CPU|I/O error' || true");
    assert_eq!(faults, "0", "{}", guest.says("dmesg"));
    guest.power_off();
}

#[test]
fn debian_6_1_with_a_queue() {
    keeps_what_is_written("linux-image-6.1.0-*-cloud-amd64", 1);
}

#[test]
fn debian_6_12_with_four_queues() {
    keeps_what_is_written(KERNEL_6_12, 4);
}
