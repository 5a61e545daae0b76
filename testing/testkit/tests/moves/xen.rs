//! A Xen PV guest whose processes come and go.

use crate::harness::*;
use machine::Machine;
use testkit::{KERNEL_6_12, guest_files};
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
cat /sys/hypervisor/type; nproc";

fn moves(files: assets::Guest, before: fn(usize, &Machine)) {
    let world = World {
        disks: Vec::new(),
        guest: GuestKind::XenPv,
        before,
        ..World::new(files, Image::new("moves-xen", 0), WORK)
    };
    let hops = ["begun", "done-1\r", "done-4\r", "done-5\r", "done-13\r", "done-20\r"];
    world.run(&hops.map(|word| {
        let by = if word.ends_with("-5\r") { By::Interpreter } else { By::Translator };
        (word, by)
    }));
    let text = &world.text;
    // seq 0 20000 | sha256sum
    let sum = "99007be34de0c85d";
    assert!(text.has(sum), "{}", text.all());
    assert!(text.has("same") && text.has("done-24") && text.has("xen"), "{}", text.all());
}

#[test]
fn a_xen_pv_guest_moves() {
    let Some(files) = guest_files("linux-image-6.1.0-*-cloud-amd64") else { return };
    moves(files, |_, _| {});
}

#[test]
fn a_xen_pv_guest_of_a_newer_kernel_moves_without_some_of_its_memory() {
    let Some(files) = guest_files(KERNEL_6_12) else { return };
    moves(files, |count, machine| {
        machine.handle().balloon((if count % 2 == 0 { 150 } else { 192 }) << 20).unwrap();
    });
}
