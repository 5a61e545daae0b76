//! Handlers of system instructions.

use crate::{
    Handler, cpuid, far, msr, seg, sys_call, sys_cr, sys_flags, sys_iret, sys_table, sys_time,
};
use iced_x86::{Code, Instruction, Mnemonic};
use vcpu_state::SegReg;

const ES: u8 = SegReg::Es as u8;
const SS: u8 = SegReg::Ss as u8;
const DS: u8 = SegReg::Ds as u8;
const FS: u8 = SegReg::Fs as u8;
const GS: u8 = SegReg::Gs as u8;

pub fn select_system(iced: &Instruction) -> Option<Handler> {
    by_code(iced.code()).or_else(|| by_mnemonic(iced.mnemonic()))
}

/// Instructions whose operand size, or whose kind of operand, matters.
fn by_code(code: Code) -> Option<Handler> {
    use Code::*;
    Some(match code {
        Mov_Sreg_rm16 | Mov_Sreg_r32m16 | Mov_Sreg_r64m16 => seg::mov_to_sreg,
        Mov_rm16_Sreg | Mov_r32m16_Sreg | Mov_r64m16_Sreg => seg::mov_from_sreg,
        Popw_ES | Popw_SS | Popw_DS | Popw_FS | Popw_GS => seg::pop_sreg::<2>,
        Popd_ES | Popd_SS | Popd_DS | Popd_FS | Popd_GS => seg::pop_sreg::<4>,
        Popq_FS | Popq_GS => seg::pop_sreg::<8>,
        Mov_r32_cr | Mov_r64_cr => sys_cr::mov_from_cr,
        Mov_cr_r32 | Mov_cr_r64 => sys_cr::mov_to_cr,
        Mov_r32_dr | Mov_r64_dr => sys_cr::mov_from_dr,
        Mov_dr_r32 | Mov_dr_r64 => sys_cr::mov_to_dr,
        Iretw => sys_iret::iret::<2>,
        Iretd => sys_iret::iret::<4>,
        Iretq => sys_iret::iret::<8>,
        Sysretd => sys_call::sysret::<false>,
        Sysretq => sys_call::sysret::<true>,
        Sysexitd => sys_call::sysexit::<false>,
        Sysexitq => sys_call::sysexit::<true>,
        Pushfw => sys_flags::pushf::<2>,
        Pushfd => sys_flags::pushf::<4>,
        Pushfq => sys_flags::pushf::<8>,
        Popfw => sys_flags::popf::<2>,
        Popfd => sys_flags::popf::<4>,
        Popfq => sys_flags::popf::<8>,
        Jmp_ptr1616 | Jmp_m1616 => far::jmp::<2>,
        Jmp_ptr1632 | Jmp_m1632 => far::jmp::<4>,
        Jmp_m1664 => far::jmp::<8>,
        Call_ptr1616 | Call_m1616 => far::call::<2>,
        Call_ptr1632 | Call_m1632 => far::call::<4>,
        Call_m1664 => far::call::<8>,
        Retfw | Retfw_imm16 => far::ret::<2>,
        Retfd | Retfd_imm16 => far::ret::<4>,
        Retfq | Retfq_imm16 => far::ret::<8>,
        _ => return None,
    })
}

fn by_mnemonic(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic::*;
    Some(match mnemonic {
        Les => seg::load_far_pointer::<ES>,
        Lss => seg::load_far_pointer::<SS>,
        Lds => seg::load_far_pointer::<DS>,
        Lfs => seg::load_far_pointer::<FS>,
        Lgs => seg::load_far_pointer::<GS>,
        Lldt => seg::lldt,
        Ltr => seg::ltr,
        Sldt => seg::store_selector::<{ SegReg::Ldtr as u8 }>,
        Str => seg::store_selector::<{ SegReg::Tr as u8 }>,
        Verr => seg::verify::<false>,
        Verw => seg::verify::<true>,
        Lar => seg::look_up::<false>,
        Lsl => seg::look_up::<true>,
        Arpl => seg::arpl,
        Lgdt => sys_table::load_table::<false>,
        Lidt => sys_table::load_table::<true>,
        Sgdt => sys_table::store_table::<false>,
        Sidt => sys_table::store_table::<true>,
        Invlpg => sys_table::invlpg,
        Invpcid => sys_table::invpcid,
        Rdfsbase => sys_table::read_base::<FS>,
        Rdgsbase => sys_table::read_base::<GS>,
        Wrfsbase => sys_table::write_base::<FS>,
        Wrgsbase => sys_table::write_base::<GS>,
        Clts => sys_cr::clts,
        Lmsw => sys_cr::lmsw,
        Smsw => sys_cr::smsw,
        Xgetbv => sys_cr::xgetbv,
        Xsetbv => sys_cr::xsetbv,
        Syscall => sys_call::syscall,
        Sysenter => sys_call::sysenter,
        Swapgs => sys_call::swapgs,
        Vmcall | Vmmcall => sys_call::hypercall,
        Cli => sys_flags::cli,
        Sti => sys_flags::sti,
        Clac => sys_flags::set_ac::<false>,
        Stac => sys_flags::set_ac::<true>,
        Hlt => sys_flags::hlt,
        Wbinvd | Wbnoinvd | Invd => sys_flags::flush_cache,
        Serialize => sys_flags::serialize,
        Int => sys_iret::int,
        Int1 => sys_iret::int1,
        Int3 => sys_iret::int3,
        Into => sys_iret::into,
        Rdtsc => sys_time::rdtsc,
        Rdtscp => sys_time::rdtscp,
        Rdpid => sys_time::rdpid,
        Rdpmc => sys_time::rdpmc,
        Rdmsr => msr::rdmsr,
        Wrmsr => msr::wrmsr,
        Cpuid => cpuid::cpuid,
        Monitor | Mwait | Monitorx | Mwaitx | Rsm | Getsec => sys_flags::undefined,
        _ => return None,
    })
}
