//! SSE and AVX instructions: they run on the host, with their registers loaded from the guest's
//! XSAVE area and stored to it.

use super::{Done, Lowerer, Untranslated, copy::Plan};
use crate::{
    asm::{Asm, Mem},
    probe::Place,
    regs::{SA, SB, SC},
    state::{field, gpr},
};
use emit::{Properties, Unit};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use x86_defs::xsave;

/// With implicit operands in general registers.
fn strings(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Pcmpestri
            | Pcmpestri64
            | Pcmpestrm
            | Pcmpestrm64
            | Pcmpistri
            | Pcmpistrm
            | Vpcmpestri
            | Vpcmpestri64
            | Vpcmpestrm
            | Vpcmpestrm64
            | Vpcmpistri
            | Vpcmpistrm
    )
}

/// Where register `n` is, with [`SC`] pointing to the area.
fn lower(n: u8) -> Mem {
    Mem::at(SC, xsave::XMM as i32 + 16 * i32::from(n))
}

fn upper(n: u8) -> Mem {
    Mem::at(SC, xsave::YMM_HI as i32 + 16 * i32::from(n))
}

fn members(set: u16) -> impl Iterator<Item = u8> {
    (0..16).filter(move |n| set >> n & 1 != 0)
}

impl Lowerer<'_> {
    pub(super) fn vector(&mut self, insn: &Instruction) -> Done {
        let properties = Properties::of(insn).map_err(|_| Untranslated)?;
        let bad = match properties.unit {
            Unit::Sse => field!(bad_sse),
            Unit::Avx => field!(bad_avx),
            _ => return Err(Untranslated),
        };
        if strings(insn.mnemonic()) {
            return Err(Untranslated);
        }
        let plan = vector_plan(insn, &properties)?;
        self.handler_unless_zero(|asm| asm.load(SC, bad));
        if properties.simd_fp {
            self.handler_unless_zero(|asm| asm.load(SC, field!(bad_fp)));
        }
        if let Some(memory) = properties.memory {
            self.address(insn)?;
            let below = match memory.alignment {
                1 => None,
                16 => Some(field!(below_16)),
                32 => Some(field!(below_32)),
                _ => return Err(Untranslated),
            };
            if let Some(below) = below {
                self.handler_unless_zero(|asm| asm.pext(SC, SA, below));
            }
            self.probe(memory.write, memory.size.into());
        }
        self.asm.load(SC, field!(fpu));
        for (guest, scratch, _) in &plan.temps {
            self.asm.load(*scratch, gpr(*guest));
        }
        load(&mut self.asm, &properties);
        self.encode(&plan.insn)?;
        store(&mut self.asm, &properties);
        for (guest, scratch, _) in plan.temps.iter().filter(|(.., written)| *written) {
            self.asm.store(gpr(*guest), *scratch);
        }
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

fn load(asm: &mut Asm, properties: &Properties) {
    for n in members(properties.vector_used) {
        if !properties.vex {
            asm.load_xmm(n, lower(n));
            continue;
        }
        asm.vload_xmm(n, lower(n));
        if properties.wide {
            asm.vload_upper(n, upper(n));
        }
    }
}

fn store(asm: &mut Asm, properties: &Properties) {
    for n in members(properties.vector_written) {
        if properties.vex {
            asm.vstore_xmm(lower(n), n);
            asm.vstore_upper(upper(n), n);
        } else {
            asm.store_xmm(lower(n), n);
        }
    }
    if properties.vex {
        // Instructions without VEX are slow while an upper half is in use.
        asm.vzeroupper();
    }
}

fn vector_plan(insn: &Instruction, properties: &Properties) -> Result<Plan, Untranslated> {
    let mut plan = Plan { insn: *insn, temps: Vec::new(), memory: None };
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
            OpKind::Memory if properties.memory.is_some() => plan.use_host_address(Place::SA),
            OpKind::Immediate8 => {}
            _ => return Err(Untranslated),
        }
    }
    debug_assert_ne!(plan.insn.op0_register(), Register::RSP);
    Ok(plan)
}
