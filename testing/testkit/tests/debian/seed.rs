//! Debian's cloud-init with the seed that `--cloud-init` makes of a folder.

use crate::common::*;
use std::fs;
use testkit::{BOOT, Error, Folder, Guest, debian};

const USER_DATA: &str = "#cloud-config
hostname: seeded
locale: false
write_files:
  - path: /etc/seeded
    content: by cloud-init
runcmd:
  - [sh, -c, 'echo $((6 * 7)) > /root/ran']
";

#[test]
fn cloud_init_does_what_its_seed_says() -> Result<(), Error> {
    let Some(debian) = debian() else { return Ok(()) };
    let folder = Folder::new("seed");
    fs::write(folder.path("user-data"), USER_DATA).unwrap();
    // The image keeps it off where nobody asks for it.
    let options = options(&debian, Start::Kernel("cloud-init=enabled"))
        .arg("--cloud-init", &folder.root().to_string_lossy())
        .arg("--disk", &format!("{},ephemeral", debian.disk.display()));
    let mut guest = Guest::boot(&options)?;
    log_in(&mut guest)?;
    let (status, _) = guest.command("cloud-init status --wait --long", BOOT)?;
    assert!(status.contains("status: done") && status.contains("/dev/vdb"), "{status}");
    assert_eq!(says(&mut guest, "uname -n; cat /etc/seeded /root/ran")?, "seeded\nby cloud-init42");
    let id = says(&mut guest, "cloud-init query instance_id")?;
    assert!(id.starts_with("sarang-"), "{id}");
    // By its label it was found, and nobody writes to it.
    assert_eq!(says(&mut guest, "blkid -L CIDATA; cat /sys/block/vdb/ro")?, "/dev/vdb\n1");
    power_off(guest)
}
