//! The hypercall `event_channel_op`.

use crate::{Domain, XenPv, events::Port, guest, vcpus::Vcpu};
use engine::CpuView;
use xen_abi::{
    DOMID_SELF,
    errno::Errno,
    event_channel::{AllocUnbound, BindIpi, BindVcpu, BindVirq, Status, op, virq},
};

impl Domain {
    /// A port that the kernel could not be told of is none.
    fn told(&mut self, port: u32, result: Result<(), Errno>) -> Result<(), Errno> {
        if result.is_err() {
            self.events.set(port, Port::Free);
        }
        result
    }
}

impl XenPv {
    pub(crate) fn event_channel_op(
        &self,
        domain: &mut Domain,
        vcpu: &mut Vcpu,
        cpu: &mut dyn CpuView,
        operation: u64,
        at: u64,
    ) -> Result<u64, Errno> {
        let memory = domain.tables.memory.clone();
        match operation {
            op::BIND_VIRQ => {
                let mut call: BindVirq = guest::read(cpu, at)?;
                domain.known(call.vcpu)?;
                if call.virq >= virq::COUNT {
                    return Err(Errno::Inval);
                }
                if domain.events.of_virq(call.virq, call.vcpu).is_some() {
                    return Err(Errno::Exist);
                }
                call.port = domain.events.bind(Port::Virq(call.virq), call.vcpu)?;
                domain.told(call.port, guest::write(cpu, at, &call))?;
            }
            op::BIND_IPI => {
                let mut call: BindIpi = guest::read(cpu, at)?;
                domain.known(call.vcpu)?;
                call.port = domain.events.bind(Port::Ipi, call.vcpu)?;
                domain.told(call.port, guest::write(cpu, at, &call))?;
            }
            op::ALLOC_UNBOUND => {
                let mut call: AllocUnbound = guest::read(cpu, at)?;
                if call.domain != DOMID_SELF {
                    return Err(Errno::Perm);
                }
                call.port = domain.events.bind(Port::Unbound(call.remote_domain), 0)?;
                domain.told(call.port, guest::write(cpu, at, &call))?;
            }
            op::CLOSE => {
                let port = guest::read(cpu, at)?;
                domain.events.close(port, &memory)?;
                domain.notified.remove(&port);
            }
            op::SEND => {
                let port: u32 = guest::read(cpu, at)?;
                let channel = domain.events.get(port).ok_or(Errno::Inval)?;
                match channel.port {
                    Port::Ipi => self.raise_in(domain, port),
                    Port::Backend(number) => self.board.notify(number),
                    Port::Bound => domain.notified.get(&port).into_iter().for_each(|tell| tell()),
                    Port::Unbound(_) => {}
                    Port::Virq(_) | Port::Free => return Err(Errno::Inval),
                }
            }
            op::STATUS => {
                let mut call: Status = guest::read(cpu, at)?;
                if call.domain != DOMID_SELF {
                    return Err(Errno::Perm);
                }
                let (status, vcpu, bound) = domain.events.status(call.port);
                (call.status, call.vcpu, call.bound) = (status, vcpu, [bound, 0]);
                guest::write(cpu, at, &call)?;
            }
            op::BIND_VCPU => {
                let call: BindVcpu = guest::read(cpu, at)?;
                domain.known(call.vcpu)?;
                domain.events.move_to(call.port, call.vcpu)?;
            }
            op::UNMASK => {
                let port: u32 = guest::read(cpu, at)?;
                if let Some(vcpu) = domain.events.unmask(port, &memory)? {
                    self.tell(domain, vcpu, port);
                }
            }
            other => {
                return Err(domain.not_known(vcpu, xen_abi::hypercall::EVENT_CHANNEL_OP, other));
            }
        }
        Ok(0)
    }
}
