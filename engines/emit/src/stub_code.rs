//! The host code of one stub: load what the instruction uses, run it, store what it changed.
//!
//! The instruction keeps its register numbers, but for RSP, which the host needs. Its memory
//! operand becomes the operand buffer. The four pointers that the stub gets in RDI, RSI, RDX, RCX
//! and R8 move to other registers where the instruction uses these.

use iced_x86::{Code, CodeSize, Encoder, IcedError, Instruction, MemoryOperand, OpKind, Register};
use x86_defs::{gpr, xsave};

use crate::Unsupported;
use crate::properties::{Properties, has_memory};

/// What a stub is called with; the module says in which registers.
pub(crate) type Entry = unsafe extern "sysv64" fn(
    area: *mut u8,
    gpr: *mut u64,
    operand: *mut u8,
    flags: *mut u64,
    control: *mut SimdControl,
);

/// MXCSR around one instruction.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct SimdControl {
    /// Guest's control bits with every exception masked and no flag set.
    pub(crate) wanted: u32,
    /// MXCSR after the instruction.
    pub(crate) result: u32,
    /// Exception flags that the guest does not mask.
    pub(crate) unmasked: u32,
    /// The host's own MXCSR.
    pub(crate) host: u32,
}

const WANTED: i64 = 0;
const RESULT: i64 = 4;
const UNMASKED: i64 = 8;
const HOST: i64 = 12;

/// Registers for what the instruction displaces, caller-saved first.
const POOL: [Register; 10] = [
    Register::RAX,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::RBX,
    Register::RBP,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];

const CALLEE_SAVED: [Register; 6] =
    [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];

/// The guest instruction in the form in which the host executes it: the same for every site with
/// the same operation, registers and immediate.
pub(crate) fn normalise(
    insn: &Instruction,
    properties: &Properties,
) -> Result<(Instruction, Pointers), Unsupported> {
    let pointers = Pointers::choose(properties)?;
    let mut normal = *insn;
    normal.set_code_size(CodeSize::Code64);
    normal.set_segment_prefix(Register::None);
    normal.set_has_rep_prefix(false);
    normal.set_has_repne_prefix(false);
    normal.set_has_xacquire_prefix(false);
    normal.set_has_xrelease_prefix(false);
    if has_memory(insn) {
        normal.set_memory_base(pointers.operand);
        normal.set_memory_index(Register::None);
        normal.set_memory_index_scale(1);
        normal.set_memory_displacement64(0);
        normal.set_memory_displ_size(0);
    }
    for n in 0..insn.op_count() {
        if insn.op_kind(n) == OpKind::Register {
            let register = insn.op_register(n);
            if register.is_gpr() && register.full_register() == Register::RSP {
                normal.set_op_register(n, sized(pointers.stack_alias, register.size()));
            }
        }
    }
    Ok((normal, pointers))
}

/// The instruction's own bytes.
pub(crate) fn encode(insn: &Instruction) -> Result<Vec<u8>, Unsupported> {
    let mut encoder = Encoder::new(64);
    encoder.encode(insn, 0).map_err(|_| Unsupported::Encoding)?;
    Ok(encoder.take_buffer())
}

fn sized(register: Register, size: usize) -> Register {
    let number = register.number() as u32;
    match size {
        8 => register,
        4 => Register::EAX + number,
        2 => Register::AX + number,
        // The byte registers with REX: AL, CL, DL, BL, then AH to BH are not among these.
        _ if number < 4 => Register::AL + number,
        _ => Register::SPL + (number - 4),
    }
}

/// Host registers that hold the stub's arguments while the instruction runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pointers {
    area: Register,
    gpr: Register,
    operand: Register,
    flags: Register,
    control: Register,
    /// Stands in for the guest's RSP.
    stack_alias: Register,
    scratch: Register,
}

impl Pointers {
    fn choose(properties: &Properties) -> Result<Self, Unsupported> {
        let used = |register: Register| properties.gpr_used >> register.number() & 1 != 0;
        let stack_alias = if used(Register::RSP) {
            // AH to BH as another operand do not go together with R8 to R15.
            let low = [Register::RAX, Register::RBX, Register::RBP];
            low.into_iter().find(|&register| !used(register)).ok_or(Unsupported::Encoding)?
        } else {
            Register::None
        };
        let mut pool =
            POOL.into_iter().filter(|&register| !used(register) && register != stack_alias);
        let mut next = || pool.next().ok_or(Unsupported::Encoding);
        let mut home = |argument: Register| if used(argument) { next() } else { Ok(argument) };
        Ok(Self {
            area: home(Register::RDI)?,
            gpr: home(Register::RSI)?,
            operand: home(Register::RDX)?,
            flags: home(Register::RCX)?,
            control: home(Register::R8)?,
            stack_alias,
            scratch: next()?,
        })
    }

    fn host_of(&self, guest: usize) -> Register {
        if guest == gpr::RSP { self.stack_alias } else { Register::RAX + guest as u32 }
    }
}

/// Builds the whole stub.
pub(crate) fn build(
    normal: &Instruction,
    pointers: &Pointers,
    properties: &Properties,
) -> Result<Vec<u8>, Unsupported> {
    Builder { asm: Encoder::new(64), at: *pointers, properties }
        .build(normal)
        .map_err(|_| Unsupported::Encoding)
}

struct Builder<'a> {
    asm: Encoder,
    at: Pointers,
    properties: &'a Properties,
}

type Built = Result<(), IcedError>;

impl Builder<'_> {
    fn build(mut self, normal: &Instruction) -> Result<Vec<u8>, IcedError> {
        let saved = self.callee_saved();
        for &register in &saved {
            self.emit(Instruction::with1(Code::Push_r64, register)?)?;
        }
        self.move_arguments()?;
        self.load()?;
        if self.properties.flags_read != 0 {
            self.emit(Instruction::with1(Code::Push_rm64, memory(self.at.flags, 0))?)?;
            self.emit(Instruction::with(Code::Popfq))?;
        }
        self.emit(*normal)?;
        if self.properties.flags_written != 0 {
            self.emit(Instruction::with(Code::Pushfq))?;
            self.emit(Instruction::with1(Code::Pop_rm64, memory(self.at.flags, 0))?)?;
        }
        let skip = if self.properties.simd_fp { Some(self.check_simd_exceptions()?) } else { None };
        self.store()?;
        if let Some(at) = skip {
            self.land(at);
        }
        self.leave()?;
        for &register in saved.iter().rev() {
            self.emit(Instruction::with1(Code::Pop_r64, register)?)?;
        }
        self.emit(Instruction::with(Code::Retnq))?;
        Ok(self.asm.take_buffer())
    }

    fn emit(&mut self, insn: Instruction) -> Built {
        self.asm.encode(&insn, 0).map(|_| ())
    }

    /// `code` with a register and a place in memory, in the order of a load.
    fn load_op(&mut self, code: Code, register: Register, base: Register, at: i64) -> Built {
        self.emit(Instruction::with2(code, register, memory(base, at))?)
    }

    fn store_op(&mut self, code: Code, base: Register, at: i64, register: Register) -> Built {
        self.emit(Instruction::with2(code, memory(base, at), register)?)
    }

    fn callee_saved(&self) -> Vec<Register> {
        let at = &self.at;
        let held = [at.area, at.gpr, at.operand, at.flags, at.control, at.stack_alias, at.scratch];
        let used = |register: Register| self.properties.gpr_used >> register.number() & 1 != 0;
        CALLEE_SAVED
            .into_iter()
            .filter(|register| used(*register) || held.contains(register))
            .collect()
    }

    fn move_arguments(&mut self) -> Built {
        let at = self.at;
        for (to, from) in [
            (at.area, Register::RDI),
            (at.gpr, Register::RSI),
            (at.operand, Register::RDX),
            (at.flags, Register::RCX),
            (at.control, Register::R8),
        ] {
            if to != from {
                self.emit(Instruction::with2(Code::Mov_r64_rm64, to, from)?)?;
            }
        }
        Ok(())
    }

    fn load(&mut self) -> Built {
        let (at, properties) = (self.at, self.properties);
        for n in bits(properties.gpr_used) {
            self.load_op(Code::Mov_r64_rm64, at.host_of(n), at.gpr, 8 * n as i64)?;
        }
        if properties.on_x87() {
            self.emit(Instruction::with1(Code::Fxrstor64_m512byte, memory(at.area, 0))?)?;
        } else {
            for n in bits(properties.vector_used) {
                self.load_vector(n)?;
            }
        }
        if properties.simd_fp {
            self.emit(Instruction::with1(Code::Ldmxcsr_m32, memory(at.control, WANTED))?)?;
        }
        Ok(())
    }

    fn load_vector(&mut self, n: usize) -> Built {
        let area = self.at.area;
        let (low, high) = vector_places(n);
        let xmm = Register::XMM0 + n as u32;
        if !self.properties.vex {
            return self.load_op(Code::Movaps_xmm_xmmm128, xmm, area, low);
        }
        self.load_op(Code::VEX_Vmovaps_xmm_xmmm128, xmm, area, low)?;
        if self.properties.wide {
            let ymm = Register::YMM0 + n as u32;
            let from = memory(area, high);
            let code = Code::VEX_Vinsertf128_ymm_ymm_xmmm128_imm8;
            self.emit(Instruction::with4(code, ymm, ymm, from, 1)?)?;
        }
        Ok(())
    }

    /// Leaves without storing anything if the instruction raised an unmasked exception; the
    /// place of the jump's distance is returned.
    fn check_simd_exceptions(&mut self) -> Result<usize, IcedError> {
        let (control, scratch) = (self.at.control, sized(self.at.scratch, 4));
        self.emit(Instruction::with1(Code::Stmxcsr_m32, memory(control, RESULT))?)?;
        self.load_op(Code::Mov_r32_rm32, scratch, control, RESULT)?;
        self.store_op(Code::Test_rm32_r32, control, UNMASKED, scratch)?;
        // JNE rel32.
        for byte in [0x0f, 0x85, 0, 0, 0, 0] {
            self.asm.write_u8(byte);
        }
        let buffer = self.asm.take_buffer();
        let at = buffer.len() - 4;
        self.asm.set_buffer(buffer);
        Ok(at)
    }

    /// Makes the jump whose distance is at `at` end here.
    fn land(&mut self, at: usize) {
        let mut buffer = self.asm.take_buffer();
        let distance = (buffer.len() - at - 4) as u32;
        if let Some(place) = buffer.get_mut(at..at + 4) {
            place.copy_from_slice(&distance.to_le_bytes());
        }
        self.asm.set_buffer(buffer);
    }

    fn store(&mut self) -> Built {
        let (at, properties) = (self.at, self.properties);
        for n in bits(properties.gpr_written) {
            self.store_op(Code::Mov_rm64_r64, at.gpr, 8 * n as i64, at.host_of(n))?;
        }
        if properties.on_x87() {
            return self.emit(Instruction::with1(Code::Fxsave64_m512byte, memory(at.area, 0))?);
        }
        for n in bits(properties.vector_written) {
            let (low, high) = vector_places(n);
            let xmm = Register::XMM0 + n as u32;
            if properties.vex {
                let ymm = Register::YMM0 + n as u32;
                let to = memory(at.area, high);
                self.store_op(Code::VEX_Vmovaps_xmmm128_xmm, at.area, low, xmm)?;
                let code = Code::VEX_Vextractf128_xmmm128_ymm_imm8;
                self.emit(Instruction::with3(code, to, ymm, 1)?)?;
            } else {
                self.store_op(Code::Movaps_xmmm128_xmm, at.area, low, xmm)?;
            }
        }
        Ok(())
    }

    /// Gives the host its own state back.
    fn leave(&mut self) -> Built {
        let properties = self.properties;
        if properties.on_x87() {
            // FXRSTOR loaded the guest's MXCSR too.
            self.emit(Instruction::with(Code::Fninit))?;
            self.emit(Instruction::with1(Code::Ldmxcsr_m32, memory(self.at.control, HOST))?)?;
        } else if properties.simd_fp {
            // Exception flags may stay: nothing in the host reads them. Control bits may not.
            let control = self.at.control;
            let scratch = sized(self.at.scratch, 4);
            self.load_op(Code::Mov_r32_rm32, scratch, control, WANTED)?;
            self.store_op(Code::Cmp_rm32_r32, control, HOST, scratch)?;
            // JE over the next instruction.
            let mut restore = Encoder::new(64);
            let ldmxcsr = Instruction::with1(Code::Ldmxcsr_m32, memory(control, HOST))?;
            let len = restore.encode(&ldmxcsr, 0)?;
            self.asm.write_u8(0x74);
            self.asm.write_u8(len as u8);
            self.emit(ldmxcsr)?;
        }
        if properties.vex && properties.vector_used != 0 {
            self.emit(Instruction::with(Code::VEX_Vzeroupper))?;
        }
        Ok(())
    }
}

fn memory(base: Register, displacement: i64) -> MemoryOperand {
    MemoryOperand::with_base_displ(base, displacement)
}

/// Offsets of the halves of a vector register in the XSAVE area.
fn vector_places(n: usize) -> (i64, i64) {
    ((xsave::XMM + 16 * n) as i64, (xsave::YMM_HI + 16 * n) as i64)
}

fn bits(set: u16) -> impl Iterator<Item = usize> {
    (0..16).filter(move |n| set >> n & 1 != 0)
}
