//! The guest's small root, as an initramfs.

use crate::{cpio::Writer, modules::Selection};

/// The commands of `busybox-static` that get a name of their own.
const IN_BIN: &str = "[ [[ ar arch ascii ash awk base64 basename bc bunzip2 bzcat bzip2 cal cat \
    chgrp chmod chown clear cmp cp cpio crc32 cttyhack cut date dc dd df diff dirname dmesg du \
    echo ed egrep env expand expr factor fallocate false fgrep find fold free getopt grep groups \
    gunzip gzip head hexdump hostname id ionice kill killall last less link ln login ls lzcat \
    lzma md5sum microcom mkdir mkfifo mknod mktemp more mount mountpoint mv nc netstat nice nl \
    nohup nproc nsenter od paste patch pgrep pidof ping pkill printf ps pstree pwd readlink \
    realpath renice reset resize rev rm rmdir sed seq setpriv setsid sh sha1sum sha256sum \
    sha512sum shred shuf sleep sort stat strings stty su sum sync tac tail tar taskset tee telnet \
    test tftp time timeout top touch tr traceroute true truncate ts tty umount uname unexpand \
    uniq unlink unshare unxz unzip uptime usleep vi watch wc wget which who whoami xargs xxd xz \
    xzcat yes zcat";
const IN_SBIN: &str = "acpid arp blkdiscard blockdev chroot depmod devmem fdisk findfs fsfreeze \
    fstrim getty halt hwclock ifconfig init insmod ip losetup lsmod mdev mke2fs mkswap modinfo \
    modprobe nologin partprobe pivot_root poweroff reboot rmmod route start-stop-daemon swapoff \
    swapon switch_root sysctl udhcpc";

/// What `acpid` runs for the power button (busybox, util-linux/acpid.c: the event `PWRF`).
const POWER_BUTTON: &str = "#!/bin/sh\nexec /sbin/poweroff\n";

/// Makes the archive of the root for the kernel `release`.
pub fn build(release: &str, busybox: &[u8], modules: &Selection) -> Vec<u8> {
    let mut root = Writer::default();
    for directory in ["bin", "sbin", "dev", "etc", "etc/acpi", "etc/acpi/PWRF", "lib", "mnt"]
        .into_iter()
        .chain(["proc", "run", "sys", "usr", "var"])
    {
        root.directory(directory, 0o755);
    }
    root.directory("root", 0o700);
    root.directory("tmp", 0o1777);
    root.symlink("usr/bin", "../bin");
    root.symlink("usr/sbin", "../sbin");
    root.symlink("var/run", "../run");
    // Until devtmpfs is there: the first process's input and output.
    root.character_device("dev/console", 0o600, (5, 1));

    root.file("bin/busybox", 0o755, busybox);
    for name in IN_BIN.split_whitespace() {
        root.symlink(&format!("bin/{name}"), "busybox");
    }
    for name in IN_SBIN.split_whitespace() {
        root.symlink(&format!("sbin/{name}"), "../bin/busybox");
    }

    root.file("init", 0o755, include_bytes!("../guest/init"));
    root.file("etc/devices", 0o755, include_bytes!("../guest/devices"));
    root.file("etc/inittab", 0o644, include_bytes!("../guest/inittab"));
    root.file("etc/profile", 0o644, include_bytes!("../guest/profile"));
    root.file("etc/acpi/PWRF/00000080", 0o755, POWER_BUTTON.as_bytes());
    root.file("etc/hostname", 0o644, b"sarang\n");
    root.file("etc/hosts", 0o644, b"127.0.0.1 localhost sarang\n");
    root.file("etc/passwd", 0o644, b"root::0:0:root:/root:/bin/sh\n");
    root.file("etc/group", 0o644, b"root:x:0:\ntty:x:5:\n");
    root.symlink("etc/mtab", "/proc/mounts");

    add_modules(&mut root, release, modules);
    root.finish()
}

fn add_modules(root: &mut Writer, release: &str, modules: &Selection) {
    let base = format!("lib/modules/{release}");
    let mut made = std::collections::BTreeSet::from(["lib".to_string()]);
    let mut make_parents = |root: &mut Writer, path: &str| {
        for (end, _) in path.match_indices('/') {
            if made.insert(path[..end].to_string()) {
                root.directory(&path[..end], 0o755);
            }
        }
    };
    for (path, bytes) in &modules.files {
        let path = format!("{base}/{path}");
        make_parents(root, &path);
        root.file(&path, 0o644, bytes);
    }
    for (name, text) in [
        ("modules.dep", modules.dependencies.as_str()),
        ("modules.alias", modules.aliases.as_str()),
        ("modules.symbols", ""),
    ] {
        let path = format!("{base}/{name}");
        make_parents(root, &path);
        root.file(&path, 0o644, text.as_bytes());
    }
}

/// A shell command in the form that `sarang.exec=` takes on the kernel's command line, where
/// spaces part words and quotes hold them together.
pub fn encode_command(command: &str) -> String {
    let mut out = String::new();
    for byte in command.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_./:,+@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02x}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_survive_the_kernels_command_line() {
        assert_eq!(encode_command("uname -a"), "uname%20-a");
        assert_eq!(encode_command("echo \"100%\\n\" | wc"), "echo%20%22100%25%5cn%22%20%7c%20wc");
        let every: String = (1..=127u8).map(char::from).collect();
        let encoded = encode_command(&every);
        assert!(encoded.bytes().all(|b| b.is_ascii_graphic() && !b"\"'\\ ".contains(&b)));
    }

    #[test]
    fn a_root_has_what_it_starts_from() {
        let modules = Selection {
            files: vec![("kernel/a/b.ko".into(), b"module".to_vec())],
            dependencies: "kernel/a/b.ko:\n".into(),
            aliases: String::new(),
        };
        let root = build("6.1.0-test", b"busybox's bytes", &modules);
        let text = String::from_utf8_lossy(&root);
        for path in ["init\0", "bin/sh\0", "sbin/poweroff\0", "dev/console\0"]
            .into_iter()
            .chain(["lib/modules/6.1.0-test/kernel/a\0", "lib/modules/6.1.0-test/modules.dep\0"])
        {
            assert!(text.contains(path), "{path}");
        }
        assert_eq!(root, build("6.1.0-test", b"busybox's bytes", &modules), "reproducible");
    }

    #[test]
    fn scripts_are_what_the_kernel_can_start() {
        for script in [&include_bytes!("../guest/init")[..], include_bytes!("../guest/devices")] {
            assert!(script.starts_with(b"#!/bin/sh\n"));
            assert!(!script.contains(&b'\r'));
        }
    }
}
