//! The hypercall `vcpu_op`.

use crate::{Domain, XenPv, guest, runstate, vcpus::Vcpu};
use engine::CpuView;
use guest_mem::PAGE;
use x86_defs::is_canonical_48;
use xen_abi::{
    errno::Errno,
    hypercall,
    trap::FIRST_RESERVED_GDT_ENTRY,
    vcpu::{GuestContext, RegisterVcpuInfo, SetSingleshotTimer, TIMER_FUTURE, op},
    xen::VcpuInfo,
};

/// What a vCPU may begin with, as far as its context alone says it: addresses that there are, no more
/// descriptors than the domain has, roots that are not 0.
fn check(context: &GuestContext) -> Result<(), Errno> {
    let user = &context.user_regs;
    let addresses = [
        user.rip,
        context.event_callback,
        context.failsafe_callback,
        context.syscall_callback,
        context.fs_base,
        context.gs_base_kernel,
        context.gs_base_user,
    ];
    let handlers = context.traps.iter().map(|trap| trap.address);
    let [_, user_root, _, kernel_root, ..] = context.control;
    let right = addresses.into_iter().chain(handlers).all(is_canonical_48)
        && context.gdt_entries <= u64::from(FIRST_RESERVED_GDT_ENTRY)
        && kernel_root >= PAGE
        && (user_root == 0 || user_root >= PAGE);
    if right { Ok(()) } else { Err(Errno::Inval) }
}

impl XenPv {
    pub(crate) fn vcpu_op(
        &self,
        domain: &mut Domain,
        vcpu: &mut Vcpu,
        cpu: &mut dyn CpuView,
        operation: u64,
        id: u64,
        at: u64,
    ) -> Result<u64, Errno> {
        let id = u32::try_from(id).map_err(|_| Errno::NoEnt)?;
        domain.known(id)?;
        let own = id == vcpu.id;
        match operation {
            op::IS_UP => return Ok(u64::from(domain.known(id)?.up)),
            op::INITIALISE => {
                let context = guest::read::<GuestContext>(cpu, at)?;
                check(&context)?;
                let known = domain.known(id)?;
                if known.initialised {
                    return Err(Errno::Exist);
                }
                known.start = Some(Box::new(context));
                known.initialised = true;
            }
            op::UP => {
                let known = domain.known(id)?;
                if !known.initialised {
                    return Err(Errno::Inval);
                }
                if !std::mem::replace(&mut known.up, true) {
                    self.attend(id);
                }
            }
            op::DOWN => {
                domain.known(id)?.up = false;
                self.attend(id);
            }
            op::REGISTER_VCPU_INFO => {
                let call = guest::read(cpu, at)?;
                self.register_info(domain, cpu, id, call)?;
            }
            op::GET_RUNSTATE_INFO => {
                let info = runstate::until(domain.known(id)?.runstate, self.now_ns());
                guest::write(cpu, at, &info)?;
            }
            // Both may be another's; without an address there is none any more.
            op::REGISTER_RUNSTATE_MEMORY_AREA => {
                let area = guest::read(cpu, at)?;
                let info = runstate::until(domain.known(id)?.runstate, self.now_ns());
                if area != 0 {
                    guest::write(cpu, area, &info)?;
                }
                domain.known(id)?.runstate_area = area;
            }
            op::REGISTER_VCPU_TIME_MEMORY_AREA => {
                let area = guest::read(cpu, at)?;
                if area != 0 {
                    guest::write_bytes(cpu, area, &self.time_bytes())?;
                }
                domain.known(id)?.time_area = area;
            }
            op::SEND_NMI => {
                if at != 0 {
                    return Err(Errno::Inval);
                }
                domain.known(id)?.nmi = true;
                self.attend(id);
            }
            op::STOP_PERIODIC_TIMER => {}
            op::SET_SINGLESHOT_TIMER if own => {
                let timer: SetSingleshotTimer = guest::read(cpu, at)?;
                if timer.flags & TIMER_FUTURE != 0 && timer.timeout_ns < self.now_ns() {
                    return Err(Errno::Time);
                }
                self.set_timer(domain, id, Some(timer.timeout_ns));
            }
            op::STOP_SINGLESHOT_TIMER if own => self.set_timer(domain, id, None),
            op::SET_SINGLESHOT_TIMER | op::STOP_SINGLESHOT_TIMER => return Err(Errno::Inval),
            other => return Err(domain.not_known(vcpu, hypercall::VCPU_OP, other)),
        }
        Ok(0)
    }

    /// A vCPU's information moves to a page of the domain's.
    fn register_info(
        &self,
        domain: &mut Domain,
        cpu: &mut dyn CpuView,
        id: u32,
        call: RegisterVcpuInfo,
    ) -> Result<(), Errno> {
        let size = size_of::<VcpuInfo>() as u64;
        let offset = u64::from(call.offset);
        if !offset.is_multiple_of(8) || offset > PAGE - size || domain.known(id)?.info_registered {
            return Err(Errno::Inval);
        }
        domain.tables.hold_written(call.mfn, &mut |frame| cpu.forget_writes(frame * PAGE))?;
        let new = call.mfn * PAGE + offset;
        let old = domain.info(id);
        for word in (0..size).step_by(8) {
            let value = domain.tables.memory.load(old + word);
            domain.tables.memory.store(new + word, value);
        }
        let known = domain.known(id)?;
        (known.info, known.info_registered) = (new, true);
        self.note_info(domain, id);
        // Whatever was told meanwhile: look at all.
        let memory = &domain.tables.memory;
        memory.store(new + 8, !0);
        let word = memory.load(new);
        memory.store(new, word | 1);
        self.publish_time(domain, new);
        self.attend(id);
        Ok(())
    }
}
