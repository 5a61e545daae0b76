//! Handlers of integer instructions.

use super::{Pick, Picker, cold, hot, operands::Place, operands::segment_number};
use crate::{
    Handler,
    features::IsaFeatures,
    int_alu as alu, int_bcd as bcd, int_bits as bits, int_branch as branch, int_flags as flags,
    int_io as io, int_mov as mov, int_muldiv as muldiv, int_shift as shift, int_stack as stack,
    int_string as string,
    operand::{Any, Flat, Reg},
};
use iced_x86::{Code, ConditionCode, CpuidFeature, Mnemonic, Register};

/// `path::<args..., Place>`.
macro_rules! at {
    ($place:expr, $($f:ident)::+ [$($arg:tt)*]) => {
        match $place {
            Place::Reg => $($f)::+::<$($arg)* Reg> as Handler,
            Place::Flat => $($f)::+::<$($arg)* Flat> as Handler,
            Place::Any => $($f)::+::<$($arg)* Any> as Handler,
        }
    };
}

/// `path::<args..., width>` with 8 bits among the widths.
macro_rules! width8 {
    ($width:expr, $($f:ident)::+ [$($arg:tt)*]) => {
        match $width {
            1 => $($f)::+::<$($arg)* u8> as Handler,
            2 => $($f)::+::<$($arg)* u16> as Handler,
            4 => $($f)::+::<$($arg)* u32> as Handler,
            _ => $($f)::+::<$($arg)* u64> as Handler,
        }
    };
}

/// `path::<args..., width, Place>`.
macro_rules! form {
    ($width:expr, $place:expr, $($f:ident)::+ [$($arg:tt)*]) => {
        match $width {
            1 => at!($place, $($f)::+ [$($arg)* u8,]),
            2 => at!($place, $($f)::+ [$($arg)* u16,]),
            4 => at!($place, $($f)::+ [$($arg)* u32,]),
            _ => at!($place, $($f)::+ [$($arg)* u64,]),
        }
    };
}

/// The same without 8 bits.
macro_rules! wide {
    ($width:expr, $place:expr, $($f:ident)::+ [$($arg:tt)*]) => {
        match $width {
            2 => at!($place, $($f)::+ [$($arg)* u16,]),
            4 => at!($place, $($f)::+ [$($arg)* u32,]),
            _ => at!($place, $($f)::+ [$($arg)* u64,]),
        }
    };
}

/// By condition code.
macro_rules! condition {
    ($code:expr, $mac:ident ! ($($before:tt)*) [$($after:tt)*]) => {
        match $code {
            0 => $mac!($($before)* [0, $($after)*]),
            1 => $mac!($($before)* [1, $($after)*]),
            2 => $mac!($($before)* [2, $($after)*]),
            3 => $mac!($($before)* [3, $($after)*]),
            4 => $mac!($($before)* [4, $($after)*]),
            5 => $mac!($($before)* [5, $($after)*]),
            6 => $mac!($($before)* [6, $($after)*]),
            7 => $mac!($($before)* [7, $($after)*]),
            8 => $mac!($($before)* [8, $($after)*]),
            9 => $mac!($($before)* [9, $($after)*]),
            10 => $mac!($($before)* [10, $($after)*]),
            11 => $mac!($($before)* [11, $($after)*]),
            12 => $mac!($($before)* [12, $($after)*]),
            13 => $mac!($($before)* [13, $($after)*]),
            14 => $mac!($($before)* [14, $($after)*]),
            _ => $mac!($($before)* [15, $($after)*]),
        }
    };
}

macro_rules! plain {
    ($($f:ident)::+ [$($arg:tt)*]) => {
        $($f)::+::<$($arg)*> as Handler
    };
}

impl Picker<'_> {
    pub fn integer(&mut self, features: IsaFeatures) -> Option<Pick> {
        self.moves()
            .or_else(|| self.arithmetic())
            .or_else(|| self.shifts())
            .or_else(|| self.branches())
            .or_else(|| self.stack())
            .or_else(|| self.bits(features))
            .or_else(|| self.strings())
            .or_else(|| self.conversions())
            .or_else(|| self.others())
    }

    fn alu<Op: alu::Alu>(&mut self) -> Option<Pick> {
        let width = self.width(0);
        if self.is_memory(1) {
            self.reg(0)?;
            let place = self.rm(1)?;
            return hot(form!(width, place, alu::r_rm [Op,]));
        }
        let place = self.rm(0)?;
        if self.is_immediate(1) {
            self.imm(1)?;
            return hot(form!(width, place, alu::rm_i [Op,]));
        }
        self.reg(1)?;
        hot(form!(width, place, alu::rm_r [Op,]))
    }

    fn arithmetic(&mut self) -> Option<Pick> {
        use Mnemonic::*;
        let mnemonic = self.iced.mnemonic();
        match mnemonic {
            Add => self.alu::<alu::Add>(),
            Or => self.alu::<alu::Or>(),
            Adc => self.alu::<alu::Adc>(),
            Sbb => self.alu::<alu::Sbb>(),
            And => self.alu::<alu::And>(),
            Sub | Xor => {
                let pick =
                    if mnemonic == Sub { self.alu::<alu::Sub>() } else { self.alu::<alu::Xor>() };
                if !self.is_memory(0) && !self.is_memory(1) && self.same_registers() {
                    return hot(width8!(self.width(0), alu::zero []));
                }
                pick
            }
            Cmp => self.alu::<alu::Cmp>(),
            Test => self.alu::<alu::Test>(),
            Inc | Dec | Neg | Not | Mul | Div | Idiv => {
                let (width, place) = (self.width(0), self.rm(0)?);
                hot(match mnemonic {
                    Inc => form!(width, place, alu::inc []),
                    Dec => form!(width, place, alu::dec []),
                    Neg => form!(width, place, alu::neg []),
                    Not => form!(width, place, alu::not []),
                    Mul => form!(width, place, muldiv::mul []),
                    Div => form!(width, place, muldiv::div []),
                    _ => form!(width, place, muldiv::idiv []),
                })
            }
            Imul => self.imul(),
            Mulx => {
                self.insn.osize = self.width(0);
                cold(muldiv::mulx)
            }
            _ => None,
        }
    }

    fn imul(&mut self) -> Option<Pick> {
        let width = self.width(0);
        match self.iced.op_count() {
            1 => {
                let place = self.rm(0)?;
                hot(form!(width, place, muldiv::imul []))
            }
            2 => {
                self.reg(0)?;
                let place = self.rm(1)?;
                hot(wide!(width, place, muldiv::imul_r_rm []))
            }
            _ => {
                self.reg(0)?;
                let place = self.rm(1)?;
                self.imm(2)?;
                hot(wide!(width, place, muldiv::imul_r_rm_i []))
            }
        }
    }

    fn moves(&mut self) -> Option<Pick> {
        use Mnemonic::*;
        let mnemonic = self.iced.mnemonic();
        match mnemonic {
            Mov => self.mov(),
            Movnti => {
                self.reg(1)?;
                let (width, place) = (self.width(1), self.rm(0)?);
                hot(wide!(width, place, mov::rm_r []))
            }
            Movzx | Movsx | Movsxd => {
                self.reg(0)?;
                let (from, to) = (self.width(1), self.width(0));
                let place = self.rm(1)?;
                let signed = mnemonic != Movzx;
                hot(match (signed, from, to) {
                    (false, 1, 2) => at!(place, mov::movzx [u8, u16,]),
                    (false, 1, 4) => at!(place, mov::movzx [u8, u32,]),
                    (false, 1, _) => at!(place, mov::movzx [u8, u64,]),
                    (false, _, 2) => at!(place, mov::movzx [u16, u16,]),
                    (false, _, 4) => at!(place, mov::movzx [u16, u32,]),
                    (false, _, _) => at!(place, mov::movzx [u16, u64,]),
                    (true, 1, 2) => at!(place, mov::movsx [u8, u16,]),
                    (true, 1, 4) => at!(place, mov::movsx [u8, u32,]),
                    (true, 1, _) => at!(place, mov::movsx [u8, u64,]),
                    (true, 2, 2) => at!(place, mov::movsx [u16, u16,]),
                    (true, 2, 4) => at!(place, mov::movsx [u16, u32,]),
                    (true, 2, _) => at!(place, mov::movsx [u16, u64,]),
                    (true, _, 2) => at!(place, mov::movsx [u16, u16,]),
                    (true, _, 4) => at!(place, mov::movsx [u32, u32,]),
                    (true, _, _) => at!(place, mov::movsx [u32, u64,]),
                })
            }
            Lea => {
                self.reg(0)?;
                hot(width8!(self.width(0), mov::lea []))
            }
            Xchg => {
                let width = self.width(0);
                if self.is_memory(0) || self.is_memory(1) {
                    self.reg(u32::from(self.is_memory(0)))?;
                    return hot(width8!(width, mov::xchg_mem []));
                }
                self.rm(0)?;
                self.reg(1)?;
                hot(width8!(width, mov::xchg_reg []))
            }
            Xadd => {
                self.reg(1)?;
                let (width, place) = (self.width(1), self.rm(0)?);
                hot(form!(width, place, mov::xadd []))
            }
            Cmpxchg => {
                self.reg(1)?;
                let (width, place) = (self.width(1), self.rm(0)?);
                if place == Place::Reg {
                    return hot(width8!(width, mov::cmpxchg_reg []));
                }
                hot(form!(width, place, mov::cmpxchg []))
            }
            Cmpxchg8b => hot(mov::cmpxchg8b),
            Cmpxchg16b => hot(mov::cmpxchg16b),
            Movbe if self.is_memory(0) => {
                self.reg(1)?;
                let (width, place) = (self.width(1), self.rm(0)?);
                hot(wide!(width, place, mov::movbe_store []))
            }
            Movbe => {
                self.reg(0)?;
                let (width, place) = (self.width(0), self.rm(1)?);
                hot(wide!(width, place, mov::movbe_load []))
            }
            _ => None,
        }
    }

    fn mov(&mut self) -> Option<Pick> {
        if let Some(pick) = self.absolute() {
            return Some(pick);
        }
        if self.is_immediate(1) {
            let (width, place) = (self.width(0), self.rm(0)?);
            self.imm(1)?;
            return hot(form!(width, place, mov::rm_i []));
        }
        if self.is_memory(1) {
            self.reg(0)?;
            let (width, place) = (self.width(0), self.rm(1)?);
            return hot(form!(width, place, mov::r_rm []));
        }
        // Segment, control and debug registers are not general ones.
        self.reg(1)?;
        let (width, place) = (self.width(1), self.rm(0)?);
        hot(form!(width, place, mov::rm_r []))
    }

    /// MOV with a 64-bit address.
    fn absolute(&mut self) -> Option<Pick> {
        if self.insn.asize != 8 {
            return None;
        }
        let pick = match self.iced.code() {
            Code::Mov_AL_moffs8
            | Code::Mov_AX_moffs16
            | Code::Mov_EAX_moffs32
            | Code::Mov_RAX_moffs64 => hot(width8!(self.width(0), mov::load_abs [])),
            Code::Mov_moffs8_AL
            | Code::Mov_moffs16_AX
            | Code::Mov_moffs32_EAX
            | Code::Mov_moffs64_RAX => hot(width8!(self.width(1), mov::store_abs [])),
            _ => None,
        };
        if pick.is_some() {
            self.insn.reg = 0;
            self.insn.imm = self.iced.memory_displacement64();
        }
        pick
    }

    fn shifts(&mut self) -> Option<Pick> {
        use Mnemonic::*;
        let mnemonic = self.iced.mnemonic();
        if !matches!(mnemonic, Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd) {
            return None;
        }
        let (width, place) = (self.width(0), self.rm(0)?);
        let last = self.iced.op_count().saturating_sub(1);
        let by_imm = self.imm(last).is_some();
        if matches!(mnemonic, Shld | Shrd) {
            self.reg(1)?;
            return hot(match (by_imm, mnemonic == Shld) {
                (true, true) => wide!(width, place, shift::double_imm [true,]),
                (true, false) => wide!(width, place, shift::double_imm [false,]),
                (false, true) => wide!(width, place, shift::double_cl [true,]),
                (false, false) => wide!(width, place, shift::double_cl [false,]),
            });
        }
        hot(match (mnemonic, by_imm) {
            (Shl | Sal, true) => form!(width, place, shift::by_imm [shift::Shl,]),
            (Shl | Sal, false) => form!(width, place, shift::by_cl [shift::Shl,]),
            (Shr, true) => form!(width, place, shift::by_imm [shift::Shr,]),
            (Shr, false) => form!(width, place, shift::by_cl [shift::Shr,]),
            (Sar, true) => form!(width, place, shift::by_imm [shift::Sar,]),
            (Sar, false) => form!(width, place, shift::by_cl [shift::Sar,]),
            (Rol, true) => form!(width, place, shift::by_imm [shift::Rol,]),
            (Rol, false) => form!(width, place, shift::by_cl [shift::Rol,]),
            (Ror, true) => form!(width, place, shift::by_imm [shift::Ror,]),
            (Ror, false) => form!(width, place, shift::by_cl [shift::Ror,]),
            (Rcl, true) => form!(width, place, shift::by_imm [shift::Rcl,]),
            (Rcl, false) => form!(width, place, shift::by_cl [shift::Rcl,]),
            (_, true) => form!(width, place, shift::by_imm [shift::Rcr,]),
            (_, false) => form!(width, place, shift::by_cl [shift::Rcr,]),
        })
    }

    fn branches(&mut self) -> Option<Pick> {
        use Mnemonic::*;
        if self.iced.is_jcc_short_or_near() {
            self.branch()?;
            let code = self.condition_number();
            if self.insn.osize == 8 {
                return hot(condition!(code, plain!(branch::jcc64) []));
            }
            return hot(condition!(code, plain!(branch::jcc) []));
        }
        match self.iced.mnemonic() {
            Jmp if self.branch().is_some() => {
                hot(if self.insn.osize == 8 { branch::jmp_rel64 } else { branch::jmp_rel })
            }
            Call if self.branch().is_some() => {
                hot(if self.insn.osize == 8 { branch::call_rel64 } else { branch::call_rel })
            }
            Jmp if self.iced.is_jmp_near_indirect() => {
                let (width, place) = (self.width(0), self.rm(0)?);
                hot(wide!(width, place, branch::jmp_rm []))
            }
            Call if self.iced.is_call_near_indirect() => {
                let (width, place) = (self.width(0), self.rm(0)?);
                hot(wide!(width, place, branch::call_rm []))
            }
            Ret => {
                self.insn.osize = match self.iced.code() {
                    Code::Retnw | Code::Retnw_imm16 => 2,
                    Code::Retnd | Code::Retnd_imm16 => 4,
                    _ => 8,
                };
                let releases = self.imm(0).is_some();
                hot(if self.insn.osize == 8 && !releases { branch::ret64 } else { branch::ret })
            }
            Loop | Loope | Loopne => {
                use Code::*;
                self.branch()?;
                self.insn.asize = match self.iced.code() {
                    Loop_rel8_16_CX | Loop_rel8_32_CX | Loope_rel8_16_CX | Loope_rel8_32_CX
                    | Loopne_rel8_16_CX | Loopne_rel8_32_CX => 2,
                    Loop_rel8_16_RCX | Loop_rel8_64_RCX | Loope_rel8_16_RCX | Loope_rel8_64_RCX
                    | Loopne_rel8_16_RCX | Loopne_rel8_64_RCX => 8,
                    _ => 4,
                };
                hot(match self.iced.mnemonic() {
                    Loop => branch::loop_while::<2>,
                    Loope => branch::loop_while::<1>,
                    _ => branch::loop_while::<0>,
                })
            }
            Jcxz | Jecxz | Jrcxz => {
                self.branch()?;
                self.insn.asize = match self.iced.mnemonic() {
                    Jcxz => 2,
                    Jecxz => 4,
                    _ => 8,
                };
                hot(branch::jcxz)
            }
            _ => None,
        }
    }

    /// The encoded condition; `iced-x86` counts from 1 in the same order.
    fn condition_number(&self) -> u8 {
        (self.iced.condition_code() as u8).wrapping_sub(1) & 15
    }

    fn stack(&mut self) -> Option<Pick> {
        use Mnemonic::*;
        let size = self.iced.stack_pointer_increment().unsigned_abs() as u8;
        match self.iced.mnemonic() {
            Push => {
                self.insn.osize = size;
                if self.imm(0).is_some() {
                    return hot(stack::push_imm);
                }
                if self.is_memory(0) {
                    return hot(stack::push_mem);
                }
                if self.iced.op0_register().is_segment_register() {
                    self.insn.reg = segment_number(self.iced.op0_register());
                    return hot(stack::push_segment);
                }
                self.rm(0)?;
                hot(if size == 8 { stack::push_reg64 } else { stack::push_reg })
            }
            Pop => {
                self.insn.osize = size;
                if self.is_memory(0) {
                    return hot(stack::pop_mem);
                }
                self.rm(0)?;
                hot(if size == 8 { stack::pop_reg64 } else { stack::pop_reg })
            }
            Pusha | Pushad => {
                self.insn.osize = if self.iced.mnemonic() == Pusha { 2 } else { 4 };
                hot(stack::pusha)
            }
            Popa | Popad => {
                self.insn.osize = if self.iced.mnemonic() == Popa { 2 } else { 4 };
                hot(stack::popa)
            }
            Leave => {
                self.insn.osize = match self.iced.code() {
                    Code::Leavew => 2,
                    Code::Leaved => 4,
                    _ => 8,
                };
                hot(stack::leave)
            }
            Enter => {
                self.insn.osize = match self.iced.code() {
                    Code::Enterw_imm16_imm8 => 2,
                    Code::Enterd_imm16_imm8 => 4,
                    _ => 8,
                };
                self.imm(0)?;
                cold(stack::enter)
            }
            Bound => {
                self.insn.osize = self.width(0);
                cold(stack::bound)
            }
            _ => None,
        }
    }

    fn bit<Op: bits::BitOp>(&mut self) -> Option<Pick> {
        let (width, place) = (self.width(0), self.rm(0)?);
        if self.imm(1).is_some() {
            return hot(wide!(width, place, bits::bit_imm [Op,]));
        }
        self.reg(1)?;
        if place == Place::Reg {
            return hot(wide!(width, place, bits::bit_reg [Op,]));
        }
        hot(width8!(width, bits::bit_string [Op,]))
    }

    fn bits(&mut self, features: IsaFeatures) -> Option<Pick> {
        use Mnemonic::*;
        let mnemonic = self.iced.mnemonic();
        match mnemonic {
            Bt => self.bit::<bits::Bt>(),
            Bts => self.bit::<bits::Bts>(),
            Btr => self.bit::<bits::Btr>(),
            Btc => self.bit::<bits::Btc>(),
            Bsf | Bsr | Tzcnt | Lzcnt | Popcnt => {
                self.reg(0)?;
                let (width, place) = (self.width(0), self.rm(1)?);
                hot(match mnemonic {
                    Popcnt => wide!(width, place, bits::popcnt []),
                    Tzcnt if features.has(CpuidFeature::BMI1) => {
                        wide!(width, place, bits::count [false,])
                    }
                    Lzcnt if features.has(CpuidFeature::LZCNT) => {
                        wide!(width, place, bits::count [true,])
                    }
                    Bsf | Tzcnt => wide!(width, place, bits::bsf [false,]),
                    _ => wide!(width, place, bits::bsf [true,]),
                })
            }
            Andn | Bextr | Bzhi | Blsi | Blsmsk | Blsr | Pdep | Pext | Rorx | Sarx | Shlx
            | Shrx => {
                self.insn.osize = self.width(0);
                cold(bits::bmi)
            }
            Adcx => {
                self.insn.osize = self.width(0);
                cold(bits::adx::<false>)
            }
            Adox => {
                self.insn.osize = self.width(0);
                cold(bits::adx::<true>)
            }
            Crc32 => {
                self.insn.osize = self.width(1);
                cold(bits::crc32)
            }
            _ => None,
        }
    }

    fn strings(&mut self) -> Option<Pick> {
        if !self.iced.is_string_instruction() {
            return None;
        }
        use Mnemonic::*;
        hot(match self.iced.mnemonic() {
            Movsb => string::movs::<u8>,
            Movsw => string::movs::<u16>,
            Movsd => string::movs::<u32>,
            Movsq => string::movs::<u64>,
            Stosb => string::stos::<u8>,
            Stosw => string::stos::<u16>,
            Stosd => string::stos::<u32>,
            Stosq => string::stos::<u64>,
            Lodsb => string::lods::<u8>,
            Lodsw => string::lods::<u16>,
            Lodsd => string::lods::<u32>,
            Lodsq => string::lods::<u64>,
            Scasb => string::scas::<u8>,
            Scasw => string::scas::<u16>,
            Scasd => string::scas::<u32>,
            Scasq => string::scas::<u64>,
            Cmpsb => string::cmps::<u8>,
            Cmpsw => string::cmps::<u16>,
            Cmpsd => string::cmps::<u32>,
            Cmpsq => string::cmps::<u64>,
            Insb => string::ins::<u8>,
            Insw => string::ins::<u16>,
            Insd => string::ins::<u32>,
            Outsb => string::outs::<u8>,
            Outsw => string::outs::<u16>,
            Outsd => string::outs::<u32>,
            _ => return None,
        })
    }

    fn conversions(&mut self) -> Option<Pick> {
        use Mnemonic::*;
        let conditional = self.iced.condition_code() != ConditionCode::None;
        if conditional && self.iced.op_count() == 1 {
            let (code, place) = (self.condition_number(), self.rm(0)?);
            return hot(condition!(code, at!(place, mov::setcc) []));
        }
        if conditional && self.iced.op_count() == 2 {
            self.reg(0)?;
            let (code, width, place) = (self.condition_number(), self.width(0), self.rm(1)?);
            return hot(condition!(code, wide!(width, place, mov::cmov) []));
        }
        hot(match self.iced.mnemonic() {
            Bswap => {
                self.rm(0)?;
                width8!(self.width(0), mov::bswap [])
            }
            Cbw => mov::widen::<u8, u16>,
            Cwde => mov::widen::<u16, u32>,
            Cdqe => mov::widen::<u32, u64>,
            Cwd => mov::sign::<u16>,
            Cdq => mov::sign::<u32>,
            Cqo => mov::sign::<u64>,
            Xlatb => {
                self.insn.seg = self.segment(Register::None);
                self.insn.asize = match self.iced.memory_base() {
                    Register::BX => 2,
                    Register::EBX => 4,
                    _ => 8,
                };
                mov::xlat
            }
            Salc => mov::salc,
            Lahf => flags::lahf,
            Sahf => flags::sahf,
            Clc => flags::carry::<0>,
            Stc => flags::carry::<1>,
            Cmc => flags::carry::<2>,
            Cld => flags::cld,
            Std => flags::std,
            _ => return None,
        })
    }

    fn others(&mut self) -> Option<Pick> {
        use Mnemonic::*;
        match self.iced.mnemonic() {
            Daa => hot(bcd::daa),
            Das => hot(bcd::das),
            Aaa => hot(bcd::aaa),
            Aas => hot(bcd::aas),
            Aam | Aad => {
                self.imm(0)?;
                hot(if self.iced.mnemonic() == Aam { bcd::aam } else { bcd::aad })
            }
            In | Out => {
                let input = self.iced.mnemonic() == In;
                let (data, port) = if input { (0, 1) } else { (1, 0) };
                self.insn.osize = self.width(data);
                self.insn.reg = u8::from(self.imm(port).is_none());
                hot(if input { io::input } else { io::output })
            }
            Rdrand | Rdseed => {
                self.insn.osize = self.width(0);
                cold(flags::random)
            }
            Ud0 | Ud1 | Ud2 => hot(io::undefined),
            Clflush | Clflushopt | Clwb => hot(mov::touch),
            Nop | Pause | Endbr32 | Endbr64 | Prefetch | Prefetchw | Prefetchwt1 | Prefetchnta
            | Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetchit0 | Prefetchit1 | Cldemote
            | Reservednop | Rdsspd | Rdsspq | Lfence | Mfence | Sfence => hot(mov::nop),
            _ => None,
        }
    }
}
