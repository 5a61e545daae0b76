//! What a vCPU is, as neutral data in versioned sections, and its reset values.
//!
//! The state is architecture, never back end: what one engine saves, every other engine
//! restores. That is engine-to-engine migration, and the translator's oracle. Reset is
//! restoring the reset values; INIT is not reset (it keeps the FPU and most MSRs).

mod apic;
mod events;
mod fpu;
mod msrs;
mod reset;
mod segments;

pub use apic::ApicState;
pub use events::{Events, Exception, MpState, Raised, Shadow};
pub use fpu::FpuState;
pub use msrs::Msrs;
pub use segments::{SegReg, Segment, Segments, Table};

use saved_state::{Reader, Schema, Writer};
use serde::{Deserialize, Serialize};

/// One list makes the struct and the table of its sections, so that neither can have what
/// the other lacks.
macro_rules! sections {
    ($($(#[$doc:meta])* $name:ident: $ty:ty = $kind:literal version $version:literal,)*) => {
        /// All of a vCPU between two instructions.
        #[derive(Clone, Debug, PartialEq)]
        pub struct VcpuState {
            $($(#[$doc])* pub $name: $ty,)*
        }

        $(impl Schema for $ty {
            const KIND: &'static str = $kind;
            const VERSION: u16 = $version;
        })*

        impl VcpuState {
            /// Name and version of each section.
            pub const SECTIONS: &[(&str, u16)] = &[$(($kind, $version),)*];

            /// Writes every section, as those of vCPU `id`.
            pub fn save(&self, id: u32, to: &mut Writer) {
                $(to.put(id, &self.$name);)*
            }

            /// Takes every section of vCPU `id`.
            pub fn restore(id: u32, from: &mut Reader) -> Result<Self, saved_state::Error> {
                Ok(Self { $($name: from.take(id)?,)* })
            }
        }
    };
}

sections! {
    regs: Regs = "vcpu-regs" version 1,
    segments: Segments = "vcpu-segments" version 1,
    control: Control = "vcpu-control" version 1,
    debug: Debug = "vcpu-debug" version 1,
    fpu: FpuState = "vcpu-fpu" version 1,
    msrs: Msrs = "vcpu-msrs" version 1,
    /// What is on its way into the guest.
    events: Events = "vcpu-events" version 1,
    mp: MpState = "vcpu-mp" version 1,
    tsc: Tsc = "vcpu-tsc" version 1,
    /// The local APIC, whoever emulates it.
    apic: ApicState = "vcpu-apic" version 1,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Regs {
    /// In encoding order: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    /// The task priority; the same register as the APIC's TPR bits 4 to 7.
    pub cr8: u8,
    pub efer: u64,
    pub xcr0: u64,
    /// Loaded by a write to CR3 under PAE paging outside long mode (SDM volume 3, 4.4.1), so
    /// they may differ from memory.
    pub pdpte: [u64; 4],
}

/// DR0 to DR3, DR6, DR7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Debug {
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tsc {
    /// IA32_TIME_STAMP_COUNTER at the moment of saving.
    pub value: u64,
    /// 0 when restoring: keep the engine's own.
    pub khz: u32,
    /// IA32_TSC_ADJUST.
    pub adjust: u64,
    /// IA32_TSC_DEADLINE; 0 when not armed.
    pub deadline: u64,
}

impl VcpuState {
    /// The interrupt window is open.
    pub fn accepts_interrupt(&self) -> bool {
        let Events { exception, interrupt, nmi_injected, shadow, .. } = self.events;
        self.regs.rflags & x86_defs::rflags::IF != 0
            && !matches!(self.mp, MpState::WaitForSipi | MpState::Init)
            && exception == Raised::None
            && interrupt.is_none()
            && !nmi_injected
            && shadow == Shadow::None
    }

    pub fn segment(&self, which: SegReg) -> &Segment {
        &self.segments.reg[which as usize]
    }

    pub fn segment_mut(&mut self, which: SegReg) -> &mut Segment {
        &mut self.segments.reg[which as usize]
    }

    /// The privilege level: SS.DPL (SDM volume 3, 5.5).
    pub fn cpl(&self) -> u8 {
        self.segment(SegReg::Ss).dpl()
    }
}
