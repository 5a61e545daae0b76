//! The hypercall `vcpu_op`.

use crate::{Domain, XenPv, guest, vcpus::Vcpu};
use engine::CpuView;
use guest_mem::PAGE;
use xen_abi::{
    errno::Errno,
    hypercall,
    vcpu::{GuestContext, RegisterVcpuInfo, RunstateInfo, SetSingleshotTimer, TIMER_FUTURE, op},
    xen::VcpuInfo,
};

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
            op::REGISTER_VCPU_INFO => self.register_info(domain, id, guest::read(cpu, at)?)?,
            // Both may be another's. A vCPU that is up counts as one that runs.
            op::REGISTER_RUNSTATE_MEMORY_AREA => {
                let area = guest::read(cpu, at)?;
                let info = RunstateInfo { entered_ns: self.now_ns(), ..RunstateInfo::default() };
                guest::write(cpu, area, &info)?;
            }
            op::REGISTER_VCPU_TIME_MEMORY_AREA => {
                let area = guest::read(cpu, at)?;
                guest::write_bytes(cpu, area, &self.time_bytes())?;
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
        id: u32,
        call: RegisterVcpuInfo,
    ) -> Result<(), Errno> {
        let size = size_of::<VcpuInfo>() as u64;
        let offset = u64::from(call.offset);
        if !offset.is_multiple_of(8) || offset > PAGE - size || domain.known(id)?.info_registered {
            return Err(Errno::Inval);
        }
        domain.tables.hold_written(call.mfn)?;
        let new = call.mfn * PAGE + offset;
        let old = domain.info(id);
        for word in (0..size).step_by(8) {
            let value = domain.tables.memory.load(old + word);
            domain.tables.memory.store(new + word, value);
        }
        let known = domain.known(id)?;
        (known.info, known.info_registered) = (new, true);
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
