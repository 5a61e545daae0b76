//! Neutral state to and from KVM's structures.

use crate::{events, lapic, msrs, os, refused, sys, vcpu::KvmVcpu};
use engine::Error;
use kvm_bindings::*;
use vcpu_state::*;
use x86_defs::{cr::cr0, xsave};

impl KvmVcpu {
    pub(crate) fn save(&mut self) -> Result<VcpuState, Error> {
        // First: it makes the kernel take an INIT or SIPI that has arrived.
        let mp = self.fd.get_mp_state().map_err(os("KVM_GET_MP_STATE"))?;
        let regs = self.fd.get_regs().map_err(os("KVM_GET_REGS"))?;
        let s = self.get_sregs()?;
        let events = self.fd.get_vcpu_events().map_err(os("KVM_GET_VCPU_EVENTS"))?;
        let debug = self.fd.get_debug_regs().map_err(os("KVM_GET_DEBUGREGS"))?;
        let page = self.fd.get_lapic().map_err(os("KVM_GET_LAPIC"))?;
        let reg = [s.es, s.cs, s.ss, s.ds, s.fs, s.gs, s.ldt, s.tr].map(segment_from);
        let control = Control {
            cr0: s.cr0,
            cr2: s.cr2,
            cr3: s.cr3,
            cr4: s.cr4,
            cr8: (s.cr8 & 0xf) as u8,
            efer: s.efer,
            xcr0: self.xcr0()?,
            pdpte: s.pdptrs,
        };
        let mut events = events::from_kvm(&events);
        if mp.mp_state == KVM_MP_STATE_SIPI_RECEIVED {
            let raw = self.fd.get_vcpu_events().map_err(os("KVM_GET_VCPU_EVENTS"))?;
            events.sipi = Some(raw.sipi_vector as u8);
        }
        Ok(VcpuState {
            regs: regs_from(&regs),
            segments: Segments { reg, gdtr: table_from(&s.gdt), idtr: table_from(&s.idt) },
            control,
            debug: Debug { dr: debug.db, dr6: debug.dr6, dr7: debug.dr7 },
            fpu: self.save_fpu()?,
            msrs: msrs::save(&self.fd, self.kept_msrs())?,
            events,
            mp: mp_from(mp.mp_state),
            tsc: msrs::save_tsc(&self.fd, self.vm.tsc.khz()),
            apic: lapic::from_kvm(&page, s.apic_base),
        })
    }

    /// Events go last: setting registers drops a pending exception. An error leaves the vCPU
    /// with part of the state, and its VM unusable.
    pub(crate) fn restore(&mut self, state: &VcpuState) -> Result<(), Error> {
        if state.tsc.khz != 0 && state.tsc.khz != self.vm.tsc.khz() {
            let (theirs, ours) = (state.tsc.khz, self.vm.tsc.khz());
            return Err(Error::State(format!("its TSC runs at {theirs} kHz, this VM's at {ours}")));
        }
        let mut latched = None;
        let mut initialized;
        let mut state = state;
        if state.mp == MpState::Init {
            // Received and not acted on: acted on now.
            initialized = state.clone();
            initialized.init(self.id);
            latched = state.events.sipi;
            initialized.events.sipi = latched;
            state = &initialized;
        }
        let page = lapic::to_kvm(&state.apic, state.control.cr8)?;
        self.set_sregs(state)?;
        self.fd.set_regs(&regs_into(&state.regs)).map_err(refused("KVM_SET_REGS"))?;
        self.set_xcr0(state.control.xcr0)?;
        self.restore_fpu(&state.fpu)?;
        self.set_debug_registers(&state.debug)?;
        msrs::restore(&self.fd, self.kept_msrs(), &state.msrs)?;
        msrs::restore_tsc(&self.fd, &state.tsc)?;
        self.fd.set_lapic(&page).map_err(refused("KVM_SET_LAPIC"))?;
        msrs::restore_deadline(&self.fd, &state.tsc)?;
        let mp_state = mp_into(state.mp, latched.or(state.events.sipi).is_some());
        self.fd.set_mp_state(kvm_mp_state { mp_state }).map_err(refused("KVM_SET_MP_STATE"))?;
        let events = events::to_kvm(&state.events);
        self.fd.set_vcpu_events(&events).map_err(refused("KVM_SET_VCPU_EVENTS"))?;
        self.restored(state);
        Ok(())
    }

    pub(crate) fn get_sregs(&self) -> Result<kvm_sregs2, Error> {
        if self.vm.features.sregs2 {
            return sys::get_sregs2(&self.fd);
        }
        let s = self.fd.get_sregs().map_err(os("KVM_GET_SREGS"))?;
        let kvm_sregs { cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, .. } = s;
        let kvm_sregs { cr0, cr2, cr3, cr4, cr8, efer, apic_base, .. } = s;
        let (flags, pdptrs) = (0, [0; 4]);
        Ok(kvm_sregs2 {
            cs,
            ds,
            es,
            fs,
            gs,
            ss,
            tr,
            ldt,
            gdt,
            idt,
            cr0,
            cr2,
            cr3,
            cr4,
            cr8,
            efer,
            apic_base,
            flags,
            pdptrs,
        })
    }

    fn set_sregs(&self, state: &VcpuState) -> Result<(), Error> {
        let [es, cs, ss, ds, fs, gs, ldt, tr] = state.segments.reg.map(segment_into);
        let (gdt, idt) = (table_into(state.segments.gdtr), table_into(state.segments.idtr));
        let Control { cr0, cr2, cr3, cr4, efer, pdpte, .. } = state.control;
        let (cr8, apic_base) = (state.control.cr8.into(), state.apic.base);
        let flags = if is_pae(&state.control) { KVM_SREGS2_FLAGS_PDPTRS_VALID.into() } else { 0 };
        let pdptrs = if flags != 0 { pdpte } else { [0; 4] };
        self.put_sregs(&kvm_sregs2 {
            cs,
            ds,
            es,
            fs,
            gs,
            ss,
            tr,
            ldt,
            gdt,
            idt,
            cr0,
            cr2,
            cr3,
            cr4,
            cr8,
            efer,
            apic_base,
            flags,
            pdptrs,
        })
    }

    pub(crate) fn put_sregs(&self, special: &kvm_sregs2) -> Result<(), Error> {
        if self.vm.features.sregs2 {
            return sys::set_sregs2(&self.fd, special);
        }
        let kvm_sregs2 { cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, .. } = *special;
        let kvm_sregs2 { cr0, cr2, cr3, cr4, cr8, efer, apic_base, .. } = *special;
        // The kernel loads the PDPTEs from memory then.
        let interrupt_bitmap = [0; 4]; // the events section has it
        let sregs = kvm_sregs {
            cs,
            ds,
            es,
            fs,
            gs,
            ss,
            tr,
            ldt,
            gdt,
            idt,
            cr0,
            cr2,
            cr3,
            cr4,
            cr8,
            efer,
            apic_base,
            interrupt_bitmap,
        };
        self.fd.set_sregs(&sregs).map_err(refused("KVM_SET_SREGS"))
    }

    pub(crate) fn xcr0(&self) -> Result<u64, Error> {
        let xcrs = self.fd.get_xcrs().map_err(os("KVM_GET_XCRS"))?;
        let used = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize);
        Ok(used.clone().find(|x| x.xcr == 0).map_or(1, |x| x.value))
    }

    pub(crate) fn set_xcr0(&self, value: u64) -> Result<(), Error> {
        if value == self.xcr0()? {
            return Ok(());
        }
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        xcrs.xcrs[0].value = value;
        self.fd.set_xcrs(&xcrs).map_err(refused("KVM_SET_XCRS"))
    }

    fn set_debug_registers(&self, debug: &Debug) -> Result<(), Error> {
        let Debug { dr, dr6, dr7 } = *debug;
        let regs = kvm_debugregs { db: dr, dr6, dr7, ..Default::default() };
        self.fd.set_debug_regs(&regs).map_err(refused("KVM_SET_DEBUGREGS"))
    }

    fn save_fpu(&self) -> Result<FpuState, Error> {
        let mut area = sys::XsaveArea::new(self.vm.features.xsave2);
        sys::get_xsave2(&self.fd, &mut area, self.vm.features.xsave2 > 0)?;
        let mut fpu = FpuState::reset();
        for (bytes, word) in fpu.area.chunks_exact_mut(4).zip(area.words()) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        // The kernel has expanded components in their initial states; what it keeps in the
        // bytes that the processor leaves to software, and beside XSTATE_BV, is its own.
        fpu.area[SOFTWARE_BYTES].fill(0);
        fpu.area[xsave::XSTATE_BV..xsave::XSTATE_BV + xsave::HEADER_LEN].fill(0);
        fpu.set_u64(xsave::XSTATE_BV, 7);
        fpu.set_u32(xsave::MXCSR_MASK, xsave::MXCSR_MASK_VALUE);
        Ok(fpu)
    }

    fn restore_fpu(&self, fpu: &FpuState) -> Result<(), Error> {
        if fpu.mxcsr() & !xsave::MXCSR_MASK_VALUE != 0 {
            return Err(Error::State("reserved bits of MXCSR are set".into()));
        }
        let mut fpu = fpu.clone();
        let supported = if self.vm.cpuid.has_named("avx") { 7 } else { 3 };
        let present = fpu.u64(xsave::XSTATE_BV) & supported;
        fpu.area[SOFTWARE_BYTES].fill(0);
        fpu.area[xsave::XSTATE_BV..xsave::XSTATE_BV + xsave::HEADER_LEN].fill(0);
        fpu.set_u64(xsave::XSTATE_BV, present);
        let mut area = sys::XsaveArea::new(self.vm.features.xsave2);
        for (word, bytes) in area.words_mut().iter_mut().zip(fpu.area.chunks_exact(4)) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        sys::set_xsave(&self.fd, &area)
    }
}

/// Bytes 464 to 511 of the legacy region belong to software (SDM volume 1, 10.5.1).
const SOFTWARE_BYTES: std::ops::Range<usize> = 464..512;

/// PAE paging outside long mode, the one mode with PDPTE registers.
fn is_pae(c: &Control) -> bool {
    c.cr0 & cr0::PG != 0
        && c.cr4 & x86_defs::cr::cr4::PAE != 0
        && c.efer & x86_defs::cr::efer::LMA == 0
}

/// The kernel's INIT_RECEIVED waits for a SIPI; UNINITIALIZED for an INIT before it, which
/// hardware does not ask for after power-on (SDM volume 3, 9.4.3).
fn mp_from(mp: u32) -> MpState {
    match mp {
        KVM_MP_STATE_HALTED => MpState::Halted,
        KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED | KVM_MP_STATE_SIPI_RECEIVED => {
            MpState::WaitForSipi
        }
        _ => MpState::Running,
    }
}

fn mp_into(mp: MpState, sipi: bool) -> u32 {
    match mp {
        MpState::Running => KVM_MP_STATE_RUNNABLE,
        MpState::Halted => KVM_MP_STATE_HALTED,
        MpState::WaitForSipi | MpState::Init if sipi => KVM_MP_STATE_SIPI_RECEIVED,
        MpState::WaitForSipi | MpState::Init => KVM_MP_STATE_INIT_RECEIVED,
    }
}

#[rustfmt::skip]
pub(crate) fn regs_from(r: &kvm_regs) -> Regs {
    let gpr = [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi,
        r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15,
    ];
    Regs { gpr, rip: r.rip, rflags: r.rflags }
}

#[rustfmt::skip]
pub(crate) fn regs_into(&Regs { gpr, rip, rflags }: &Regs) -> kvm_regs {
    let [
        rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi,
        r8, r9, r10, r11, r12, r13, r14, r15,
    ] = gpr;
    kvm_regs {
        rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi,
        r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags,
    }
}

pub(crate) fn segment_from(s: kvm_segment) -> Segment {
    let bit = |value: u8, at: u32| u16::from(value) << at;
    let present = if s.unusable != 0 { 0 } else { s.present };
    let low = bit(s.type_, 0) | bit(s.s, 4) | bit(s.dpl, 5) | bit(present, 7);
    let attr = low | bit(s.avl, 12) | bit(s.l, 13) | bit(s.db, 14) | bit(s.g, 15);
    Segment { selector: s.selector, base: s.base, limit: s.limit, attr }
}

pub(crate) fn segment_into(s: Segment) -> kvm_segment {
    let bits = |at: u32, mask: u16| (s.attr >> at & mask) as u8;
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: bits(0, 15),
        s: bits(4, 1),
        dpl: bits(5, 3),
        present: bits(7, 1),
        avl: bits(12, 1),
        l: bits(13, 1),
        db: bits(14, 1),
        g: bits(15, 1),
        unusable: 1 - bits(7, 1),
        padding: 0,
    }
}

fn table_from(t: &kvm_dtable) -> Table {
    Table { base: t.base, limit: t.limit }
}

fn table_into(t: Table) -> kvm_dtable {
    kvm_dtable { base: t.base, limit: t.limit, ..Default::default() }
}
