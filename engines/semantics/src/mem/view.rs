//! A vCPU as a personality sees it from inside a trap.

use super::{
    bytes::{copy_in, copy_out},
    slow::Pieces,
};
use crate::{Cpu, Stop, sync::Request};
use engine::CpuView;
use guest_mem::PAGE;
use soft_mmu::{Access, Place, Privilege};
use vcpu_state::{Exception, Raised, Regs, SegReg, Segment};
use x86_defs::exception;

/// Dropping it puts the registers back.
#[derive(Debug)]
pub struct View<'a> {
    cpu: &'a mut Cpu,
    regs: Regs,
}

impl<'a> View<'a> {
    pub fn new(cpu: &'a mut Cpu) -> Self {
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&cpu.gpr[..16]);
        let regs = Regs { gpr, rip: cpu.rip, rflags: cpu.rflags() };
        Self { cpu, regs }
    }

    /// The RAM of a range, page by page; the fault that an access would raise, or #GP(0) if
    /// some of it is not RAM.
    fn places(&mut self, gva: u64, len: usize, access: Access) -> Result<Vec<Place>, Exception> {
        // Whoever asked this vCPU to forget, while it was in the trap and counted as stopped, relies on
        // that: the personality may have waited for a lock since.
        self.cpu.serve_requests();
        let mut places = Vec::new();
        let mut done = 0;
        while done < len {
            let at = gva.wrapping_add(done as u64);
            let here = (len - done).min((PAGE - at % PAGE) as usize);
            let found = self.cpu.probe_linear(SegReg::Ds, at, here, access, Privilege::Supervisor);
            match found {
                Ok(Pieces { first, .. }) if first.ram.is_some() => places.push(first),
                Ok(_) => {
                    let error = Some(0);
                    return Err(Exception { vector: exception::GP, error, payload: 0 });
                }
                Err(Stop::Fault) => return Err(std::mem::take(&mut self.cpu.raised)),
                Err(_) => return Err(Exception::default()),
            }
            done += here;
        }
        Ok(places)
    }
}

impl CpuView for View<'_> {
    fn regs(&mut self) -> &mut Regs {
        &mut self.regs
    }

    fn segment(&mut self, which: SegReg) -> &mut Segment {
        self.cpu.segment_mut(which)
    }

    fn root(&self) -> u64 {
        self.cpu.cr3
    }

    fn set_root(&mut self, cr3: u64) {
        self.cpu.cr3 = cr3;
        self.cpu.paging_changed();
    }

    fn read_virt(&mut self, gva: u64, out: &mut [u8]) -> Result<(), Exception> {
        let places = self.places(gva, out.len(), Access::Read)?;
        let mut rest = out;
        for place in places {
            let here = rest.len().min((PAGE - place.gpa % PAGE) as usize);
            let (now, later) = rest.split_at_mut(here);
            if let Some(at) = place.ram {
                copy_out(&self.cpu.mmu.arena, at, now);
            }
            rest = later;
        }
        Ok(())
    }

    fn write_virt(&mut self, gva: u64, data: &[u8]) -> Result<(), Exception> {
        let places = self.places(gva, data.len(), Access::Write)?;
        let mut rest = data;
        for place in places {
            let here = rest.len().min((PAGE - place.gpa % PAGE) as usize);
            let (now, later) = rest.split_at(here);
            if let Some(at) = place.ram {
                copy_in(&self.cpu.mmu.arena, at, now);
                if place.code {
                    self.cpu.code_written(place.gpa..place.gpa + here as u64);
                }
            }
            rest = later;
        }
        Ok(())
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        self.cpu.leaf(leaf, subleaf)
    }

    fn gdt_base(&self) -> u64 {
        self.cpu.gdtr.base
    }

    fn set_task_switched(&mut self, on: bool) {
        let ts = x86_defs::cr::cr0::TS;
        let wanted = if on { self.cpu.cr0 | ts } else { self.cpu.cr0 & !ts };
        if wanted != self.cpu.cr0 {
            self.cpu.cr0 = wanted;
            self.cpu.paging_changed();
        }
    }

    fn set_xcr0(&mut self, value: u64) {
        self.cpu.xcr0 = value;
    }

    fn halt(&mut self) {
        self.cpu.mp = vcpu_state::MpState::Halted;
        self.cpu.look = true;
    }

    fn deliver(&mut self, exception: Exception) {
        self.cpu.events.exception = Raised::Injected(exception);
        self.cpu.leave = true;
    }

    fn flush_tlb(&mut self, vcpus: u64, gva: Option<u64>) {
        let all = gva.is_none();
        let mine = all || vcpus.checked_shr(self.cpu.id).unwrap_or(0) & 1 != 0;
        if mine {
            match gva {
                Some(gva) => self.cpu.mmu.flush_page(gva),
                None => self.cpu.mmu.flush_all(),
            }
        }
        let others = self.cpu.slots.clone();
        let mask = if all { None } else { Some(vcpus) };
        let asked = others.ask_some(&Request::Flush(gva), Some(&self.cpu.slot), mask);
        for (slot, number) in asked {
            while !slot.has_served(number) {
                self.cpu.serve_requests();
                std::thread::yield_now();
            }
        }
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        let cpu = &mut *self.cpu;
        cpu.gpr[..16].copy_from_slice(&self.regs.gpr);
        cpu.rip = self.regs.rip;
        if self.regs.rflags != cpu.rflags() {
            cpu.set_rflags(self.regs.rflags);
        }
        // Segments may have changed.
        cpu.update_mode();
        cpu.leave = true;
    }
}
