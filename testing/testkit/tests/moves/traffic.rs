//! A guest that writes to its disk, has one TCP connection open all the while, and pings.

use crate::{harness::*, peer::Peer};
use testkit::guest_files;
use vm_spec::GuestKind;

/// All that is written to the disk goes over the connection and comes back.
const WORK: &str = "/etc/devices; until [ -b /dev/vda ]; do sleep 1; done
modprobe virtio_net; until ip link set eth0 up; do sleep 1; done
ip addr add 10.9.0.2/24 dev eth0; echo be''gun
while [ ! -e /tmp/stop ]; do ping -A -q -c 50 10.9.0.1 >> /tmp/pings; done &
for i in $(seq 0 39); do
    dd if=/dev/urandom of=/tmp/part bs=64k count=8 2> /dev/null
    cat /tmp/part >> /tmp/all
    dd if=/tmp/part of=/dev/vda bs=64k seek=$((i * 8)) conv=fsync 2> /dev/null
    cat /tmp/part
    echo done-$i >&2
done | nc 10.9.0.1 7 > /tmp/back
touch /tmp/stop; wait
echo 3 > /proc/sys/vm/drop_caches
head -c 20971520 /dev/vda | cmp - /tmp/all && echo disk-sa''me
cmp /tmp/back /tmp/all && echo connection-sa''me
grep transmitted /tmp/pings | grep -v ', 0% packet loss' || echo pings-com''plete
grep -c transmitted /tmp/pings | sed s/^/pings-/
sha256sum < /tmp/all";

/// The same without the pings: the command line of a Xen domain is shorter.
const XEN_WORK: &str = "/etc/devices; cd /tmp
until [ -b /dev/xvda ] && ip link set eth0 up; do sleep 1; done
ip addr add 10.9.0.2/24 dev eth0; echo be''gun
for i in $(seq 0 39); do
dd if=/dev/urandom of=p bs=64k count=8 2>&-
cat p >> a
dd if=p of=/dev/xvda bs=64k seek=$((i*8)) conv=fsync 2>&-
cat p; echo done-$i >&2
done | nc 10.9.0.1 7 > b
echo 3 > /proc/sys/vm/drop_caches
head -c 20971520 /dev/xvda | cmp - a && echo disk-sa''me
cmp b a && echo connection-sa''me
dmesg|grep -o 'ver[s]ion . layout'
sha256sum < a";

#[test]
fn a_guest_moves_with_its_connection_and_its_disk() {
    let said = moves(GuestKind::Pc, WORK);
    assert!(said.contains("pings-complete") && !said.contains("pings-0"), "{said}");
}

#[test]
fn a_xen_pv_guest_moves_with_its_connection_and_its_disk() {
    let said = moves(GuestKind::XenPv, XEN_WORK);
    assert!(said.contains("version 2 layout"), "{said}");
}

/// What the guest said; what it has to say if there is no such guest.
fn moves(guest: GuestKind, work: &str) -> String {
    let Some(files) = guest_files("linux-image-6.1.0-*-cloud-amd64") else {
        return "pings-complete, version 2 layout".into();
    };
    let (disk, peer) = (Image::new(&format!("traffic-{guest:?}"), 20 << 20), Peer::start());
    // Which the other tests of a Xen domain's drivers do not choose.
    let options = if guest == GuestKind::XenPv { "grant_table.version=2" } else { "" };
    let world = World { peer: Some(peer.clone()), guest, options, ..World::new(files, disk, work) };
    world.run(&[
        ("begun", By::Translator),
        ("done-2\r", By::Translator),
        ("done-7\r", By::Interpreter),
        ("done-8\r", By::Interpreter),
        ("done-9\r", By::Translator),
        ("done-20\r", By::Translator),
        ("done-33\r", By::Translator),
    ]);
    let said = world.text.all();
    for mark in ["disk-same", "connection-same", "done-39"] {
        assert!(said.contains(mark), "no {mark}:\n{said}");
    }
    let (frames, echoed) = *peer.counted.lock().unwrap();
    assert!(frames > 100 && echoed == 20 << 20, "{frames} frames, {echoed} bytes");
    let sum = std::process::Command::new("sha256sum").arg(&world.disks[0].0.0).output().unwrap();
    let sum = String::from_utf8_lossy(&sum.stdout).into_owned();
    assert!(said.contains(sum.split_whitespace().next().unwrap()), "the host's file differs");
    said
}
