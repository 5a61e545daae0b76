//! What the control registers say of translation.

use vcpu_state::VcpuState;
use x86_defs::{
    cr::{cr0, cr3, cr4, efer},
    paging,
};

/// The paging modes (SDM volume 3, 4.1.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// CR0.PG is clear.
    #[default]
    Off,
    /// 32-bit paging: two levels.
    TwoLevel,
    Pae,
    FourLevel,
}

/// What CPUID offers that page walks depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// MAXPHYADDR: 32 to 52.
    pub phys_bits: u8,
    /// 1 GiB pages.
    pub gbpages: bool,
    /// Physical addresses of 40 bits in the 4 MiB pages of 32-bit paging.
    pub pse36: bool,
}

impl Default for Features {
    fn default() -> Self {
        Self { phys_bits: 40, gbpages: true, pse36: true }
    }
}

/// Everything that decides the outcome of a walk, but for the tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paging {
    pub mode: Mode,
    /// Address of the first table.
    pub root: u64,
    /// The latched page-directory-pointer entries of PAE paging.
    pub pdpte: [u64; 4],
    pub features: Features,
    pub(crate) wp: bool,
    pub(crate) nx: bool,
    pub(crate) smep: bool,
    pub(crate) smap: bool,
    pub(crate) pse: bool,
    pub(crate) pge: bool,
}

impl Paging {
    pub fn new([cr0, cr3, cr4, efer]: [u64; 4], pdpte: [u64; 4], features: Features) -> Self {
        let mode = if cr0 & cr0::PG == 0 {
            Mode::Off
        } else if cr4 & cr4::PAE == 0 {
            Mode::TwoLevel
        } else if efer & efer::LMA == 0 {
            Mode::Pae
        } else {
            Mode::FourLevel
        };
        let root = match mode {
            Mode::FourLevel => cr3 & paging::ADDRESS,
            Mode::Pae => cr3 & 0xffff_ffe0,
            _ => cr3 & 0xffff_f000,
        };
        Self {
            mode,
            root,
            pdpte,
            features,
            wp: cr0 & cr0::WP != 0,
            nx: efer & efer::NXE != 0 && cr4 & cr4::PAE != 0,
            smep: cr4 & cr4::SMEP != 0,
            smap: cr4 & cr4::SMAP != 0,
            pse: cr4 & cr4::PSE != 0,
            pge: cr4 & cr4::PGE != 0,
        }
    }

    /// As a saved vCPU has it.
    pub fn of(state: &VcpuState, features: Features) -> Self {
        let c = &state.control;
        Self::new([c.cr0, c.cr3, c.cr4, c.efer], c.pdpte, features)
    }

    /// Another root of four-level paging.
    pub fn set_root(&mut self, cr3: u64) {
        self.root = cr3 & paging::ADDRESS;
    }

    /// The process-context identifier that a value of CR3 selects.
    pub const fn pcid(cr3: u64, cr4: u64) -> u16 {
        if cr4 & cr4::PCIDE != 0 { (cr3 & cr3::PCID) as u16 } else { 0 }
    }

    /// Linear addresses are 32 bits wide outside long mode.
    #[inline]
    pub(crate) const fn linear(&self, gva: u64) -> u64 {
        match self.mode {
            Mode::FourLevel => gva,
            _ => gva & 0xffff_ffff,
        }
    }

    /// Physical-address bits that must be clear, up to bit 51.
    pub(crate) const fn beyond_physical(&self) -> u64 {
        let bits = if self.features.phys_bits > 52 { 52 } else { self.features.phys_bits };
        paging::ADDRESS & !((1 << bits) - 1)
    }
}
