//! Instructions that ring 3 may not execute, and writes to page tables, as Xen does them for a
//! kernel.

use crate::{Domain, XenPv, guest, tables::Level, vcpus::Vcpu};
use engine::CpuView;
use guest_mem::PAGE;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use vcpu_state::SegReg;
use x86_defs::{
    MAX_INSTRUCTION_LEN,
    cr::cr0,
    cr::cr4,
    cr::efer,
    gpr::{RAX, RCX, RDX},
    is_canonical_48, msr,
    paging::ADDRESS,
    rflags,
};

/// What CR0 is for the kernel, but for TS.
const CR0: u64 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG;
/// The PAT of Xen's.
const PAT: u64 = 0x0000_0501_0007_0406;
/// What IA32_SPEC_CTRL has: IBRS, STIBP, SSBD and BHI_DIS_S (SDM volume 4, table 2-2).
pub(crate) const SPEC_CTRL: u64 = 7 | 1 << 10;
const APIC_BASE: u64 = 0xfee0_0000 | 1 << 11;
const APIC_BASE_BSP: u64 = 1 << 8;

/// The instruction at RIP.
fn fetch(cpu: &mut dyn CpuView) -> Option<Instruction> {
    let rip = cpu.regs().rip;
    let mut bytes = [0; MAX_INSTRUCTION_LEN];
    // It may end before a page that is not there.
    let whole = (PAGE - rip % PAGE).min(MAX_INSTRUCTION_LEN as u64) as usize;
    let (first, rest) = bytes.split_at_mut(whole);
    guest::read_bytes(cpu, rip, first).ok()?;
    let has = match guest::read_bytes(cpu, rip.wrapping_add(whole as u64), rest) {
        Ok(()) => MAX_INSTRUCTION_LEN,
        Err(_) => whole,
    };
    let code = bytes.get(..has)?;
    let found = Decoder::with_ip(64, code, rip, DecoderOptions::NONE).decode();
    (!found.is_invalid()).then_some(found)
}

fn number(register: Register) -> usize {
    register.full_register().number() & 15
}

fn get(cpu: &mut dyn CpuView, register: Register) -> u64 {
    let value = cpu.regs().gpr.get(number(register)).copied().unwrap_or(0);
    match register.size() {
        8 => value,
        4 => value & 0xffff_ffff,
        2 => value & 0xffff,
        _ if register.is_gpr8() && (Register::AH..=Register::BH).contains(&register) => {
            let of = register as usize - Register::AH as usize;
            cpu.regs().gpr.get(of).copied().unwrap_or(0) >> 8 & 0xff
        }
        _ => value & 0xff,
    }
}

fn set(cpu: &mut dyn CpuView, register: Register, value: u64) {
    let size = register.size();
    if let Some(slot) = cpu.regs().gpr.get_mut(number(register)) {
        *slot = match size {
            8 => value,
            4 => value & 0xffff_ffff,
            2 => *slot & !0xffff | value & 0xffff,
            _ => *slot & !0xff | value & 0xff,
        };
    }
}

impl XenPv {
    /// Executes a privileged instruction of the kernel's; false if it is none that it may have.
    pub(crate) fn emulate(
        &self,
        domain: &mut Domain,
        vcpu: &mut Vcpu,
        cpu: &mut dyn CpuView,
    ) -> bool {
        let Some(insn) = fetch(cpu) else { return false };
        let done = match insn.mnemonic() {
            Mnemonic::Rdmsr => self.rdmsr(domain, vcpu, cpu),
            Mnemonic::Wrmsr => wrmsr(domain, vcpu, cpu),
            Mnemonic::Mov if is_control(&insn) => self.mov_control(vcpu, cpu, &insn),
            Mnemonic::Mov => mov_debug(vcpu, cpu, &insn),
            Mnemonic::Clts => {
                cpu.set_task_switched(false);
                true
            }
            // No effect: events are what it masks.
            Mnemonic::Cli | Mnemonic::Sti | Mnemonic::Wbinvd | Mnemonic::Invd => true,
            Mnemonic::Invlpg => {
                cpu.forget_own();
                true
            }
            Mnemonic::Xsetbv => self.xsetbv(cpu),
            Mnemonic::In => {
                set(cpu, insn.op0_register(), !0);
                true
            }
            // Nobody is there.
            Mnemonic::Out => true,
            _ => false,
        };
        if done {
            cpu.regs().rip = insn.next_ip();
        }
        done
    }

    fn rdmsr(&self, domain: &Domain, vcpu: &Vcpu, cpu: &mut dyn CpuView) -> bool {
        let value = match cpu.regs().gpr[RCX] as u32 {
            msr::FS_BASE => cpu.segment(SegReg::Fs).base,
            msr::GS_BASE => cpu.segment(SegReg::Gs).base,
            msr::KERNEL_GS_BASE => vcpu.other_gs,
            msr::EFER => efer::SCE | efer::LME | efer::LMA | efer::NXE,
            msr::IA32_APIC_BASE => APIC_BASE | if vcpu.id == 0 { APIC_BASE_BSP } else { 0 },
            msr::IA32_PAT => PAT,
            msr::IA32_TSC => (self.clock)().tsc,
            msr::IA32_MISC_ENABLE => 1,
            // No microcode.
            msr::IA32_BIOS_SIGN_ID => 0,
            msr::IA32_SPEC_CTRL if domain.arch_capabilities.is_some() => vcpu.spec_ctrl,
            msr::IA32_ARCH_CAPABILITIES => match domain.arch_capabilities {
                Some(value) => value,
                None => return false,
            },
            _ => return false,
        };
        let regs = cpu.regs();
        (regs.gpr[RAX], regs.gpr[RDX]) = (value & 0xffff_ffff, value >> 32);
        true
    }

    fn mov_control(&self, vcpu: &mut Vcpu, cpu: &mut dyn CpuView, insn: &Instruction) -> bool {
        let (to, from) = (insn.op0_register(), insn.op1_register());
        if from.is_cr() {
            let value = match from {
                Register::CR0 => CR0,
                Register::CR2 => 0,
                Register::CR3 => vcpu.kernel_root,
                Register::CR4 => vcpu.cr4 | cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT,
                _ => return false,
            };
            set(cpu, to, value);
            return true;
        }
        let value = get(cpu, from);
        match to {
            Register::CR0 => cpu.set_task_switched(value & cr0::TS != 0),
            Register::CR4 => vcpu.cr4 = value,
            _ => return false,
        }
        true
    }

    fn xsetbv(&self, cpu: &mut dyn CpuView) -> bool {
        let supported = {
            let [eax, _, _, edx] = cpu.cpuid(0xd, 0);
            u64::from(edx) << 32 | u64::from(eax)
        };
        let regs = cpu.regs();
        let value = regs.gpr[RDX] << 32 | regs.gpr[RAX] & 0xffff_ffff;
        // X87 always; AVX with SSE (SDM volume 1, 13.3).
        if regs.gpr[RCX] as u32 != 0 || value & !supported != 0 || value & 1 == 0 || value & 6 == 4
        {
            return false;
        }
        cpu.set_xcr0(value);
        true
    }

    /// A store to an entry of an L1 table that is mapped for reading; false if it is none that is
    /// known, or not allowed.
    pub(crate) fn emulate_entry(
        &self,
        domain: &mut Domain,
        cpu: &mut dyn CpuView,
        linear: u64,
    ) -> bool {
        let Some(insn) = fetch(cpu) else { return false };
        let Some(page) = domain.tables.l1_entry(cpu.root(), linear & !7) else { return false };
        let at = (domain.tables.memory.load(page) & ADDRESS) + linear % PAGE / 8 * 8;
        // The processor may set A or D in between.
        for _ in 0..16 {
            let old = domain.tables.memory.load(at);
            let Some(change) = Change::of(&insn, cpu, old, (linear % 8) as u32) else {
                return false;
            };
            if let Some(new) = change.new {
                let mut forget = |frame| cpu.forget_writes(frame * PAGE);
                match domain.tables.compare_exchange(at, Level::L1, old, new, &mut forget) {
                    Err(_) => return false,
                    Ok(Err(_)) => continue,
                    Ok(Ok(())) => cpu.tables_changed(domain.tables.changes),
                }
            }
            change.finish(&insn, cpu);
            return true;
        }
        false
    }
}

fn is_control(insn: &Instruction) -> bool {
    insn.op0_register().is_cr() || insn.op1_register().is_cr()
}

fn mov_debug(vcpu: &mut Vcpu, cpu: &mut dyn CpuView, insn: &Instruction) -> bool {
    let (to, from) = (insn.op0_register(), insn.op1_register());
    if from.is_dr() {
        let value = vcpu.debug.get(from.number()).copied().unwrap_or(0);
        set(cpu, to, value);
        return true;
    }
    if to.is_dr() {
        let value = get(cpu, from);
        if let Some(slot) = vcpu.debug.get_mut(to.number()) {
            *slot = value;
        }
        return true;
    }
    false
}

/// What an instruction does to an entry.
struct Change {
    /// `None`: nothing is stored.
    new: Option<u64>,
    register: Option<(Register, u64)>,
    /// Bits of RFLAGS that it changes, and what they become.
    flags: (u64, u64),
}

impl Change {
    /// Of an instruction that stores `size` bytes at this byte of an entry.
    fn of(insn: &Instruction, cpu: &mut dyn CpuView, old: u64, byte: u32) -> Option<Self> {
        if insn.op0_kind() != OpKind::Memory && insn.op1_kind() != OpKind::Memory {
            return None;
        }
        let size = insn.memory_size().size() as u32;
        if !matches!(size, 1 | 2 | 4 | 8) || byte + size > 8 {
            return None;
        }
        let mask = if size == 8 { !0 } else { (1u64 << (size * 8)) - 1 };
        let part = old >> (byte * 8) & mask;
        let whole = |new: u64| Some(old & !(mask << (byte * 8)) | (new & mask) << (byte * 8));
        let operand = |cpu: &mut dyn CpuView| match insn.op1_kind() {
            OpKind::Register => Some(get(cpu, insn.op1_register())),
            kind if is_immediate(kind) => Some(insn.immediate(1)),
            _ => None,
        };
        let none = (0, 0);
        Some(match insn.mnemonic() {
            Mnemonic::Mov => Self { new: whole(operand(cpu)?), register: None, flags: none },
            Mnemonic::Xchg => {
                let register = if insn.op0_kind() == OpKind::Memory {
                    insn.op1_register()
                } else {
                    insn.op0_register()
                };
                let value = get(cpu, register);
                Self { new: whole(value), register: Some((register, part)), flags: none }
            }
            Mnemonic::Cmpxchg => {
                let rax = cpu.regs().gpr[RAX] & mask;
                let flags = compare(rax, part, size);
                if rax == part {
                    Self { new: whole(operand(cpu)?), register: None, flags }
                } else {
                    let register = accumulator(size);
                    Self { new: None, register: Some((register, part)), flags }
                }
            }
            Mnemonic::And => Self::logic(whole, part & operand(cpu)?, mask, size),
            Mnemonic::Or => Self::logic(whole, part | operand(cpu)?, mask, size),
            Mnemonic::Xor => Self::logic(whole, part ^ operand(cpu)?, mask, size),
            name @ (Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc) => {
                // A register's bit may be outside of the operand.
                let bit = operand(cpu)?;
                if bit >= u64::from(size * 8) {
                    return None;
                }
                let new = match name {
                    Mnemonic::Bts => part | 1 << bit,
                    Mnemonic::Btr => part & !(1 << bit),
                    _ => part ^ 1 << bit,
                };
                let carry = if part >> bit & 1 != 0 { rflags::CF } else { 0 };
                Self { new: whole(new), register: None, flags: (rflags::CF, carry) }
            }
            _ => return None,
        })
    }

    fn logic(whole: impl Fn(u64) -> Option<u64>, value: u64, mask: u64, size: u32) -> Self {
        let value = value & mask;
        let changed = rflags::CF | rflags::OF | rflags::SF | rflags::ZF | rflags::PF;
        let flags = (changed, sign_zero_parity(value, size));
        Self { new: whole(value), register: None, flags }
    }

    fn finish(self, insn: &Instruction, cpu: &mut dyn CpuView) {
        if let Some((register, value)) = self.register {
            set(cpu, register, value);
        }
        let regs = cpu.regs();
        regs.rflags = regs.rflags & !self.flags.0 | self.flags.1;
        regs.rip = insn.next_ip();
    }
}

fn is_immediate(kind: OpKind) -> bool {
    !matches!(kind, OpKind::Register | OpKind::Memory)
}

fn accumulator(size: u32) -> Register {
    match size {
        8 => Register::RAX,
        4 => Register::EAX,
        2 => Register::AX,
        _ => Register::AL,
    }
}

fn sign_zero_parity(value: u64, size: u32) -> u64 {
    let mut flags = 0;
    if value == 0 {
        flags |= rflags::ZF;
    }
    if value >> (size * 8 - 1) & 1 != 0 {
        flags |= rflags::SF;
    }
    if (value as u8).count_ones().is_multiple_of(2) {
        flags |= rflags::PF;
    }
    flags
}

/// RFLAGS of CMP.
fn compare(a: u64, b: u64, size: u32) -> (u64, u64) {
    let mask = if size == 8 { !0 } else { (1u64 << (size * 8)) - 1 };
    let difference = a.wrapping_sub(b) & mask;
    let sign = |value: u64| value >> (size * 8 - 1) & 1 != 0;
    let mut flags = sign_zero_parity(difference, size);
    if a < b {
        flags |= rflags::CF;
    }
    if a & 15 < b & 15 {
        flags |= rflags::AF;
    }
    if sign(a) != sign(b) && sign(difference) != sign(a) {
        flags |= rflags::OF;
    }
    (rflags::STATUS, flags)
}

fn wrmsr(domain: &Domain, vcpu: &mut Vcpu, cpu: &mut dyn CpuView) -> bool {
    let regs = cpu.regs();
    let value = regs.gpr[RDX] << 32 | regs.gpr[RAX] & 0xffff_ffff;
    match regs.gpr[RCX] as u32 {
        index @ (msr::FS_BASE | msr::GS_BASE | msr::KERNEL_GS_BASE) => {
            if !is_canonical_48(value) {
                return false;
            }
            match index {
                msr::FS_BASE => cpu.segment(SegReg::Fs).base = value,
                msr::GS_BASE => cpu.segment(SegReg::Gs).base = value,
                _ => vcpu.other_gs = value,
            }
            true
        }
        // No other domain's predictions are there to be influenced.
        msr::IA32_PRED_CMD => value & !1 == 0,
        // Writes of what is there.
        msr::EFER => value & !efer::SCE == efer::LME | efer::LMA | efer::NXE,
        msr::IA32_PAT => value == PAT,
        msr::IA32_BIOS_SIGN_ID => value == 0,
        // What it asks for needs nothing to be done.
        msr::IA32_SPEC_CTRL if domain.arch_capabilities.is_some() && value & !SPEC_CTRL == 0 => {
            vcpu.spec_ctrl = value;
            true
        }
        msr::IA32_MISC_ENABLE | msr::IA32_APIC_BASE => true,
        _ => false,
    }
}
