//! What the manuals leave open, and two engines may do differently: flags that an instruction
//! leaves undefined, in RFLAGS and where RFLAGS were stored meanwhile.

use super::{Error, Pair, find};
use crate::defined::Undefined;
use engine::Vcpu;
use x86_defs::rflags;

/// Instructions looked at for what they leave undefined: more than REP STOSQ does to a page, each of
/// whose iterations is one.
const LOOKED_AT: u64 = 1200;

/// After a piece of so many instructions: if all that differs is undefined, the second vCPU is
/// given the first one's values, and the result is true.
pub fn reconcile(pair: &mut Pair, instructions: u64) -> Result<bool, Error> {
    let (a, b) = (pair.a.vcpu.state()?, pair.b.vcpu.state()?);
    let words = pair.reference.compare(&pair.a, &pair.b)?;
    if !words.iter().all(|(_, a, b)| stored(*a, *b)) {
        return Ok(false);
    }
    let mut given = b.clone();
    for (to, from) in given.regs.gpr.iter_mut().zip(a.regs.gpr) {
        if stored(from, *to) {
            *to = from;
        }
    }
    given.regs.rflags = a.regs.rflags;
    if given != a {
        return Ok(false);
    }
    let difference = a.regs.rflags ^ b.regs.rflags;
    if difference != 0 && difference & !undefined(pair, instructions)? != 0 {
        return Ok(false);
    }
    for (gpa, value, _) in words {
        pair.b.memory().write(gpa, &value.to_le_bytes())?;
    }
    // To look at what is undefined, the first one has run the piece again.
    pair.a.vcpu.set_state(&a)?;
    pair.b.vcpu.set_state(&a)?;
    Ok(pair.compare()?.is_empty())
}

/// Both are RFLAGS of a moment at which these flags were undefined.
fn stored(a: u64, b: u64) -> bool {
    let image = |value: u64| value & !rflags::DEFINED == 0 && value & rflags::FIXED != 0;
    image(a) && image(b) && (a ^ b) & !(rflags::OF | rflags::AF) == 0
}

/// The flags that the piece leaves undefined.
fn undefined(pair: &mut Pair, instructions: u64) -> Result<u64, Error> {
    let mut undefined = Undefined::default();
    find::walk(pair, instructions, LOOKED_AT, |before, insn, _| {
        if let Some(insn) = insn {
            undefined.executed(&insn, before.regs.gpr[x86_defs::gpr::RCX] as u8);
        }
    })?;
    Ok(undefined.flags)
}
