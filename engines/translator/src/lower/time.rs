//! RDTSC, RDTSCP, RDPID and CPUID.
//!
//! The counter is the host's answer, asked for at each time, so that a run can be recorded. Where
//! retired instructions are counted, time may be made of them, and the handler asks.

use super::{Done, Lowerer, Untranslated};
use crate::{
    asm::{Mem, RAX, RDX},
    regs::{self, GUEST_RCX, SA, SC},
    state::{field, gpr},
};
use iced_x86::{Instruction, Mnemonic};

impl Lowerer<'_> {
    pub(super) fn rdtsc(&mut self, insn: &Instruction) -> Done {
        if self.counted || self.narrow {
            return Err(Untranslated);
        }
        if !self.supervisor {
            self.unless_zero(field!(tsc_bad));
        }
        self.light_call(self.thunks.tsc);
        self.asm.rorx(RDX, SA, 32);
        self.asm.mov(RDX, RDX, false);
        self.asm.mov(RAX, SA, false);
        if insn.mnemonic() == Mnemonic::Rdtscp {
            self.asm.load32(GUEST_RCX, field!(tsc_aux));
        }
        Ok(())
    }

    /// Not in 16-bit code, whose registers are longer than its instructions say. It serialises
    /// (SDM volume 3, 9.3): if there are requests, one may be that the code that follows was
    /// written, and the handler is who sees to it.
    pub(super) fn cpuid(&mut self) -> Done {
        self.unless_zero(field!(cpuid_bad));
        self.asm.load(SC, field!(poll));
        self.asm.load32(SC, Mem::at(SC, 0));
        let mut asked = None;
        self.asm.unless_rcx_zero(|asm| asked = Some(asm.jmp_forward()));
        self.handler_from(asked);
        self.light_call(self.thunks.cpuid);
        Ok(())
    }

    /// Of a thunk, that for a block that uses vector registers as this one does.
    fn light_call(&mut self, thunks: [usize; 3]) {
        let call = self.asm.call(thunks[0]);
        self.light_calls.push((call, thunks));
    }

    pub(super) fn rdpid(&mut self, insn: &Instruction) -> Done {
        if self.narrow {
            return Err(Untranslated);
        }
        let number = regs::number(insn.op0_register()).ok_or(Untranslated)?;
        match regs::home(number) {
            Some(host) => self.asm.load32(host, field!(tsc_aux)),
            None => {
                self.asm.load32(SA, field!(tsc_aux));
                self.asm.store(gpr(number), SA);
            }
        }
        Ok(())
    }
}
