//! Instructions that run on the host as they are, with other operands.

use super::{Done, Lowerer, Untranslated, bits, scratch::Busy};
use crate::{
    forms::OPERANDS,
    probe::Place,
    regs::{self, GUEST_RCX, SA, SB, SC},
    state::field,
};
use iced_x86::{Instruction, Mnemonic, OpAccess, OpKind, Register};

/// General-purpose instructions that have no other effects than their operands' and the status
/// flags', and implicit operands in RAX and RDX only.
pub(super) fn listed(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Mov | Movzx
            | Movsx
            | Movsxd
            | Add
            | Or
            | Adc
            | Sbb
            | And
            | Sub
            | Xor
            | Cmp
            | Test
            | Inc
            | Dec
            | Neg
            | Not
            | Shl
            | Shr
            | Sar
            | Rol
            | Ror
            | Rcl
            | Rcr
            | Shld
            | Shrd
            | Imul
            | Mul
            | Bt
            | Bts
            | Btr
            | Btc
            | Bsf
            | Bsr
            | Tzcnt
            | Lzcnt
            | Popcnt
            | Bswap
            | Xchg
            | Cmpxchg
            | Xadd
            | Movbe
            | Cbw
            | Cwde
            | Cdqe
            | Cwd
            | Cdq
            | Cqo
            | Clc
            | Stc
            | Cmc
            | Lahf
            | Sahf
            | Crc32
            | Andn
            | Bextr
            | Blsi
            | Blsr
            | Blsmsk
            | Bzhi
            | Mulx
            | Pdep
            | Pext
            | Rorx
            | Sarx
            | Shlx
            | Shrx
            | Lfence
            | Mfence
            | Sfence
    )
}

/// Such an instruction runs as it is.
pub(super) fn copied(mnemonic: Mnemonic) -> bool {
    listed(mnemonic) || conditional(mnemonic)
}

/// CMOVcc and SETcc.
pub(super) fn conditional(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    let moves = matches!(
        mnemonic,
        Cmova
            | Cmovae
            | Cmovb
            | Cmovbe
            | Cmove
            | Cmovg
            | Cmovge
            | Cmovl
            | Cmovle
            | Cmovne
            | Cmovno
            | Cmovnp
            | Cmovns
            | Cmovo
            | Cmovp
            | Cmovs
    );
    let sets = matches!(
        mnemonic,
        Seta | Setae
            | Setb
            | Setbe
            | Sete
            | Setg
            | Setge
            | Setl
            | Setle
            | Setne
            | Setno
            | Setnp
            | Setns
            | Seto
            | Setp
            | Sets
    );
    moves || sets
}

/// The last operand is a count in CL.
fn counts_in_cl(insn: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(insn.mnemonic(), Shl | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd)
        && insn.op_kind(insn.op_count().wrapping_sub(1)) == OpKind::Register
}

pub fn writes(access: OpAccess) -> bool {
    use OpAccess::*;
    matches!(access, Write | CondWrite | ReadWrite | ReadCondWrite)
}

/// Operands that stand in for those of the guest.
pub(super) struct Plan {
    pub insn: Instruction,
    pub temps: Temps,
}

/// Scratch registers that stand in for guest registers, and whether they are written.
#[derive(Clone, Copy, Default)]
pub(super) struct Temps {
    items: [(u8, u8, bool); 3],
    len: usize,
}

impl Temps {
    pub fn push(&mut self, guest: u8, scratch: u8, written: bool) {
        // There are no more scratch registers than places.
        if let Some(place) = self.items.get_mut(self.len) {
            *place = (guest, scratch, written);
            self.len += 1;
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &(u8, u8, bool)> {
        self.items.iter().take(self.len)
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut (u8, u8, bool)> {
        self.items.iter_mut().take(self.len)
    }
}

impl Lowerer<'_> {
    pub(super) fn instruction(&mut self, insn: &Instruction) -> Done {
        use Mnemonic::*;
        let mnemonic = insn.mnemonic();
        if let Some(done) = self.short_own(insn) {
            return done;
        }
        match mnemonic {
            Nop | Endbr64 | Endbr32 => Ok(()),
            Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetchnta | Prefetchw => Ok(()),
            Lea => self.lea(insn),
            Push | Pop | Leave | Call | Ret if self.narrow => self.narrow_stack(insn),
            Vzeroupper | Vzeroall if self.narrow => Err(Untranslated),
            Push => self.push(insn),
            Pop => self.pop(insn),
            Leave => self.leave(insn),
            Jmp => self.jmp(insn),
            Call => self.call(insn),
            Ret => self.ret(insn),
            Cli => self.cli(),
            Sti => self.sti(),
            Swapgs => self.swapgs(),
            Sidt | Sgdt => self.store_table(insn),
            Rdtsc | Rdtscp => self.rdtsc(insn),
            Rdpid => self.rdpid(insn),
            Cpuid => self.cpuid(),
            Syscall => self.syscall(insn),
            Sysretq => self.sysret(insn),
            Pushfq => self.pushf(insn),
            Stac | Clac => self.set_ac(insn),
            _ if insn.is_jcc_short_or_near() => self.jcc(insn),
            Cld => self.cld(),
            Mov if insn.op1_register().is_segment_register() => self.mov_from_segment(insn),
            Mov if insn.op1_register().is_cr() => self.mov_from_control(insn),
            Rdfsbase | Rdgsbase => self.read_base(insn),
            Wrfsbase | Wrgsbase => self.write_base(insn),
            _ if bits::is_string(insn) => self.bit_string(insn),
            _ if insn.is_string_instruction() => self.string(insn),
            _ if listed(mnemonic) => self.copy(insn),
            _ if conditional(mnemonic) => self.copy(insn),
            Cmpxchg8b | Cmpxchg16b => self.cmpxchg_wide(insn),
            Div => self.div(insn),
            Idiv => self.idiv(insn),
            _ => self.vector(insn),
        }
    }

    pub(super) fn copy(&mut self, insn: &Instruction) -> Done {
        if insn.mnemonic() == Mnemonic::Cmpxchg && insn.op0_kind() == OpKind::Register {
            // Processors differ in the upper half of what stays as it is.
            return Err(Untranslated);
        }
        let mut plan = Plan { insn: *insn, temps: Temps::default() };
        let accesses = self.op_accesses(insn);
        let mut busy = Busy::default();
        if let Some(n) = (0..insn.op_count()).find(|n| insn.op_kind(*n) == OpKind::Memory) {
            let write = accesses.get(n as usize).is_some_and(|access| writes(*access));
            let place = self.operand(insn, write, memory_size(insn)?)?;
            plan.use_host_address(place);
            busy.push(place.base);
            busy.push(SB);
        }
        if counts_in_cl(insn) {
            self.asm.mov(SC, GUEST_RCX, true);
            self.scratch.lost(SC);
            busy.push(SC);
        }
        self.registers(insn, &accesses, &mut plan, &mut busy)?;
        if !busy.contains(SB) {
            self.reuse.keep();
        }
        let high = (0..insn.op_count()).filter(|n| insn.op_kind(*n) == OpKind::Register);
        let high: Vec<u32> = high.filter(|n| is_high(insn.op_register(*n))).collect();
        let plain = !high.iter().any(|n| insn.op_register(*n) == Register::CH);
        if !plain || self.encode(&plan.insn).is_err() {
            let &[n] = &high[..] else { return Err(Untranslated) };
            let written = accesses.get(n as usize).is_some_and(|access| writes(*access));
            self.with_high_byte(&mut plan, n, written, busy)?;
        }
        for (guest, scratch, _) in plan.temps.iter().filter(|(.., written)| *written) {
            self.set(*guest, *scratch);
        }
        Ok(())
    }

    /// What the instruction does to each operand.
    pub(super) fn op_accesses(&mut self, insn: &Instruction) -> [OpAccess; OPERANDS] {
        if let Some(facts) = self.forms.facts(insn) {
            return match clears(insn) {
                true => [
                    OpAccess::Write,
                    OpAccess::None,
                    OpAccess::None,
                    OpAccess::None,
                    OpAccess::None,
                ],
                false => facts.accesses,
            };
        }
        let info = self.forms.factory.info(insn);
        let mut accesses = [OpAccess::None; OPERANDS];
        (0..insn.op_count()).zip(&mut accesses).for_each(|(n, a)| *a = info.op_access(n));
        accesses
    }

    /// With CL instead of AH to BH: these are not to be had where an operand needs a REX
    /// prefix, and CH is elsewhere.
    fn with_high_byte(&mut self, plan: &mut Plan, n: u32, written: bool, busy: Busy) -> Done {
        if busy.contains(SC) {
            return Err(Untranslated);
        }
        let register = plan.insn.op_register(n);
        // Of AH, CH, DH and BH, in the instructions below.
        let number = register.number() as u8 & 7;
        let is_ch = register == Register::CH;
        self.scratch.lost(SC);
        if is_ch {
            self.asm.rorx(SC, GUEST_RCX, 8);
        } else {
            self.asm.bytes(&[0x0f, 0xb6, 0xc8 | number]); // movzx ecx, ah
        }
        plan.insn.set_op_register(n, Register::CL);
        self.encode(&plan.insn)?;
        if written && is_ch {
            self.asm.rorx(GUEST_RCX, GUEST_RCX, 8);
            self.asm.bytes(&[0x41, 0x88, 0xc8 | GUEST_RCX & 7]); // mov r9b, cl
            self.asm.rorx(GUEST_RCX, GUEST_RCX, 56);
        } else if written {
            self.asm.bytes(&[0x88, 0xc8 | number]); // mov ah, cl
        }
        Ok(())
    }

    /// CMPXCHG8B and CMPXCHG16B: RCX is an operand.
    fn cmpxchg_wide(&mut self, insn: &Instruction) -> Done {
        let mut plan = Plan { insn: *insn, temps: Temps::default() };
        plan.use_host_address(Place::SA);
        self.address(insn)?;
        let size = insn.memory_size().size();
        if size == 16 {
            self.handler_unless_zero(|asm| asm.pext(SC, SA, field!(below_16)));
        }
        self.probe(true, size);
        self.asm.mov(SC, GUEST_RCX, true);
        self.encode(&plan.insn)
    }

    /// The registers that stand in for the operands.
    fn registers(
        &mut self,
        insn: &Instruction,
        accesses: &[OpAccess; OPERANDS],
        plan: &mut Plan,
        busy: &mut Busy,
    ) -> Done {
        let count_operand = counts_in_cl(insn).then(|| insn.op_count() - 1);
        for (n, access) in (0..insn.op_count()).zip(accesses) {
            match insn.op_kind(n) {
                OpKind::Register if Some(n) == count_operand => {}
                OpKind::Register => {
                    let register = insn.op_register(n);
                    if is_high(register) {
                        // They are where the guest has them, but for CH. With operands that
                        // need a REX prefix there is no encoding, which the encoder finds.
                        continue;
                    }
                    let guest = regs::number(register).ok_or(Untranslated)?;
                    let known = plan.temps.iter_mut().find(|(known, ..)| *known == guest);
                    let host = match (regs::home(guest), known) {
                        (Some(host), _) => host,
                        (None, Some((_, host, written))) => {
                            *written |= writes(*access);
                            *host
                        }
                        (None, None) => {
                            let host =
                                self.operand_in(guest, reads(insn, accesses, guest), busy)?;
                            plan.temps.push(guest, host, writes(*access));
                            host
                        }
                    };
                    plan.insn.set_op_register(n, regs::name(host, register.size()));
                }
                OpKind::Memory
                | OpKind::Immediate8
                | OpKind::Immediate16
                | OpKind::Immediate32
                | OpKind::Immediate64
                | OpKind::Immediate8to16
                | OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate32to64 => {}
                _ => return Err(Untranslated),
            }
        }
        Ok(())
    }
}

/// Its result is zero whatever is in the register.
fn clears(insn: &Instruction) -> bool {
    let same = insn.op0_kind() == OpKind::Register
        && insn.op1_kind() == OpKind::Register
        && insn.op0_register() == insn.op1_register();
    same && matches!(insn.mnemonic(), Mnemonic::Xor | Mnemonic::Sub)
}

fn is_high(register: Register) -> bool {
    matches!(register, Register::AH | Register::BH | Register::CH | Register::DH)
}

/// The instruction's result depends on what is in a register, one of its operands.
fn reads(insn: &Instruction, accesses: &[OpAccess], guest: u8) -> bool {
    (0..insn.op_count()).zip(accesses).any(|(n, access)| {
        let register = insn.op_register(n);
        let replaced = *access == OpAccess::Write && register.size() >= 4;
        insn.op_kind(n) == OpKind::Register && regs::number(register) == Some(guest) && !replaced
    })
}

/// The instruction keeps account of what it does to scratch registers.
pub(super) fn keeps_account(insn: &Instruction, narrow: bool) -> bool {
    use Mnemonic::*;
    let mnemonic = insn.mnemonic();
    matches!(mnemonic, Lea | Nop | Endbr64 | Endbr32)
        || matches!(mnemonic, Push | Pop) && !narrow
        || listed(mnemonic)
        || conditional(mnemonic)
}

/// The size of a memory operand that general instructions can have.
fn memory_size(insn: &Instruction) -> Result<usize, Untranslated> {
    use Mnemonic::{Bt, Btc, Btr, Bts};
    use iced_x86::Code::*;
    let absolute = matches!(
        insn.code(),
        Mov_AL_moffs8
            | Mov_AX_moffs16
            | Mov_EAX_moffs32
            | Mov_RAX_moffs64
            | Mov_moffs8_AL
            | Mov_moffs16_AX
            | Mov_moffs32_EAX
            | Mov_moffs64_RAX
    );
    // A bit number in a register reaches beyond the operand.
    let bits =
        matches!(insn.mnemonic(), Bt | Bts | Btr | Btc) && insn.op1_kind() == OpKind::Register;
    let size = insn.memory_size().size();
    if absolute || bits || !matches!(size, 1 | 2 | 4 | 8) {
        return Err(Untranslated);
    }
    Ok(size)
}

impl Plan {
    pub fn register(
        &mut self,
        insn: &Instruction,
        n: u32,
        write: bool,
        free: &mut Vec<u8>,
    ) -> Result<(), Untranslated> {
        let register = insn.op_register(n);
        if matches!(register, Register::AH | Register::BH | Register::DH) {
            // They are where the guest has them. With operands that need a REX prefix there is
            // no encoding, which the encoder finds.
            return Ok(());
        }
        let guest = regs::number(register).ok_or(Untranslated)?;
        let known = self.temps.iter_mut().find(|(g, ..)| *g == guest);
        let host = match (regs::home(guest), known) {
            (Some(host), _) => host,
            (None, Some((_, scratch, written))) => {
                *written |= write;
                *scratch
            }
            (None, None) => {
                let scratch = free.pop().ok_or(Untranslated)?;
                self.temps.push(guest, scratch, write);
                scratch
            }
        };
        self.insn.set_op_register(n, regs::name(host, register.size()));
        Ok(())
    }

    /// The memory operand is where the TLB says.
    pub fn use_host_address(&mut self, place: Place) {
        let to = &mut self.insn;
        to.set_segment_prefix(Register::None);
        to.set_memory_base(regs::name(place.base, 8));
        to.set_memory_index(regs::name(SB, 8));
        to.set_memory_index_scale(1);
        to.set_memory_displacement64(i64::from(place.disp) as u64);
        to.set_memory_displ_size((place.disp != 0).into());
    }
}
