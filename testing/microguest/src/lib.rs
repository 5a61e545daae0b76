//! Bare-metal guests of our own.
//!
//! One 64-bit ELF file, bootable by PVH and by the Linux 64-bit protocol, which needs a UART
//! at COM1 and ACPI's power-off at port 0x604. `build.rs` makes it out of `guest/` with the
//! workspace's own toolchain. It says what it sees and then takes commands on the serial port;
//! those after `run=` on its command line, separated by semicolons, it executes at once, and
//! powers off.

/// The guest's ELF file.
pub const GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_small_64_bit_elf_file_with_the_note_for_pvh() {
        assert_eq!(GUEST[..5], *b"\x7fELF\x02");
        assert!(GUEST.len() < 1 << 20, "{} bytes", GUEST.len());
        assert!(GUEST.windows(8).any(|w| w == b"\x12\0\0\0Xen\0"));
    }
}
