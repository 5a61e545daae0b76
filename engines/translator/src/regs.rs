//! Which guest register lives in which host register.

use crate::asm::RCX;
use iced_x86::Register;

/// Addresses: the linear address of an access.
pub const SA: u8 = 10;
/// The distance from the linear to the host address.
pub const SB: u8 = 11;
/// A third scratch register, which JRCXZ needs, and shift counts.
pub const SC: u8 = RCX;

/// The host register of each guest register; the others live in memory.
const HOME: [Option<u8>; 16] = [
    Some(0),
    // RCX is scratch.
    Some(9),
    Some(2),
    Some(3),
    // RSP points to the state.
    Some(15),
    Some(5),
    Some(6),
    Some(7),
    Some(8),
    Some(14),
    None,
    None,
    Some(12),
    Some(13),
    None,
    None,
];

pub const HOST_RSP: u8 = 4;
pub const GUEST_RCX: u8 = 9;
pub const GUEST_RSP: u8 = 15;
pub const GUEST_RBP: u8 = 5;

pub const fn home(guest: u8) -> Option<u8> {
    HOME[guest as usize & 15]
}

/// Guest and host numbers of those that live in registers.
pub fn homes() -> impl Iterator<Item = (u8, u8)> {
    (0..16).filter_map(|guest| home(guest).map(|host| (guest, host)))
}

const BYTE: [Register; 16] = {
    use Register::*;
    [AL, CL, DL, BL, SPL, BPL, SIL, DIL, R8L, R9L, R10L, R11L, R12L, R13L, R14L, R15L]
};
const WORD: [Register; 16] = {
    use Register::*;
    [AX, CX, DX, BX, SP, BP, SI, DI, R8W, R9W, R10W, R11W, R12W, R13W, R14W, R15W]
};
const DOUBLE: [Register; 16] = {
    use Register::*;
    [EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI, R8D, R9D, R10D, R11D, R12D, R13D, R14D, R15D]
};
const QUAD: [Register; 16] = {
    use Register::*;
    [RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15]
};

/// The decoder's name of a host register in some width.
pub fn name(host: u8, size: usize) -> Register {
    let table = match size {
        1 => &BYTE,
        2 => &WORD,
        4 => &DOUBLE,
        _ => &QUAD,
    };
    table[usize::from(host & 15)]
}

/// The number of a general register other than AH to BH.
pub fn number(register: Register) -> Option<u8> {
    use Register::{AH, BH, CH, DH};
    if !register.is_gpr() || matches!(register, AH | BH | CH | DH) {
        return None;
    }
    Some(register.full_register().number() as u8 & 15)
}
