//! SSE and AVX instructions: they run on the host, on the registers of the same numbers.

use super::{
    Done, Lowerer, Untranslated,
    copy::{Plan, Temps},
};
use crate::{
    asm::Asm,
    probe::Place,
    regs::{GUEST_RCX, SA, SB, SC},
    state::{field, gpr},
    vectors,
};
use emit::{Properties, Unit};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// Their result is an index in ECX.
fn index_in_ecx(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    let legacy = matches!(mnemonic, Pcmpestri | Pcmpestri64 | Pcmpistri);
    legacy || matches!(mnemonic, Vpcmpestri | Vpcmpestri64 | Vpcmpistri)
}

impl Lowerer<'_> {
    pub(super) fn vector(&mut self, insn: &Instruction) -> Done {
        use Mnemonic::*;
        match insn.mnemonic() {
            Vzeroupper | Vzeroall => return self.zero(insn),
            Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq => return self.masked_move(insn),
            Stmxcsr | Vstmxcsr | Ldmxcsr | Vldmxcsr => return self.mxcsr(insn),
            _ => {}
        }
        let properties = Properties::of(insn).map_err(|_| Untranslated)?;
        let used = match properties.unit {
            Unit::Sse => vectors::USED,
            Unit::Avx => vectors::USED | vectors::AVX,
            Unit::Gpr => return self.copy(insn),
            Unit::X87 => return self.x87(insn, &properties),
            _ => return Err(Untranslated),
        };
        let mut plan = vector_plan(insn, &properties)?;
        if let Some(memory) = properties.memory {
            if !matches!(memory.alignment, 1 | 16 | 32) {
                return Err(Untranslated);
            }
            let size = memory.size.into();
            let place = self.aligned_operand(insn, memory.write, size, memory.alignment)?;
            plan.use_host_address(place);
        }
        if properties.memory.is_none() && plan.temps.iter().all(|(_, scratch, _)| *scratch != SB) {
            self.reuse.keep();
        }
        for (guest, scratch, _) in plan.temps.iter() {
            self.asm.load(*scratch, gpr(*guest));
        }
        self.encode(&plan.insn)?;
        if index_in_ecx(insn.mnemonic()) {
            self.asm.mov(GUEST_RCX, SC, false);
        }
        for (guest, scratch, _) in plan.temps.iter().filter(|(.., written)| *written) {
            self.asm.store(gpr(*guest), *scratch);
        }
        self.vectors |= used | if properties.simd_fp { vectors::FP } else { 0 };
        Ok(())
    }

    fn zero(&mut self, insn: &Instruction) -> Done {
        self.reuse.keep();
        self.encode(insn)?;
        self.vectors |= vectors::USED | vectors::AVX;
        Ok(())
    }

    /// Elements that the mask leaves out do not fault; here none does, or the handler looks.
    fn masked_move(&mut self, insn: &Instruction) -> Done {
        let integer = matches!(insn.mnemonic(), Mnemonic::Vpmaskmovd | Mnemonic::Vpmaskmovq);
        let size = insn.memory_size().size();
        if !matches!(size, 16 | 32) || integer && !std::is_x86_feature_detected!("avx2") {
            return Err(Untranslated);
        }
        let mut plan = Plan { insn: *insn, temps: Temps::default() };
        let place = self.operand(insn, insn.op0_kind() == OpKind::Memory, size)?;
        plan.use_host_address(place);
        self.encode(&plan.insn)?;
        self.vectors |= vectors::USED | vectors::AVX;
        Ok(())
    }

    /// MXCSR is the guest's while it masks all exceptions; the handler makes it so that it does
    /// not.
    fn mxcsr(&mut self, insn: &Instruction) -> Done {
        use Mnemonic::{Ldmxcsr, Vldmxcsr, Vstmxcsr};
        let mut plan = Plan { insn: *insn, temps: Temps::default() };
        plan.use_host_address(Place::SA);
        let load = matches!(insn.mnemonic(), Ldmxcsr | Vldmxcsr);
        self.address(insn)?;
        self.probe(!load, 4);
        if load {
            // Another processor must not change it after the check.
            self.asm.load32(SC, Place::SA.host());
            self.asm.store32(field!(new_mxcsr), SC);
            self.handler_unless_zero(|asm| asm.pext(SC, SC, field!(mxcsr_reserved)));
            self.asm.load32(SC, field!(new_mxcsr));
            self.asm.not32(SC);
            self.handler_unless_zero(|asm| asm.pext(SC, SC, field!(mxcsr_masks)));
            self.asm.ldmxcsr(field!(new_mxcsr));
        } else {
            self.encode(&plan.insn)?;
        }
        let vex = matches!(insn.mnemonic(), Vldmxcsr | Vstmxcsr);
        self.vectors |= vectors::USED | vectors::FP | if vex { vectors::AVX } else { 0 };
        Ok(())
    }

    /// The handler executes the instruction if what `f` leaves in [`SC`] is not zero.
    pub(super) fn handler_unless_zero(&mut self, f: impl FnOnce(&mut Asm)) {
        f(&mut self.asm);
        let mut patch = None;
        self.asm.unless_rcx_zero(|asm| patch = Some(asm.jmp_forward()));
        self.handler_from(patch);
    }
}

fn vector_plan(insn: &Instruction, properties: &Properties) -> Result<Plan, Untranslated> {
    let mut plan = Plan { insn: *insn, temps: Temps::default() };
    let mut free = if properties.memory.is_some() { Vec::new() } else { vec![SB, SA] };
    for n in 0..insn.op_count() {
        match insn.op_kind(n) {
            OpKind::Register => {
                let register = insn.op_register(n);
                if register.is_gpr() {
                    let number = register.full_register().number() as u16;
                    let written = properties.gpr_written >> (number & 15) & 1 != 0;
                    plan.register(insn, n, written, &mut free)?;
                } else if !register.is_xmm() && !register.is_ymm() {
                    return Err(Untranslated);
                }
            }
            OpKind::Memory if properties.memory.is_some() => {}
            OpKind::Immediate8 => {}
            _ => return Err(Untranslated),
        }
    }
    debug_assert_ne!(plan.insn.op0_register(), Register::RSP);
    Ok(plan)
}
