//! Segment descriptors and selectors (SDM volume 3, 3.4).
//!
//! Attributes are kept as bits 8 to 23 of a descriptor's high half with the limit's four
//! bits taken out: type 0-3, S 4, DPL 5-6, P 7, AVL 12, L 13, D/B 14, G 15.

pub const ATTR_TYPE: u16 = 0xf;
pub const ATTR_ACCESSED: u16 = 1 << 0;
/// Data: writable. Code: readable.
pub const ATTR_RW: u16 = 1 << 1;
/// Data: expand-down. Code: conforming.
pub const ATTR_EC: u16 = 1 << 2;
pub const ATTR_CODE: u16 = 1 << 3;
/// Clear for system descriptors.
pub const ATTR_S: u16 = 1 << 4;
pub const ATTR_DPL: u16 = 3 << 5;
pub const ATTR_DPL_SHIFT: u32 = 5;
pub const ATTR_P: u16 = 1 << 7;
pub const ATTR_AVL: u16 = 1 << 12;
pub const ATTR_L: u16 = 1 << 13;
pub const ATTR_DB: u16 = 1 << 14;
pub const ATTR_G: u16 = 1 << 15;

/// System-descriptor types (SDM volume 3, table 3-2).
pub mod system_type {
    pub const TSS16_AVAILABLE: u16 = 1;
    pub const LDT: u16 = 2;
    pub const TSS16_BUSY: u16 = 3;
    pub const CALL_GATE16: u16 = 4;
    pub const TASK_GATE: u16 = 5;
    pub const INTERRUPT_GATE16: u16 = 6;
    pub const TRAP_GATE16: u16 = 7;
    pub const TSS_AVAILABLE: u16 = 9;
    pub const TSS_BUSY: u16 = 11;
    pub const CALL_GATE: u16 = 12;
    pub const INTERRUPT_GATE: u16 = 14;
    pub const TRAP_GATE: u16 = 15;
}

pub const SELECTOR_RPL: u16 = 3;
pub const SELECTOR_TI: u16 = 4;

/// An 8-byte segment descriptor taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// The base address; of a 16-byte system descriptor, its low 32 bits.
    pub const fn base(self) -> u64 {
        (self.0 >> 16 & 0xff_ffff) | (self.0 >> 56 << 24)
    }

    /// The limit in bytes: granularity is applied.
    pub const fn limit(self) -> u32 {
        let raw = (self.0 & 0xffff) as u32 | (self.0 >> 32) as u32 & 0xf_0000;
        if self.attr() & ATTR_G != 0 { raw << 12 | 0xfff } else { raw }
    }

    /// Attributes, as this module keeps them.
    pub const fn attr(self) -> u16 {
        (self.0 >> 40) as u16 & 0xf0ff
    }

    pub const fn dpl(self) -> u8 {
        ((self.attr() & ATTR_DPL) >> ATTR_DPL_SHIFT) as u8
    }

    pub const fn present(self) -> bool {
        self.attr() & ATTR_P != 0
    }

    pub const fn is_system(self) -> bool {
        self.attr() & ATTR_S == 0
    }

    /// The four type bits.
    pub const fn kind(self) -> u16 {
        self.attr() & ATTR_TYPE
    }

    /// Makes a descriptor from its parts; `limit` is in bytes if G is clear in `attr`, and in
    /// 4 KiB units less one otherwise.
    pub const fn new(base: u32, limit: u32, attr: u16) -> Self {
        Self(
            (limit as u64 & 0xffff)
                | (base as u64 & 0xff_ffff) << 16
                | (attr as u64 & 0xf0ff) << 40
                | (limit as u64 & 0xf_0000) << 32
                | (base as u64 >> 24) << 56,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_code_descriptor_by_parts() {
        let flat = Descriptor(0x00cf_9b00_0000_ffff);
        assert_eq!((flat.base(), flat.limit(), flat.attr()), (0, !0, 0xc09b));
        assert_eq!(Descriptor::new(0, 0xf_ffff, 0xc09b), flat);
        let odd = Descriptor::new(0x1234_5678, 0x54321, 0x4093);
        assert_eq!((odd.base(), odd.limit(), odd.attr()), (0x1234_5678, 0x54321, 0x4093));
    }
}
