//! Who looks at the guest's status flags, as far as that can be told of one block.
//!
//! Backwards from the block's end, which may lead to code that looks at all of them, it is
//! noted before each instruction which flags are *live*: an instruction reads them before
//! another overwrites them, and which are *visible*: they are live, or an access to memory,
//! whose exception would show them to a handler, comes before they are overwritten.
//!
//! What the manuals leave undefined counts as overwritten, since processors do overwrite it,
//! except by bit tests and rotates.

use super::copy::{conditional, listed};
use crate::regs;
use iced_x86::{Instruction, Mnemonic, OpKind, Register, RflagsBits};

/// OF, SF, ZF, AF, CF and PF.
pub const ALL: u32 = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF;

/// What is known of an instruction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Note {
    /// It is executed in place and has no other effects than on its operands and the flags.
    pub simple: bool,
    /// It makes an access that is checked by `Lowerer::access`.
    pub access: bool,
    /// It may yet turn out to be left to its handler.
    uncertain: bool,
    pub reads: u32,
    /// What it overwrites in any case.
    pub kills: u32,
    /// It may write flags.
    pub touches: bool,
    /// Before it.
    pub live: u32,
    pub visible: u32,
    /// If the flags are only in memory before it, they need not come back from there.
    pub dead: bool,
    /// Accesses from it on until all are overwritten.
    pub checks: u32,
}

/// Of each instruction; `allowed` says which the guest has.
pub fn note(insns: &[Instruction], allowed: impl Fn(&Instruction) -> bool, notes: &mut Vec<Note>) {
    notes.extend(insns.iter().map(|insn| alone(insn, allowed(insn))));
    let mut next = Note { live: ALL, visible: ALL, ..Note::default() };
    for note in notes.iter_mut().rev() {
        if note.simple {
            note.live = note.reads | next.live & !note.kills;
            let seen = note.access || note.uncertain;
            let visible = if seen { ALL } else { note.reads };
            note.visible = visible | next.visible & !note.kills;
            let unseen = next.visible & !note.kills == 0;
            note.dead = note.reads == 0 && (unseen || !note.touches && next.dead);
        } else {
            (note.live, note.visible, note.dead) = (ALL, ALL, false);
        }
        note.checks = u32::from(note.access)
            + if note.kills == ALL || !note.simple { 0 } else { next.checks };
        next = *note;
    }
}

/// Without what follows.
fn alone(insn: &Instruction, allowed: bool) -> Note {
    use Mnemonic::*;
    let mnemonic = insn.mnemonic();
    let memory = (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory);
    let none = matches!(
        mnemonic,
        Lea | Nop
            | Endbr32
            | Endbr64
            | Prefetcht0
            | Prefetcht1
            | Prefetcht2
            | Prefetchnta
            | Prefetchw
    );
    let stack = matches!(mnemonic, Push | Pop | Leave | Call | Ret);
    let registers = || (0..insn.op_count()).map(|n| insn.op_register(n));
    let simple = none
        || matches!(mnemonic, Push | Pop | Leave)
        || (listed(mnemonic) || conditional(mnemonic)) && copied(insn, memory)
        || vector(insn);
    let simple = simple && allowed;
    let access = stack || memory && !none && (simple || mnemonic == Jmp);
    let counts_in_cl = shifts(mnemonic) && registers().any(|r| r == Register::CL);
    let (mut kills, touches) = writes(insn);
    if counts_in_cl {
        // None, if that is zero.
        kills = 0;
    }
    let (reads, uncertain) = (insn.rflags_read() & ALL, vector(insn));
    Note { simple, access, uncertain, reads, kills, touches, ..Note::default() }
}

/// It is certain that a general instruction is copied.
fn copied(insn: &Instruction, memory: bool) -> bool {
    use Mnemonic::{Bt, Btc, Btr, Bts, Cmpxchg};
    let bits = matches!(insn.mnemonic(), Bt | Bts | Btr | Btc);
    let plain =
        |n: u32| insn.op_kind(n) != OpKind::Register || regs::number(insn.op_register(n)).is_some();
    let plain = (0..insn.op_count()).all(plain);
    plain && !(bits && memory) && (insn.mnemonic() != Cmpxchg || memory)
}

fn vector(insn: &Instruction) -> bool {
    let of_register = |n| insn.op_register(n).is_xmm() || insn.op_register(n).is_ymm();
    (0..insn.op_count()).any(of_register)
}

fn shifts(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(mnemonic, Shl | Shr | Sar | Shld | Shrd) || rotates(mnemonic)
}

fn rotates(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(mnemonic, Rol | Ror | Rcl | Rcr)
}

/// What an instruction overwrites, if its count is not zero, and whether it may write any.
fn writes(insn: &Instruction) -> (u32, bool) {
    use Mnemonic::{Bt, Btc, Btr, Bts};
    let mnemonic = insn.mnemonic();
    let defined = insn.rflags_written() | insn.rflags_cleared() | insn.rflags_set();
    let undefined = insn.rflags_undefined();
    let stays = rotates(mnemonic) || matches!(mnemonic, Bt | Bts | Btr | Btc);
    let kills = if stays { defined } else { defined | undefined };
    (kills & ALL, (defined | undefined) & ALL != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lower::BASE;
    use iced_x86::{Decoder, DecoderOptions};

    fn of(bytes: &[u8]) -> Vec<Note> {
        let insns: Vec<_> =
            Decoder::with_ip(64, bytes, BASE, DecoderOptions::NONE).iter().collect();
        let mut notes = Vec::new();
        note(&insns, |_| true, &mut notes);
        notes
    }

    const CF: u32 = RflagsBits::CF;

    #[test]
    fn what_instructions_overwrite() {
        let kills = |bytes: &[u8]| of(bytes)[0].kills;
        // add, cmp, test, xor, neg, imul, popcnt, ucomisd
        for bytes in [
            &[0x48, 0x01, 0xd8][..],
            &[0x39, 0xd8],
            &[0x84, 0xc0],
            &[0x31, 0xc0],
            &[0xf7, 0xd8],
            &[0x0f, 0xaf, 0xc3],
            &[0xf3, 0x0f, 0xb8, 0xc3],
            &[0x66, 0x0f, 0x2e, 0xc1],
        ] {
            assert_eq!(kills(bytes), ALL, "{bytes:x?}");
        }
        // shl eax, 3; shl eax, 32; shl eax, cl; shrd eax, ebx, 0; shrd eax, ebx, cl
        assert_eq!(kills(&[0xc1, 0xe0, 3]), ALL);
        assert_eq!((kills(&[0xc1, 0xe0, 32]), kills(&[0xd3, 0xe0])), (0, 0));
        assert_eq!((kills(&[0x0f, 0xac, 0xd8, 0]), kills(&[0x0f, 0xad, 0xd8])), (0, 0));
        // inc eax; rol eax, 3; bt eax, ebx; mov; lea
        assert_eq!(kills(&[0xff, 0xc0]), ALL & !CF);
        assert_eq!((kills(&[0xc1, 0xc0, 3]), kills(&[0x0f, 0xa3, 0xd8])), (CF, CF));
        assert_eq!((kills(&[0x89, 0xd8]), kills(&[0x8d, 0x03])), (0, 0));
        assert!(of(&[0xd3, 0xe0])[0].touches && !of(&[0x89, 0xd8])[0].touches);
    }

    #[test]
    fn accesses_see_flags_that_no_instruction_reads() {
        // mov rax, [rdi]; mov rbx, [rax]; add rax, rbx; mov rcx, [rdi]; nop
        let code = [0x48, 0x8b, 0x07, 0x48, 0x8b, 0x18, 0x48, 0x01, 0xd8, 0x48, 0x8b, 0x0f, 0x90];
        let notes = of(&code);
        assert_eq!(notes.iter().map(|n| n.live).collect::<Vec<_>>(), [0, 0, 0, ALL, ALL]);
        assert_eq!(notes.iter().map(|n| n.visible).collect::<Vec<_>>(), [ALL, ALL, 0, ALL, ALL]);
        assert!(notes[0].dead && notes[1].dead && !notes[3].dead);
        assert_eq!(notes.iter().map(|n| n.checks).collect::<Vec<_>>(), [2, 1, 0, 1, 0]);
    }

    #[test]
    fn a_part_that_stays_is_live() {
        // mov rax, [rdi]; inc eax; mov rbx, [rdi]; test eax, eax
        let code = [0x48, 0x8b, 0x07, 0xff, 0xc0, 0x48, 0x8b, 0x1f, 0x85, 0xc0];
        let notes = of(&code);
        assert_eq!((notes[0].live, notes[1].visible, notes[2].live), (0, CF, 0));
        assert!(!notes[0].dead && notes[2].dead);
        // mov rax, [rdi]; inc eax; test eax, eax
        let notes = of(&[0x48, 0x8b, 0x07, 0xff, 0xc0, 0x85, 0xc0]);
        assert_eq!(notes[1].visible, 0);
        assert!(notes[0].dead);
        // mov rax, [rdi]; adc eax, ebx; mov rax, [rdi]; sete al; test al, al
        let code = [0x48, 0x8b, 0x07, 0x11, 0xd8, 0x48, 0x8b, 0x07, 0x0f, 0x94, 0xc0, 0x84, 0xc0];
        let notes = of(&code);
        assert_eq!((notes[0].live, notes[2].live), (CF, RflagsBits::ZF));
        assert!(!notes[0].dead);
        // mov rax, [rdi]; test eax, eax; jmp: with and without what reads all in between.
        assert!(of(&[0x48, 0x8b, 0x07, 0x85, 0xc0, 0xeb, 0])[0].dead);
        assert!(!of(&[0x48, 0x8b, 0x07, 0x9c, 0x85, 0xc0])[0].dead);
    }
}
