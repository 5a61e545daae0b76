//! The hypercall `event_channel_op`.

use crate::{Domain, XenPv, events::Port, guest, vcpus::Vcpu};
use engine::CpuView;
use xen_abi::{
    errno::Errno,
    event_channel::{AllocUnbound, BindIpi, BindVcpu, BindVirq, InitControl, Status, op, virq},
};

/// Ports that are looked at for the work of an entry of a table.
const PORTS_AN_ENTRY: u64 = 16;

impl Domain {
    /// A port that is bound to this.
    fn bind(&mut self, port: Port, vcpu: u32) -> Result<u32, Errno> {
        self.tables.work += self.events.channels().len() as u64 / PORTS_AN_ENTRY;
        self.events.bind(port, vcpu, &self.tables.memory)
    }

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
                call.port = domain.bind(Port::Virq(call.virq), call.vcpu)?;
                domain.told(call.port, guest::write(cpu, at, &call))?;
            }
            op::BIND_IPI => {
                let mut call: BindIpi = guest::read(cpu, at)?;
                domain.known(call.vcpu)?;
                call.port = domain.bind(Port::Ipi, call.vcpu)?;
                domain.told(call.port, guest::write(cpu, at, &call))?;
            }
            op::ALLOC_UNBOUND => {
                let mut call: AllocUnbound = guest::read(cpu, at)?;
                Domain::itself(call.domain)?;
                call.port = domain.bind(Port::Unbound(call.remote_domain), 0)?;
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
                Domain::itself(call.domain)?;
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
            op::INIT_CONTROL => {
                let call: InitControl = guest::read(cpu, at)?;
                let done = domain.init_control(cpu, &call)?;
                guest::write(cpu, at, &done)?;
            }
            op::EXPAND_ARRAY => {
                let frame: u64 = guest::read(cpu, at)?;
                self.expand_array(domain, cpu, frame)?;
            }
            op::SET_PRIORITY => Self::set_priority(domain, guest::read(cpu, at)?)?,
            other => {
                return Err(domain.not_known(vcpu, xen_abi::hypercall::EVENT_CHANNEL_OP, other));
            }
        }
        Ok(0)
    }
}
