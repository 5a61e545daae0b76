//! Hypercalls of a few lines each.

use crate::{
    Domain, XenPv, guest,
    vcpus::{Callback, Vcpu, Wait},
};
use engine::CpuView;
use guest_mem::PAGE;
use vcpu_state::SegReg;
use x86_defs::{exception::NMI, is_canonical_48};
use xen_abi::{
    assist, callback,
    errno::Errno,
    features, hypercall, sched,
    trap::{MASKS_EVENTS, TrapInfo, selector},
    version,
};

/// 4.17, as `XENVER_version` has it.
pub const VERSION: u64 = 4 << 16 | 17;
const EXTRAVERSION: &[u8] = b".0-sarang\0";
const CAPABILITIES: &[u8] = b"xen-3.0-x86_64 \0";
/// `console_io`: what is written at once, at most.
const CONSOLE_MAX: u64 = 4096;
const CONSOLEIO_WRITE: u64 = 0;
/// `VMASST_TYPE_*` that there may be; but for [`assist::RUNSTATE_UPDATE_FLAG`] they need nothing.
const ASSISTS: u64 = 8;

impl Vcpu {
    /// `set_trap_table`: a list that ends with an address of 0.
    pub fn set_trap_table(&mut self, cpu: &mut dyn CpuView, list: u64) -> Result<u64, Errno> {
        if list == 0 {
            self.traps = [TrapInfo::default(); 256];
            return Ok(0);
        }
        for index in 0..=256 {
            let trap: TrapInfo = guest::read(cpu, guest::element::<TrapInfo>(list, index)?)?;
            if trap.address == 0 {
                return Ok(0);
            }
            if !is_canonical_48(trap.address) {
                return Err(Errno::Inval);
            }
            if let Some(slot) = self.traps.get_mut(usize::from(trap.vector)) {
                *slot = trap;
            }
        }
        Err(Errno::Inval)
    }

    /// Where a vector's handler is.
    pub fn handler(&self, vector: u8) -> Callback {
        let trap = self.traps.get(usize::from(vector)).copied().unwrap_or_default();
        Callback { address: trap.address, masks_events: trap.flags & MASKS_EVENTS != 0 }
    }

    pub fn set_debugreg(&mut self, number: u64, value: u64) -> Result<u64, Errno> {
        match self.debug.get_mut(number as usize) {
            Some(slot) if number != 4 && number != 5 => {
                *slot = value;
                Ok(0)
            }
            _ => Err(Errno::Inval),
        }
    }

    pub fn set_segment_base(
        &mut self,
        domain: &Domain,
        cpu: &mut dyn CpuView,
        which: u64,
        base: u64,
    ) -> Result<u64, Errno> {
        const FS: u64 = 0;
        const GS_USER: u64 = 1;
        const GS_KERNEL: u64 = 2;
        const GS_USER_SEL: u64 = 3;
        if which != GS_USER_SEL && !is_canonical_48(base) {
            return Err(Errno::Inval);
        }
        match which {
            FS => cpu.segment(SegReg::Fs).base = base,
            GS_USER => self.other_gs = base,
            GS_KERNEL => cpu.segment(SegReg::Gs).base = base,
            GS_USER_SEL => {
                // As MOV GS between two SWAPGS.
                let selector = base as u16;
                let new = self.descriptors(&domain.tables.memory).data_segment(cpu, selector);
                let gs = cpu.segment(SegReg::Gs);
                let kernel = gs.base;
                self.other_gs = new.base;
                *gs = new;
                gs.base = kernel;
            }
            _ => return Err(Errno::Inval),
        }
        Ok(0)
    }
}

impl Domain {
    pub fn xen_version(
        &mut self,
        vcpu: &Vcpu,
        cpu: &mut dyn CpuView,
        operation: u64,
        at: u64,
    ) -> Result<u64, Errno> {
        let text = |cpu: &mut dyn CpuView, text: &[u8], length: usize| {
            let mut bytes = text.to_vec();
            bytes.resize(length, 0);
            guest::write_bytes(cpu, at, &bytes).map(|()| 0)
        };
        match operation {
            version::op::VERSION => Ok(VERSION),
            version::op::EXTRAVERSION => text(cpu, EXTRAVERSION, version::EXTRAVERSION_LEN),
            version::op::CAPABILITIES => text(cpu, CAPABILITIES, version::CAPABILITIES_LEN),
            version::op::CHANGESET => text(cpu, b"unavailable\0", version::CHANGESET_LEN),
            version::op::PLATFORM_PARAMETERS => {
                guest::write(cpu, at, &xen_abi::xen::HYPERVISOR_VIRT.start).map(|()| 0)
            }
            version::op::GET_FEATURES => {
                let [index, _]: [u32; 2] = guest::read(cpu, at)?;
                let bits = match index {
                    0 => {
                        1 << features::MMU_PT_UPDATE_PRESERVE_AD
                            | 1 << features::HIGHMEM_ASSIST
                            | 1 << features::GNTTAB_MAP_AVAIL_BITS
                            | 1u32 << features::DIRECT_MAPPED
                    }
                    _ => 0,
                };
                guest::write(cpu, at, &[index, bits]).map(|()| 0)
            }
            version::op::PAGESIZE => Ok(PAGE),
            version::op::GUEST_HANDLE => guest::write(cpu, at, &[0u8; 16]).map(|()| 0),
            version::op::COMPILE_INFO => text(cpu, b"\0", 64 + 16 + 32 + 32),
            other => Err(self.not_known(vcpu, hypercall::XEN_VERSION, other)),
        }
    }

    pub fn vm_assist(&mut self, vcpu: &Vcpu, command: u64, kind: u64) -> Result<u64, Errno> {
        match command {
            _ if kind >= ASSISTS => {
                return Err(self.not_known(vcpu, hypercall::VM_ASSIST, kind));
            }
            assist::ENABLE => self.assists |= 1 << kind,
            assist::DISABLE => self.assists &= !(1 << kind),
            _ => return Err(self.not_known(vcpu, hypercall::VM_ASSIST, kind)),
        }
        Ok(0)
    }

    pub fn callback_op(
        &mut self,
        vcpu: &mut Vcpu,
        cpu: &mut dyn CpuView,
        operation: u64,
        at: u64,
    ) -> Result<u64, Errno> {
        let (kind, new) = match operation {
            callback::REGISTER => {
                let call: callback::Register = guest::read(cpu, at)?;
                if !is_canonical_48(call.address) {
                    return Err(Errno::Inval);
                }
                let masks_events = call.flags & callback::MASK_EVENTS != 0;
                (call.kind, Callback { address: call.address, masks_events })
            }
            callback::UNREGISTER => (guest::read::<u16>(cpu, at)?, Callback::default()),
            other => return Err(self.not_known(vcpu, hypercall::CALLBACK_OP, other)),
        };
        let slot = match kind {
            // Events are masked in their own handler, whatever the flag says.
            callback::kind::EVENT => {
                vcpu.event = Callback { masks_events: true, ..new };
                return Ok(0);
            }
            callback::kind::FAILSAFE => &mut vcpu.failsafe,
            callback::kind::SYSCALL => &mut vcpu.syscall,
            callback::kind::SYSCALL32 => &mut vcpu.syscall32,
            callback::kind::SYSENTER => &mut vcpu.sysenter,
            // The same as its entry in the trap table, and it masks no events.
            callback::kind::NMI => {
                if let Some(slot) = vcpu.traps.get_mut(usize::from(NMI)) {
                    let (vector, cs, address) = (NMI, selector::CS64, new.address);
                    *slot = TrapInfo { vector, flags: 0, cs, padding: 0, address };
                }
                return Ok(0);
            }
            other => {
                return Err(self.not_known(vcpu, hypercall::CALLBACK_OP, 0x100 + u64::from(other)));
            }
        };
        *slot = new;
        Ok(0)
    }
}

impl XenPv {
    pub(crate) fn console_io(
        &self,
        cpu: &mut dyn CpuView,
        operation: u64,
        count: u64,
        at: u64,
    ) -> Result<u64, Errno> {
        if operation != CONSOLEIO_WRITE {
            // Nobody types there.
            return Ok(0);
        }
        let mut text = vec![0; count.min(CONSOLE_MAX) as usize];
        guest::read_bytes(cpu, at, &mut text)?;
        self.board.console(&text);
        Ok(0)
    }

    pub(crate) fn sched_op(
        &self,
        domain: &mut Domain,
        vcpu: &Vcpu,
        cpu: &mut dyn CpuView,
        (operation, at, more): (u64, u64, u64),
    ) -> Result<u64, Errno> {
        match operation {
            // When nobody waits for the domain any more.
            sched::op::YIELD => domain.yields = true,
            sched::op::BLOCK => {
                vcpu.set_mask(domain.own(vcpu.id), false);
                if !crate::events::wanted(&domain.tables.memory, domain.info(vcpu.id)) {
                    domain.known(vcpu.id)?.wait = Wait::Event;
                    cpu.halt();
                }
            }
            sched::op::SHUTDOWN => {
                let reason: u32 = guest::read(cpu, at)?;
                if reason == sched::reason::SUSPEND {
                    return self.suspend(domain, cpu, more);
                }
                self.board.shutdown(reason);
                cpu.halt();
            }
            sched::op::POLL => {
                let poll: sched::Poll = guest::read(cpu, at)?;
                self.poll(domain, vcpu, cpu, poll)?;
            }
            other => return Err(domain.not_known(vcpu, hypercall::SCHED_OP, other)),
        }
        Ok(0)
    }

    fn poll(
        &self,
        domain: &mut Domain,
        vcpu: &Vcpu,
        cpu: &mut dyn CpuView,
        poll: sched::Poll,
    ) -> Result<(), Errno> {
        let mut ports = [0; 8];
        if poll.count as usize > ports.len() {
            return Err(Errno::Inval);
        }
        for (index, port) in (0..poll.count).zip(&mut ports) {
            *port = guest::read(cpu, guest::element::<u32>(poll.ports, u64::from(index))?)?;
        }
        let memory = &domain.tables.memory;
        let pending = ports.iter().any(|port| domain.events.is_pending(*port, memory));
        let passed = poll.timeout != 0 && poll.timeout <= self.now_ns();
        if pending || passed {
            return Ok(());
        }
        domain.known(vcpu.id)?.wait = Wait::Ports(ports, poll.timeout);
        self.arm(domain, vcpu.id);
        cpu.halt();
        Ok(())
    }
}
