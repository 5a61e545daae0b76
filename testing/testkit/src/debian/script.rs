//! What makes a disk of the installed packages, as scripts of a shell.

use super::{DISK, ESP, GRUB, ROOT, SECTOR};

/// What `openssl passwd -6 -salt sarang sarang` prints.
const HASH: &str = "$6$sarang$SmqEV49Zu4gq1ZjrbPf/jMt2E4CPNH.TsqlVJw4S4kZxowBXknoFTCyaR5EWqQVxypve8eer6XFIvj6J1jPQP/";

/// From the installed packages to the file system.
///
/// cloud-init keeps out of the way until it is asked for by `cloud-init=enabled` on the kernel's
/// command line: Debian's own default is to look for its data at each start.
pub fn root() -> String {
    let (from, blocks) = (ROOT.0, ROOT.1 / 1024);
    format!(
        "rm -rf root; mkdir root; tar -C root -xpf root.tar
         sed -i 's#^root:[^:]*:#root:{HASH}:#' root/etc/shadow
         echo sarang > root/etc/hostname
         printf '127.0.0.1 localhost sarang\\n' > root/etc/hosts
         echo 'LABEL=root / ext4 errors=remount-ro 0 1' > root/etc/fstab
         printf 'auto lo\\niface lo inet loopback\\nallow-hotplug eth0\\niface eth0 inet dhcp\\n' \
            > root/etc/network/interfaces
         touch root/etc/cloud/cloud-init.disabled
         mkdir -p root/boot/grub
         cat > root/boot/grub/grub.cfg <<'END'
set timeout=0
serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
menuentry Debian {{
  linux /vmlinuz root=LABEL=root ro console=tty0 console=ttyS0 net.ifnames=0
  initrd /initrd.img
}}
END
         cp root/boot/vmlinuz-* vmlinuz; cp root/boot/initrd.img-* initrd.img
         rm -f disk.raw; truncate -s {DISK} disk.raw
         mke2fs -q -F -t ext4 -L root -d root -E offset={from} disk.raw {blocks}k"
    )
}

/// From the installed packages to what `stress-ng` needs to run in the small guest. Its loader is
/// asked, not the host's, which may be another.
pub fn stress() -> &'static str {
    "lib=root/usr/lib/x86_64-linux-gnu
     there=stress/usr/lib/x86_64-linux-gnu
     rm -rf stress; mkdir -p stress/lib64 stress/usr/bin $there
     cp -L $lib/ld-linux-x86-64.so.2 stress/lib64
     cp root/usr/bin/stress-ng stress/usr/bin
     needed=$(stress/lib64/ld-linux-x86-64.so.2 --library-path $lib --list root/usr/bin/stress-ng)
     cp -L $(echo \"$needed\" | sed -n 's/.* => \\(root[^ ]*\\) .*/\\1/p') $there
     tar -C stress -cf stress.tar .
     rm -rf stress root"
}

/// What firmware starts: GRUB's first sector and what follows it for a BIOS, and the file that
/// UEFI looks for on a disk. Both look for the root file system by its label.
pub fn loaders() -> String {
    let [bios, efi] = GRUB;
    let (esp, sectors) = (ESP.0, ESP.1 / SECTOR);
    let modules =
        "normal configfile linux part_msdos ext2 search search_label serial terminal echo";
    format!(
        "printf 'search --label root --set=root\\nset prefix=($root)/boot/grub\\n' > early.cfg
         grub-mkimage -d {bios} -O i386-pc -o core.img -c early.cfg -p /boot/grub biosdisk {modules}
         dd if={bios}/boot.img of=disk.raw bs=440 count=1 conv=notrunc status=none
         dd if=core.img of=disk.raw bs={SECTOR} seek=1 conv=notrunc status=none
         grub-mkimage -d {efi} -O x86_64-efi -o core.efi -c early.cfg -p /boot/grub \
            {modules} efi_gop
         mformat -i disk.raw@@{esp} -T {sectors} -h 16 -s 63 -v EFI ::
         mmd -i disk.raw@@{esp} ::/EFI ::/EFI/BOOT
         mcopy -i disk.raw@@{esp} core.efi ::/EFI/BOOT/BOOTX64.EFI
         rm -f early.cfg core.img core.efi"
    )
}
