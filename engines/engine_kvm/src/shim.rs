//! Guests of which nothing runs in ring 0: what they would need ring 0 for comes to the machine
//! ([`engine::VmConfig::intercepts`]).
//!
//! The guest's page tables are the ones that the processor walks. In every root it has pages that
//! only the supervisor reaches ([`engine::Ring0`]), with an IDT whose gates lead to code of ours, a
//! *shim*. Each of its entries is one OUT, which takes the vCPU out of KVM_RUN with the exception's
//! frame on the vCPU's own stack. The registers are read, the event is offered to the machine, and
//! what that leaves is loaded as a state of ring 3: the shim never returns by itself.
//!
//! SYSCALL is switched off (EFER.SCE), so it is an exception as others are, and what CS and SS were is
//! not lost. A KVM that emulates ring 0 in software does not look at that bit and goes to LSTAR without
//! a change of ring: that names an address of the shim's, and the page fault there is the system call.
//!
//! Correctness goes before speed: every event moves all registers out of the kernel and in.

mod enter;
mod event;
mod image;
mod memory;
mod shadows;
mod syscall;
mod view;

pub(crate) use image::{INTERCEPTS, Image, check};
pub(crate) use shadows::Shadows;

use crate::{state, vcpu::KvmVcpu};
use engine::{Error, Roots};
use kvm_bindings::{kvm_segment, kvm_sregs2};
use vcpu_state::{Exception, MpState, Regs, SegReg, Segment, Table, VcpuState};
use x86_defs::{
    cr::efer,
    is_canonical_48,
    msr::LSTAR,
    segment::{ATTR_P, system_type},
};

/// Of a vCPU whose guest has no ring 0.
#[derive(Debug)]
pub(crate) struct Shim {
    image: Image,
    id: u32,
    /// Registers that are not in the kernel but here.
    cached: Option<Registers>,
    /// What the guest's state has where the vCPU has the shim's.
    hidden: Hidden,
    halted: bool,
    /// Those of the guest, as far as the machine has told.
    roots: Option<Roots>,
    in_kernel: bool,
    /// To be offered before the guest goes on.
    raised: Option<Exception>,
    /// CS and SS as they were loaded when it was entered.
    entered: (kvm_segment, kvm_segment),
    /// How often the TLBs of all vCPUs had been flushed when this one's was.
    flushed: u64,
    /// This one's has to be.
    stale: bool,
    /// The guest is in the middle of an event, which comes before all else.
    inside: bool,
}

#[derive(Clone, Copy, Debug)]
struct Registers {
    regs: Regs,
    special: kvm_sregs2,
}

#[derive(Clone, Copy, Debug, Default)]
struct Hidden {
    idtr: Table,
    task: Segment,
    cr2: u64,
    syscall_on: bool,
    lstar: Option<u64>,
}

impl Shim {
    pub(crate) fn new(image: Image, id: u32) -> Self {
        Self {
            image,
            id,
            cached: None,
            hidden: Hidden::default(),
            halted: false,
            roots: None,
            in_kernel: false,
            raised: None,
            entered: Default::default(),
            flushed: 0,
            stale: true,
            inside: false,
        }
    }

    /// The state as the vCPU has it.
    fn dress(&mut self, state: &mut VcpuState) {
        let hidden = Hidden {
            idtr: state.segments.idtr,
            task: *state.segment(SegReg::Tr),
            cr2: state.control.cr2,
            syscall_on: state.control.efer & efer::SCE != 0,
            lstar: state.msrs.get(LSTAR),
        };
        self.hidden = hidden;
        let loaded = |which| state::segment_into(*state.segment(which));
        self.entered = (loaded(SegReg::Cs), loaded(SegReg::Ss));
        self.halted = state.mp != MpState::Running;
        (self.cached, self.raised, self.roots) = (None, None, None);
        (self.in_kernel, self.stale, self.inside) = (false, true, false);
        *state.segment_mut(SegReg::Tr) = Segment {
            selector: 0,
            base: self.image.task_state(self.id),
            limit: image::TASK_STATE_LIMIT,
            attr: ATTR_P | system_type::TSS_BUSY,
        };
        state.segments.idtr = self.image.idtr();
        state.control.efer &= !efer::SCE;
        state.msrs.set(LSTAR, self.image.system_call());
        state.mp = MpState::Running;
    }

    /// The opposite.
    fn undress(&self, state: &mut VcpuState) {
        let hidden = &self.hidden;
        *state.segment_mut(SegReg::Tr) = hidden.task;
        state.segments.idtr = hidden.idtr;
        state.control.cr2 = hidden.cr2;
        if hidden.syscall_on {
            state.control.efer |= efer::SCE;
        }
        match hidden.lstar {
            Some(value) => state.msrs.set(LSTAR, value),
            None => drop(state.msrs.0.remove(&LSTAR)),
        }
        state.mp = if self.halted { MpState::Halted } else { MpState::Running };
    }
}

impl KvmVcpu {
    /// A vCPU's state without what is the shim's.
    pub(crate) fn save_guest(&mut self) -> Result<VcpuState, Error> {
        let mut state = self.save()?;
        if let Some(shim) = &self.shim {
            shim.undress(&mut state);
        }
        Ok(state)
    }

    /// The opposite.
    pub(crate) fn restore_guest(&mut self, state: &VcpuState) -> Result<(), Error> {
        let Some(shim) = &mut self.shim else { return self.restore(state) };
        if state.control.efer & efer::LMA != 0 && !is_canonical_48(state.regs.rip) {
            return Err(Error::State("RIP is not canonical".into()));
        }
        // Its tables were written by the host, which the kernel's shadows of them do not know.
        self.vm.shadows.are_wrong();
        let mut dressed = state.clone();
        shim.dress(&mut dressed);
        self.restore(&dressed)
    }
}
