//! The processor's modes, each with its tables in low memory.

use crate::guest::{CODE, GDT, IDT, PAGE_TABLES, STACK, TSS};
use guest_mem::GuestMem;
use vcpu_state::{SegReg, Segment, Table, VcpuState};
use x86_defs::{
    cr::{cr0, cr4, efer},
    gpr, rflags,
    segment::{ATTR_DPL_SHIFT, ATTR_P, Descriptor},
};

/// A mode in which guests of a few bytes run, flat from address 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Real,
    /// 32-bit, without paging.
    Protected,
    /// 32-bit with two-level paging, all of the low 4 MiB mapped to itself.
    Paged,
    /// 32-bit with PAE paging, the low 2 MiB mapped to itself.
    Pae,
    /// 64-bit, the low 2 MiB mapped to itself.
    Long,
    /// 64-bit at ring 3.
    User,
}

impl Mode {
    pub const ALL: [Mode; 6] =
        [Mode::Real, Mode::Protected, Mode::Paged, Mode::Pae, Mode::Long, Mode::User];

    /// Selectors of the GDT.
    pub const CODE32: u16 = 0x08;
    pub const DATA: u16 = 0x10;
    pub const CODE64: u16 = 0x18;
    pub const USER_DATA: u16 = 0x20 | 3;
    pub const USER_CODE64: u16 = 0x28 | 3;
    /// Two entries in long mode.
    pub const TASK: u16 = 0x30;
    /// A data segment that is not present.
    pub const ABSENT: u16 = 0x40;

    pub fn is_long(self) -> bool {
        matches!(self, Mode::Long | Mode::User)
    }

    /// Paging outside long mode.
    pub fn is_paged_protected(self) -> bool {
        matches!(self, Mode::Paged | Mode::Pae)
    }

    /// IRET of the mode's own width.
    pub(crate) fn iret(self) -> &'static [u8] {
        if self.is_long() { &[0x48, 0xcf] } else { &[0xcf] }
    }

    /// Writes the tables that the mode needs.
    pub(crate) fn write_tables(self, memory: &GuestMem, handler: impl Fn(u8) -> u64) {
        let put = |at: u64, value: u64| memory.write(at, &value.to_le_bytes()).unwrap();
        if self == Mode::Real {
            for vector in 0..0x40u8 {
                let entry = (handler(vector) as u32).to_le_bytes();
                memory.write(u64::from(vector) * 4, &entry).unwrap();
            }
            return;
        }
        let long = self.is_long();
        put(GDT + 0x08, 0x00cf_9b00_0000_ffff);
        put(GDT + 0x10, 0x00cf_9300_0000_ffff);
        put(GDT + 0x18, 0x00af_9b00_0000_ffff);
        put(GDT + 0x20, 0x00cf_f300_0000_ffff);
        put(GDT + 0x28, 0x00af_fb00_0000_ffff);
        put(GDT + 0x30, Descriptor::new(TSS as u32, 0x67, 0x8b).0);
        put(GDT + 0x38, 0);
        put(GDT + 0x40, 0x00cf_1300_0000_ffff);
        if long {
            put(TSS + 4, STACK - 0x400); // RSP0
            put(TSS + 0x24, STACK - 0x800); // IST1
        } else {
            put(TSS + 4, STACK | u64::from(Self::DATA) << 32); // ESP0, SS0
        }
        for vector in 0..0x40u8 {
            let at = handler(vector);
            let selector = if long { Self::CODE64 } else { Self::CODE32 };
            // #BP's and vector 0x30's gates are open to ring 3.
            let attributes = if matches!(vector, 3 | 0x30) { 0xee00u64 } else { 0x8e00 };
            let gate = at & 0xffff | u64::from(selector) << 16 | attributes << 32;
            let gate = gate | (at >> 16 & 0xffff) << 48;
            let wide = if long { 16 } else { 8 };
            put(IDT + u64::from(vector) * wide, gate);
            if long {
                put(IDT + u64::from(vector) * wide + 8, at >> 32);
            }
        }
        self.write_page_tables(memory);
    }

    fn write_page_tables(self, memory: &GuestMem) {
        let put = |at: u64, value: u64| memory.write(at, &value.to_le_bytes()).unwrap();
        let put32 = |at: u64, value: u32| memory.write(at, &value.to_le_bytes()).unwrap();
        let [top, second, third, fourth] = PAGE_TABLES;
        match self {
            Mode::Real | Mode::Protected => {}
            Mode::Paged => {
                put32(top, second as u32 | 7);
                (0..1024).for_each(|page| put32(second + page * 4, (page << 12) as u32 | 7));
            }
            Mode::Pae => {
                put(top, second | 1);
                put(second, third | 7);
                (0..512).for_each(|page| put(third + page * 8, page << 12 | 7));
            }
            Mode::Long | Mode::User => {
                put(top, second | 7);
                put(second, third | 7);
                put(third, fourth | 7);
                (0..512).for_each(|page| put(fourth + page * 8, page << 12 | 7));
            }
        }
    }

    /// Where the entry is that maps the 4 KiB page at `address`.
    ///
    /// # Panics
    /// In modes without paging.
    pub fn entry_at(self, address: u64) -> u64 {
        let [_, second, third, fourth] = PAGE_TABLES;
        let page = address >> 12;
        match self {
            Mode::Paged => second + page * 4,
            Mode::Pae => third + page * 8,
            Mode::Long | Mode::User => fourth + page * 8,
            Mode::Real | Mode::Protected => panic!("{self:?} has no page tables"),
        }
    }

    /// The state in which code at [`CODE`] runs in this mode.
    pub fn state(self) -> VcpuState {
        let mut state = VcpuState::reset(0);
        state.regs.rip = CODE;
        state.regs.gpr[gpr::RSP] = STACK;
        // As firmware leaves it: LINT0 takes the PIC's interrupts.
        state.apic.regs[0xf] = 0x1ff;
        state.apic.regs[0x35] = 0x700;
        if self == Mode::Real {
            let cs = state.segment_mut(SegReg::Cs);
            (cs.selector, cs.base) = (0, 0);
            state.control.cr0 = cr0::ET;
            return state;
        }
        let dpl = if self == Mode::User { 3 } else { 0 };
        let (code, data) = match self {
            Mode::User => (Self::USER_CODE64, Self::USER_DATA),
            Mode::Long => (Self::CODE64, Self::DATA),
            _ => (Self::CODE32, Self::DATA),
        };
        if self == Mode::User {
            state.regs.rflags |= rflags::IOPL;
        }
        let flat = Segment { limit: !0, ..Segment::default() };
        let privilege = dpl << ATTR_DPL_SHIFT;
        for which in [SegReg::Es, SegReg::Ss, SegReg::Ds, SegReg::Fs, SegReg::Gs] {
            *state.segment_mut(which) =
                Segment { selector: data, attr: 0xc093 | privilege, ..flat };
        }
        let attr = if self.is_long() { 0xa09b } else { 0xc09b };
        *state.segment_mut(SegReg::Cs) = Segment { selector: code, attr: attr | privilege, ..flat };
        *state.segment_mut(SegReg::Tr) =
            Segment { selector: Self::TASK, base: TSS, limit: 0x67, attr: 0x8b };
        *state.segment_mut(SegReg::Ldtr) = Segment { attr: 0x82 & !ATTR_P, ..Segment::default() };
        state.segments.gdtr = Table { base: GDT, limit: 0x47 };
        state.segments.idtr = Table { base: IDT, limit: 0x3ff };
        let control = &mut state.control;
        control.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP;
        control.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT;
        let [top, second, ..] = PAGE_TABLES;
        if self.is_long() || self.is_paged_protected() {
            control.cr0 |= cr0::PG;
            control.cr3 = top;
        }
        if self == Mode::Pae {
            control.cr4 |= cr4::PAE;
            control.pdpte[0] = second | 1;
        }
        if self.is_long() {
            control.cr4 |= cr4::PAE;
            control.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
        }
        state
    }
}
