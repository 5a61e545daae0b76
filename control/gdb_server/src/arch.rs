//! x86-64 with system registers, as the target description in `target.xml` has it.

use std::num::NonZeroUsize;
use vcpu_state::SegReg;

/// A register; [`RegId::ALL`] has them in the order of the target description, which gives
/// them their numbers in the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RegId {
    /// By its number in instructions.
    Gpr(usize),
    Rip,
    Rflags,
    Selector(SegReg),
    St(usize),
    /// FCW, FSW.
    Fctrl,
    Fstat,
    Ftag,
    Fiseg,
    Fioff,
    Foseg,
    Fooff,
    Fop,
    Xmm(usize),
    Mxcsr,
    Base(SegReg),
    YmmHigh(usize),
    KernelGsBase,
    Cr0,
    Cr2,
    Cr3,
    Cr4,
    Cr8,
    Efer,
}

impl RegId {
    pub(crate) const COUNT: usize = 16 + 2 + 6 + 8 + 8 + 16 + 1 + 2 + 16 + 7;

    /// By number in the protocol.
    pub(crate) fn numbered(n: usize) -> Option<Self> {
        use RegId::*;
        /// GDB's order of the general registers.
        const GPR: [usize; 16] = [0, 3, 1, 2, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15];
        const SEGMENTS: [SegReg; 6] =
            [SegReg::Cs, SegReg::Ss, SegReg::Ds, SegReg::Es, SegReg::Fs, SegReg::Gs];
        const FPU: [RegId; 8] = [Fctrl, Fstat, Ftag, Fiseg, Fioff, Foseg, Fooff, Fop];
        const SYSTEM: [RegId; 7] = [KernelGsBase, Cr0, Cr2, Cr3, Cr4, Cr8, Efer];
        Some(match n {
            0..16 => Gpr(*GPR.get(n)?),
            16 => Rip,
            17 => Rflags,
            18..24 => Selector(*SEGMENTS.get(n - 18)?),
            24..32 => St(n - 24),
            32..40 => *FPU.get(n - 32)?,
            40..56 => Xmm(n - 40),
            56 => Mxcsr,
            57 => Base(SegReg::Fs),
            58 => Base(SegReg::Gs),
            59..75 => YmmHigh(n - 59),
            75..82 => *SYSTEM.get(n - 75)?,
            _ => return None,
        })
    }

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).filter_map(Self::numbered)
    }

    /// Length in the protocol, in bytes.
    pub(crate) fn len(self) -> usize {
        use RegId::*;
        match self {
            Gpr(_) | Rip | Base(_) | KernelGsBase | Cr0 | Cr2 | Cr3 | Cr4 | Cr8 | Efer => 8,
            Rflags | Selector(_) | Mxcsr => 4,
            Fctrl | Fstat | Ftag | Fiseg | Fioff | Foseg | Fooff | Fop => 4,
            St(_) => 10,
            Xmm(_) | YmmHigh(_) => 16,
        }
    }
}

impl gdbstub::arch::RegId for RegId {
    fn from_raw_id(n: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        let reg = Self::numbered(n)?;
        Some((reg, NonZeroUsize::new(reg.len())))
    }
}

/// All registers, as the protocol writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Registers {
    pub(crate) rip: u64,
    pub(crate) bytes: Vec<u8>,
}

impl gdbstub::arch::Registers for Registers {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.rip
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        self.bytes.iter().for_each(|&byte| write_byte(Some(byte)));
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        let len: usize = RegId::all().map(RegId::len).sum();
        self.bytes = bytes.get(..len).ok_or(())?.to_vec();
        Ok(())
    }
}

#[derive(Debug)]
pub(crate) struct X86;

impl gdbstub::arch::Arch for X86 {
    type Usize = u64;
    type Registers = Registers;
    type BreakpointKind = usize;
    type RegId = RegId;

    fn target_description_xml() -> Option<&'static str> {
        Some(include_str!("target.xml"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_those_of_the_target_description() {
        let described: Vec<usize> = include_str!("target.xml")
            .lines()
            .filter_map(|line| line.trim().strip_prefix("<reg name=")?.split('"').nth(3))
            .map(|bits| bits.parse::<usize>().unwrap() / 8)
            .collect();
        assert_eq!(described, RegId::all().map(RegId::len).collect::<Vec<_>>());
        assert_eq!(described.len(), RegId::COUNT);
        assert_eq!(RegId::numbered(RegId::COUNT), None);
    }
}
