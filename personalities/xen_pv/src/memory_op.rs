//! The hypercall `memory_op`: what memory the domain has, gives back and takes.

use crate::{Domain, guest, vcpus::Vcpu};
use engine::CpuView;
use guest_mem::PAGE;
use xen_abi::{
    errno::Errno,
    hypercall,
    memory::{MachphysMapping, MemoryMap, Reservation, op},
};

/// The operation's number; above it is how much of it was done.
const OPERATION: u64 = 0x3f;
/// `struct e820entry`: address, length, type, without padding.
const E820_ENTRY: usize = 20;
const E820_RAM: u32 = 1;
/// Extents of one call.
const EXTENTS: u64 = 1 << 14;
/// What one costs, in entries of tables: a page of them where it is cleared, and where the host gets it.
const WORK: u64 = 4;

impl Domain {
    pub fn memory_op(
        &mut self,
        vcpu: &Vcpu,
        cpu: &mut dyn CpuView,
        operation: u64,
        at: u64,
    ) -> Result<u64, Errno> {
        match operation & OPERATION {
            op::MEMORY_MAP => {
                let mut map: MemoryMap = guest::read(cpu, at)?;
                if map.entries == 0 {
                    return Err(Errno::Inval);
                }
                let mut entry = [0; E820_ENTRY];
                let (start, length) = (0u64, self.layout.ram);
                let kind = E820_RAM.to_le_bytes();
                let bytes = start.to_le_bytes().into_iter().chain(length.to_le_bytes()).chain(kind);
                for (to, from) in entry.iter_mut().zip(bytes) {
                    *to = from;
                }
                guest::write_bytes(cpu, map.buffer, &entry)?;
                map.entries = 1;
                guest::write(cpu, at, &map)?;
                Ok(0)
            }
            op::MACHPHYS_MAPPING => {
                let (start, max_mfn) = (self.layout.m2p_linear(), self.layout.m2p_entries() - 1);
                let end = start + self.layout.m2p_entries() * 8;
                guest::write(cpu, at, &MachphysMapping { start, end, max_mfn })?;
                Ok(0)
            }
            op::CURRENT_RESERVATION => {
                Self::itself(guest::read(cpu, at)?)?;
                Ok(self.tables.frames.in_use())
            }
            // All that it may ask for again.
            op::MAXIMUM_RESERVATION => {
                Self::itself(guest::read(cpu, at)?)?;
                Ok(self.layout.ram / PAGE)
            }
            op::MAXIMUM_RAM_PAGE => Ok(self.layout.ram / PAGE - 1),
            op::DECREASE_RESERVATION => self.each_extent(cpu, at, |this, _, frame, _| {
                this.tables.frames.give_back(frame).ok()?;
                this.tables.work += PAGE / 8;
                this.forget_m2p(frame);
                Some(None)
            }),
            op::POPULATE_PHYSMAP => self.each_extent(cpu, at, |this, cpu, page, _| {
                // The domain names the page that it wants to fill: the frame of that number is free
                // unless it has it already.
                this.tables.frames.take(page, &mut |frame| cpu.forget_writes(frame * PAGE)).ok()?;
                this.tables.work += PAGE / 8;
                this.tables.memory.clear(page);
                this.tables.memory.store(this.layout.m2p() + page * 8, page);
                Some(Some(page))
            }),
            other => Err(self.not_known(vcpu, hypercall::MEMORY_OP, other)),
        }
    }

    /// The host gets the memory of frames that the domain has given back. Where it cannot, as on memory
    /// of another kind, it keeps what they had, which nobody reads: who takes one gets zeroes.
    pub fn return_memory(&mut self) {
        for (frame, count) in self.tables.frames.take_left() {
            self.tables.memory.whole().discard(frame * PAGE, count * PAGE);
        }
    }

    /// Calls for each extent's number, and writes back the number that it becomes; how many it
    /// was called for until it did not work.
    fn each_extent(
        &mut self,
        cpu: &mut dyn CpuView,
        at: u64,
        mut f: impl FnMut(&mut Self, &mut dyn CpuView, u64, u64) -> Option<Option<u64>>,
    ) -> Result<u64, Errno> {
        let reservation: Reservation = guest::read(cpu, at)?;
        Self::itself(reservation.domain)?;
        // Larger extents are for devices of a machine.
        if reservation.order != 0 {
            return Ok(0);
        }
        // Who wants more calls again: what was done is what is returned.
        for index in 0..reservation.count.min(EXTENTS) {
            self.tables.work += WORK;
            let at = guest::element::<u64>(reservation.extents, index)?;
            let number: u64 = guest::read(cpu, at)?;
            match f(self, cpu, number, index) {
                None => return Ok(index),
                Some(None) => {}
                Some(Some(new)) => guest::write(cpu, at, &new)?,
            }
        }
        Ok(reservation.count.min(EXTENTS))
    }
}
