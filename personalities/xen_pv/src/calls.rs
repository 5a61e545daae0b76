//! Hypercalls: which there are, and several in one.

use crate::{
    Domain, XenPv, guest,
    mmu::{Partly, Rest},
    vcpus::Vcpu,
};
use engine::CpuView;
use x86_defs::gpr::{R8, R10, RAX, RDI, RDX, RSI};
use xen_abi::{
    errno::Errno,
    hypercall::{self as number, MulticallEntry},
};

/// Entries of tables that one multicall looks at, and 16 for each call, before the vCPU sees to
/// other things.
const MULTICALL_WORK: u64 = 1 << 20;
/// `PHYSDEVOP_set_iopl` and `PHYSDEVOP_set_iobitmap` (`physdev.h`).
const SET_IOPL: u64 = 6;
const SET_IOBITMAP: u64 = 7;
/// What a text for the console costs, in entries.
const TEXT: u64 = 1 << 9;
/// Bytes of SYSCALL.
const SYSCALL_LEN: u64 = 2;

impl Domain {
    /// Counts what was asked for and is not there.
    pub(crate) fn not_known(&mut self, _: &Vcpu, call: u64, operation: u64) -> Errno {
        // A guest cannot make it grow without bound.
        if self.unknown.len() < 256 || self.unknown.contains_key(&(call, operation)) {
            *self.unknown.entry((call, operation)).or_default() += 1;
        }
        Errno::NoSys
    }
}

impl XenPv {
    /// What is in RAX; the result goes there, but for IRET's.
    pub(crate) fn hypercall(
        &self,
        domain: &mut Domain,
        vcpu: &mut Vcpu,
        cpu: &mut dyn CpuView,
    ) -> Result<(), Errno> {
        let gpr = cpu.regs().gpr;
        if gpr[RAX] == number::IRET {
            return vcpu.iret(domain.own(vcpu.id), cpu);
        }
        let args = [gpr[RDI], gpr[RSI], gpr[RDX], gpr[R10], gpr[R8], 0];
        let result = match gpr[RAX] {
            number::MULTICALL => self.multicall(domain, vcpu, cpu, args[0], args[1]),
            op => self.call(domain, vcpu, cpu, op, args),
        };
        let regs = cpu.regs();
        match result {
            Ok(Ok(value)) => regs.gpr[RAX] = value,
            Err(error) => regs.gpr[RAX] = error.result(),
            Ok(Err(rest)) => {
                // The same instruction again, with what is left.
                (regs.gpr[RDI], regs.gpr[RSI]) = (rest.list, rest.count);
                regs.rip = regs.rip.wrapping_sub(SYSCALL_LEN);
            }
        }
        Ok(())
    }

    fn multicall(
        &self,
        domain: &mut Domain,
        vcpu: &mut Vcpu,
        cpu: &mut dyn CpuView,
        list: u64,
        count: u64,
    ) -> Partly {
        let mut left = MULTICALL_WORK;
        for index in 0..count {
            let at = guest::element::<MulticallEntry>(list, index)?;
            if left == 0 {
                return Ok(Err(Rest { list: at, count: count - index }));
            }
            let mut entry: MulticallEntry = guest::read(cpu, at)?;
            let begun = domain.tables.work;
            let result = match entry.op {
                number::MULTICALL | number::IRET => Err(Errno::Inval),
                op => self.call(domain, vcpu, cpu, op, entry.args),
            };
            let cost = domain.tables.work.wrapping_sub(begun).saturating_add(16);
            left = left.saturating_sub(cost);
            match result {
                Ok(Ok(value)) => entry.result = value,
                Err(error) => entry.result = error.result(),
                Ok(Err(rest)) => {
                    // The call goes on from where it is now, and so do those behind it.
                    [entry.args[0], entry.args[1]] = [rest.list, rest.count];
                    guest::write(cpu, at, &entry)?;
                    return Ok(Err(Rest { list: at, count: count - index }));
                }
            }
            guest::write(cpu, at, &entry)?;
        }
        Ok(Ok(0))
    }

    fn call(
        &self,
        domain: &mut Domain,
        vcpu: &mut Vcpu,
        cpu: &mut dyn CpuView,
        op: u64,
        [a, b, c, d, ..]: [u64; 6],
    ) -> Partly {
        domain.limit_lingering(cpu);
        let done = match op {
            number::MMU_UPDATE => {
                Domain::own_tables(d)?;
                return domain.mmu_update(cpu, a, b, c);
            }
            number::MMUEXT_OP => {
                Domain::own_pages(d)?;
                return domain.mmuext_op(vcpu, cpu, a, b, c);
            }
            number::SET_TRAP_TABLE => vcpu.set_trap_table(cpu, a),
            number::SET_GDT => domain.set_gdt(vcpu, cpu, a, b),
            number::STACK_SWITCH => {
                (vcpu.kernel_ss, vcpu.kernel_sp) = (a, b);
                Ok(0)
            }
            number::FPU_TASKSWITCH => {
                cpu.set_task_switched(a != 0);
                Ok(0)
            }
            number::SET_DEBUGREG => vcpu.set_debugreg(a, b),
            number::GET_DEBUGREG => Ok(vcpu.debug.get(a as usize).copied().unwrap_or(0)),
            number::UPDATE_DESCRIPTOR => domain.update_descriptor(cpu, a, b),
            number::MEMORY_OP => domain.memory_op(vcpu, cpu, a, b),
            number::UPDATE_VA_MAPPING => domain.update_va_mapping(vcpu, cpu, a, b, c),
            number::SET_TIMER_OP => {
                self.set_timer(domain, vcpu.id, (a != 0).then_some(a));
                Ok(0)
            }
            number::XEN_VERSION => domain.xen_version(vcpu, cpu, a, b),
            number::CONSOLE_IO => {
                domain.tables.work += TEXT;
                self.console_io(cpu, a, b, c)
            }
            number::GRANT_TABLE_OP => domain.grant_table_op(vcpu, cpu, a, b, c),
            number::VM_ASSIST => domain.vm_assist(vcpu, a, b),
            number::VCPU_OP => self.vcpu_op(domain, vcpu, cpu, a, b, c),
            number::SET_SEGMENT_BASE => vcpu.set_segment_base(domain, cpu, a, b),
            number::SCHED_OP => self.sched_op(domain, vcpu, cpu, (a, b, c)),
            number::CALLBACK_OP => domain.callback_op(vcpu, cpu, a, b),
            number::EVENT_CHANNEL_OP => self.event_channel_op(domain, vcpu, cpu, a, b),
            // Ports answer nobody, whatever the level.
            number::PHYSDEV_OP if matches!(a, SET_IOPL | SET_IOBITMAP) => Ok(0),
            other => Err(domain.not_known(vcpu, other, a)),
        };
        done.map(Ok)
    }
}
