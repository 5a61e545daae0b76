//! Loops of one block.
//!
//! A block that branches back to its own beginning goes there by a direct jump. Of a short one,
//! several turns are made, one behind the other: so the word of requests is looked at once for
//! all of them, there is one jump, and accesses whose addresses grow by constants share a check
//! (see [`super::reuse`]).

use super::BASE;
use iced_x86::{Code, Instruction};

/// Instructions of all turns together, and turns, at most.
const INSNS: usize = 48;
const TURNS: usize = 4;

/// How many instructions the loop has with which the block begins, and how many turns are to be
/// made of it; `None` if it is not to be made more than once.
pub fn turns(insns: &[Instruction], start: u16) -> Option<(usize, usize)> {
    let len = 1 + insns.iter().position(|insn| goes_to(insn, start.into()))?;
    let turns = (INSNS / len).min(TURNS);
    (turns > 1).then_some((len, turns))
}

/// A direct jump to an offset in the page.
fn goes_to(insn: &Instruction, offset: u64) -> bool {
    let jump = matches!(insn.code(), Code::Jmp_rel8_64 | Code::Jmp_rel32_64);
    (jump || insn.is_jcc_short_or_near()) && insn.near_branch64() == BASE + offset
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    #[test]
    fn only_short_loops_to_the_beginning_are_made_more_than_once() {
        let of = |bytes: &[u8], start: u16| {
            let ip = BASE + u64::from(start);
            let insns: Vec<_> =
                Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE).iter().collect();
            turns(&insns, start)
        };
        // inc eax; dec ecx; jnz; ret
        let code = [0xff, 0xc0, 0xff, 0xc9, 0x75, 0xfa, 0xc3];
        assert_eq!(of(&code, 0x123), Some((3, TURNS)));
        // To the second instruction.
        assert_eq!(of(&[0xff, 0xc0, 0xff, 0xc9, 0x75, 0xfc, 0xc3], 0x123), None);
        // pause; jmp
        assert_eq!(of(&[0xf3, 0x90, 0xeb, 0xfc], 0), Some((2, TURNS)));
        // call to itself
        assert_eq!(of(&[0xe8, 0xfb, 0xff, 0xff, 0xff], 0), None);
        let mut long = vec![0x90; 20];
        long.extend([0xeb, 0xea]);
        assert_eq!(of(&long, 0), Some((21, 2)));
        let mut long = vec![0x90; 30];
        long.extend([0xeb, 0xe0]);
        assert_eq!(of(&long, 0), None);
    }
}
