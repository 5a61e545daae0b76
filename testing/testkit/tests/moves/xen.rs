//! A Xen PV guest whose processes come and go.

use crate::harness::*;
use machine::{
    Machine, Sleep, State, Wake,
    engines::{self, Kind},
};
use std::{
    thread,
    time::{Duration, Instant},
};
use testkit::{BOOT, KERNEL_6_1_FULL, KERNEL_6_12, guest_files};
use vm_spec::GuestKind;

/// Programs on both CPUs, whose page tables are made and unmade all the time; each has its sum.
const WORK: &str = "echo be''gun
work() {
    for i in $(seq 0 24); do
        seq $i 20000 | sha256sum >> /tmp/sums-$1
        (for j in 1 2 3 4 5 6; do (exec true); done)
        sleep 0.02
        [ $1 = a ] && echo done-$i
    done
}
work a & work b & wait
cmp /tmp/sums-a /tmp/sums-b && echo sa''me
head -1 /tmp/sums-a
dmesg | grep -q FIFO[-]based && echo by-que''ues
cat /sys/hypervisor/type; nproc";

fn moves(files: assets::Guest, options: &'static str, before: fn(usize, &Machine)) {
    let world = World { options, before, ..world(files) };
    goes(&world);
}

fn world(files: assets::Guest) -> World {
    World {
        disks: Vec::new(),
        guest: GuestKind::XenPv,
        ..World::new(files, Image::new("moves-xen", 0), WORK)
    }
}

fn goes(world: &World) {
    let hops = ["begun", "done-1\r", "done-4\r", "done-5\r", "done-13\r", "done-20\r"];
    world.run(&hops.map(|word| {
        let by = if word.ends_with("-5\r") { By::Interpreter } else { By::Translator };
        (word, by)
    }));
    let text = &world.text;
    // seq 0 20000 | sha256sum
    let sum = "99007be34de0c85d";
    assert!(text.has(sum), "{}", text.all());
    assert_eq!(text.has("by-queues"), world.options.is_empty(), "{}", text.all());
    assert!(text.has("same") && text.has("done-24") && text.has("xen"), "{}", text.all());
}

#[test]
fn a_xen_pv_guest_with_event_channels_of_two_levels_moves() {
    let Some(files) = guest_files("linux-image-6.1.0-*-cloud-amd64") else { return };
    moves(files, "xen.fifo_events=0", |_, _| {});
}

#[test]
fn a_xen_pv_guest_of_a_newer_kernel_moves_without_some_of_its_memory() {
    let Some(files) = guest_files(KERNEL_6_12) else { return };
    moves(files, "", |count, machine| {
        machine.handle().balloon((if count % 2 == 0 { 150 } else { 192 }) << 20).unwrap();
    });
}

/// One CPU and four, with little memory and with more; with `SARANG_LONG` by each kernel.
#[test]
fn xen_pv_guests_of_any_size_move() {
    let long = std::env::var_os("SARANG_LONG").is_some();
    for kernel in ["linux-image-6.1.0-*-cloud-amd64", KERNEL_6_1_FULL, KERNEL_6_12] {
        for (cpus, memory) in [(1, 1 << 30), (4, 128 << 20), (4, 1 << 30), (1, 128 << 20)] {
            if long || (kernel == KERNEL_6_1_FULL && (cpus, memory) == (4, 128 << 20)) {
                let Some(files) = guest_files(kernel) else { return };
                eprintln!("{kernel}: {cpus} CPUs, {} MiB", memory >> 20);
                goes(&World { cpus, memory, ..world(files) });
            }
        }
    }
}

/// A disk that is written to all the time, and read at the end.
const DISK_WORK: &str = "modprobe xen_blkfront
until [ -b /dev/xvda ]; do sleep 0.1; done
echo be''gun
for i in $(seq 0 24); do
    echo line-$i- | dd of=/dev/xvda bs=512 seek=$i count=1 conv=notrunc,fsync,sync 2>&-
    echo done-$i
    sleep 0.05
done
echo 3 > /proc/sys/vm/drop_caches
for i in $(seq 0 24); do
    dd if=/dev/xvda bs=512 skip=$i count=1 2>&- | grep -q line-$i- || echo lo''st-$i
done
nproc; echo al''l-read";

fn fall_asleep(_: usize, machine: &Machine) {
    let handle = machine.handle();
    assert_eq!(handle.sleep_button().unwrap(), Sleep::Asked);
    let limit = Instant::now() + BOOT;
    while handle.info().unwrap().state != State::Asleep {
        assert!(Instant::now() < limit, "it does not fall asleep");
        thread::sleep(Duration::from_millis(20));
    }
}

fn wake_up(machine: &Machine) {
    let handle = machine.handle();
    assert_eq!(handle.info().unwrap().state, State::Asleep);
    thread::sleep(Duration::from_millis(200));
    assert_eq!(handle.info().unwrap().state, State::Asleep);
    assert_eq!(handle.wake().unwrap(), Wake::Woken);
}

#[test]
fn a_xen_pv_guest_moves_in_its_sleep() {
    let Some(files) = guest_files("linux-image-6.1.0-*-cloud-amd64") else { return };
    let world = World {
        guest: GuestKind::XenPv,
        before: fall_asleep,
        after: wake_up,
        ..World::new(files, Image::new("moves-xen-sleep", 1 << 20), DISK_WORK)
    };
    world.run(&["begun", "done-3\r", "done-9\r"].map(|word| (word, By::Translator)));
    let text = &world.text;
    assert!(text.has("all-read") && !text.has("lost-"), "{}", text.all());
    let bytes = std::fs::read(&world.disks[0].0.0).unwrap();
    for line in 0..25 {
        assert!(bytes[line * 512..].starts_with(format!("line-{line}-").as_bytes()), "{line}");
    }
}

/// What programs copy by is what their kernel saves (see `xen_kvm.rs`), and what each engine has.
const REGISTERS: &str =
    "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-RTM sysctl.kernel.modprobe=/none";

#[test]
fn a_xen_pv_guest_goes_from_one_engine_to_another() {
    let Some(files) = guest_files("linux-image-6.1.0-*-cloud-amd64") else { return };
    let kvm = match engines::open(Kind::Kvm) {
        Ok(kvm) => kvm,
        Err(error) => return println!("skipped: moves from and to kvm: {error}"),
    };
    let world = World {
        guest: GuestKind::XenPv,
        options: REGISTERS,
        cpus: 1,
        // It uses no more than what the CPU has that it starts with.
        first: By::Kvm,
        tsc_khz: Some(kvm.caps().tsc_khz),
        ..World::new(files, Image::new("moves-xen-engines", 1 << 20), DISK_WORK)
    };
    let hops = [
        ("begun", By::Translator),
        ("done-3\r", By::Kvm),
        ("done-5\r", By::Kvm),
        ("done-9\r", By::Interpreter),
        ("done-12\r", By::Kvm),
        ("done-15\r", By::Translator),
    ];
    world.run(&hops);
    let text = &world.text;
    assert!(text.has("all-read") && !text.has("lost-"), "{}", text.all());
    let bytes = std::fs::read(&world.disks[0].0.0).unwrap();
    for line in 0..25 {
        assert!(bytes[line * 512..].starts_with(format!("line-{line}-").as_bytes()), "{line}");
    }
}
