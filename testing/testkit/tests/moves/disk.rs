//! A guest that writes to its disk.

use crate::harness::*;
use std::fs;
use testkit::guest_files;

/// Writes noise to the disk, keeps a copy, and compares in the end.
const WORK: &str = "/etc/devices; until [ -b /dev/vda ]; do sleep 1; done; echo be''gun
for i in $(seq 0 59); do
    dd if=/dev/urandom of=/tmp/part bs=64k count=8 2> /dev/null
    cat /tmp/part >> /tmp/all
    dd if=/tmp/part of=/dev/vda bs=64k seek=$((i * 8)) conv=fsync 2> /dev/null
    echo done-$i
done
echo 3 > /proc/sys/vm/drop_caches
head -c 31457280 /dev/vda | cmp - /tmp/all && echo sa''me
sha256sum < /tmp/all";

#[test]
fn a_guest_that_writes_to_its_disk_moves() {
    let Some(files) = guest_files("linux-image-6.1.0-*-cloud-amd64") else { return };
    let disk = Image::new("moves", 32 << 20);
    let world = World::new(files, disk, WORK);
    world.run(&["begun", "done-3\r", "done-9\r", "done-11\r", "done-30\r", "done-31\r"].map(
        |word| {
            let by = if word.ends_with("11\r") { By::Interpreter } else { By::Translator };
            (word, by)
        },
    ));
    let text = &world.text;
    assert!(text.has("same") && text.has("done-59"), "{}", text.all());
    let bytes = fs::read(&world.disks[0].0.0).unwrap();
    let part = Image::new("moves-part", 0);
    fs::write(&part.0, &bytes[..30 << 20]).unwrap();
    let sum = std::process::Command::new("sha256sum").arg(&part.0).output().unwrap();
    let sum = String::from_utf8_lossy(&sum.stdout).into_owned();
    assert!(text.has(sum.split_whitespace().next().unwrap()), "the host's file has other bytes");
}
