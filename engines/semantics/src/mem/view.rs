//! A vCPU as a personality sees it from inside a trap.

use super::{
    bytes::{copy_in, copy_out},
    slow::Pieces,
};
use crate::{Cpu, Stop, sync::Request};
use engine::{CpuView, Roots, TableChanges};
use guest_mem::{ArenaOffset, PAGE};
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

    /// Asks other vCPUs, all or these, and waits until they have done it.
    fn ask(&mut self, request: &Request, vcpus: Option<u64>) {
        let slots = self.cpu.slots.clone();
        for (slot, number) in slots.ask_some(request, Some(&self.cpu.slot), vcpus) {
            while !slot.has_served(number) {
                // The other may wait for this vCPU in turn.
                self.cpu.serve_requests();
                std::thread::yield_now();
            }
        }
    }

    /// The RAM of a range that is in one page, if the TLB knows it, of a guest at level 3.
    fn near(&mut self, gva: u64, len: usize, access: Access) -> Option<ArenaOffset> {
        if len == 0 || len > PAGE as usize || self.cpu.ring3.is_none() {
            return None;
        }
        let tlb = &self.cpu.mmu.tlb;
        if access == Access::Write { tlb.write(gva, len) } else { tlb.read(gva, len) }
    }

    /// The RAM of a range, page by page; the fault that an access would raise, or #GP(0) if
    /// some of it is not RAM.
    fn places(&mut self, gva: u64, len: usize, access: Access) -> Result<Vec<Place>, Exception> {
        // Of a guest at level 3, kernel and programs have different pages at the same addresses.
        let privilege = match self.cpu.ring3 {
            Some(_) => self.cpu.mmu.privilege,
            None => Privilege::Supervisor,
        };
        let mut places = Vec::new();
        let mut done = 0;
        while done < len {
            let at = gva.wrapping_add(done as u64);
            let here = (len - done).min((PAGE - at % PAGE) as usize);
            let found = self.cpu.probe_linear(SegReg::Ds, at, here, access, privilege);
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

    /// An access, while which the vCPU counts as running. Inside of a trap it counts as stopped
    /// otherwise: whoever asks it to forget something does not wait, and relies on that no access
    /// comes by what was known before.
    fn running<R>(&mut self, f: impl FnOnce(&mut Self) -> R) -> R {
        self.cpu.slot.enter_guest();
        self.cpu.serve_requests();
        let result = f(self);
        self.cpu.slot.leave_guest();
        result
    }

    fn read(&mut self, gva: u64, out: &mut [u8]) -> Result<(), Exception> {
        if let Some(at) = self.near(gva, out.len(), Access::Read) {
            copy_out(&self.cpu.mmu.arena, at, out);
            return Ok(());
        }
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

    fn write(&mut self, gva: u64, data: &[u8]) -> Result<(), Exception> {
        if let Some(at) = self.near(gva, data.len(), Access::Write) {
            copy_in(&self.cpu.mmu.arena, at, data);
            return Ok(());
        }
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

    fn set_roots(&mut self, roots: Roots, lasting: bool) {
        self.cpu.set_roots(roots, lasting);
    }

    fn roots(&self) -> Option<Roots> {
        self.cpu.ring3.as_ref().map(|ring3| ring3.roots)
    }

    fn enter(&mut self, kernel: bool) {
        self.cpu.enter_level(kernel);
    }

    fn tables_changed(&mut self, changes: TableChanges) {
        self.cpu.slots.tables().set(changes);
    }

    fn forget_own(&mut self) {
        self.cpu.flush_tables();
    }

    fn read_virt(&mut self, gva: u64, out: &mut [u8]) -> Result<(), Exception> {
        self.running(|view| view.read(gva, out))
    }

    fn write_virt(&mut self, gva: u64, data: &[u8]) -> Result<(), Exception> {
        self.running(|view| view.write(gva, data))
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        self.cpu.leaf(leaf, subleaf)
    }

    fn gdt_base(&self) -> u64 {
        self.cpu.gdtr.base
    }

    fn set_task_switched(&mut self, on: bool) {
        let ts = x86_defs::cr::cr0::TS;
        self.cpu.cr0 = if on { self.cpu.cr0 | ts } else { self.cpu.cr0 & !ts };
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
                None => self.cpu.flush_tables(),
            }
        }
        self.ask(&Request::Flush(gva), if all { None } else { Some(vcpus) });
    }

    fn forget_writes(&mut self, gpa: u64) {
        let Some((.., page)) = self.cpu.mmu.phys().page(gpa) else { return };
        self.cpu.mmu.revoke_write(page);
        self.ask(&Request::RevokeWrite(page), None);
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
