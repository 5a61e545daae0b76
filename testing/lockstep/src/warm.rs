//! A run-up in the guest's own code, so that a case finds its memory known.
//!
//! A case begins from a state that was just loaded, and no translation of an address is known
//! then: accesses that are fast because one is would never be judged. The run-up reads and
//! writes each page with the case's rights, then loads the case's registers and jumps to it.
//! It changes no flag and no vector.

use crate::layout::{AREAS, CODE, PAGE};

/// Code and values: two pages that no case finds by arithmetic with its pointers.
pub const LINEAR: u64 = 0x5b7d_3e61_c000;
pub const LEN: u64 = 2 * PAGE as u64;
const VALUES: u64 = LINEAR + PAGE as u64;

/// The run-up itself.
pub fn code() -> Vec<u8> {
    let mut out = Vec::new();
    for area in [CODE].into_iter().chain(AREAS) {
        for page in (0..area.len() as u64).step_by(PAGE) {
            // MOV RAX, imm64; MOV RCX, [RAX]
            out.extend([0x48, 0xb8]);
            out.extend((area.linear + page).to_le_bytes());
            out.extend([0x48, 0x8b, 0x08]);
            if area.writable {
                // MOV [RAX], RCX
                out.extend([0x48, 0x89, 0x08]);
            }
        }
    }
    for register in 0..16 {
        // MOV register, [RIP + disp32]
        out.extend([0x48 | register >> 3 << 2, 0x8b, 5 | (register & 7) << 3]);
        place(&mut out, u64::from(register));
    }
    // JMP [RIP + disp32]
    out.extend([0xff, 0x25]);
    place(&mut out, 16);
    out
}

/// A displacement to one of the values.
fn place(out: &mut Vec<u8>, number: u64) {
    let next = LINEAR + out.len() as u64 + 4;
    out.extend(((VALUES + 8 * number).wrapping_sub(next) as u32).to_le_bytes());
}

/// What the second page holds for a case.
pub fn values(gpr: &[u64; 16], rip: u64) -> Vec<u8> {
    gpr.iter().chain([&rip]).flat_map(|value| value.to_le_bytes()).collect()
}
