//! Segment and descriptor-table registers.

use serde::{Deserialize, Serialize};
use x86_defs::segment::{ATTR_DPL, ATTR_DPL_SHIFT, ATTR_P};

/// Index into [`Segments::reg`], in encoding order and then the system segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SegReg {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
    Ldtr,
    Tr,
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    pub selector: u16,
    pub base: u64,
    /// In bytes: granularity is applied.
    pub limit: u32,
    /// As [`x86_defs::segment`] keeps attributes. P clear means unusable.
    pub attr: u16,
}

impl Segment {
    pub const fn dpl(&self) -> u8 {
        ((self.attr & ATTR_DPL) >> ATTR_DPL_SHIFT) as u8
    }

    pub const fn usable(&self) -> bool {
        self.attr & ATTR_P != 0
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    pub base: u64,
    pub limit: u16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segments {
    /// Indexed by [`SegReg`].
    pub reg: [Segment; 8],
    pub gdtr: Table,
    pub idtr: Table,
}
