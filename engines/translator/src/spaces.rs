//! What jump targets depend on beside the address, as a number.

use crate::{jumps::Tables, width::Width};
use semantics::{Cpu, Ctx};
use vcpu_state::SegReg;

/// Set in the numbers of 16-bit code's spaces.
const SHORT: u64 = 1 << 63;
/// Code segments of 16-bit code that are remembered.
const MOST: usize = 64;

/// A number of its own for each plane and each lifetime of an address space. Loads of CR3 do not
/// change that of supervisor code in global pages, and from there only jumps to such code are
/// known. Of 16-bit code, whose addresses are offsets, each base of the code segment has one.
/// `None` if there are no translations for the present rights, which are never made for levels 1
/// and 2, nor for code that [`Width`] does not know. `windows`: there are some, so that user
/// code runs in another version.
pub fn space(ctx: &Ctx<'_>, tables: &mut Tables, global: bool, windows: bool) -> Option<u64> {
    let cpu = &*ctx.cpu;
    let tags = cpu.mmu.tags();
    let tag = if global { tags.global } else { tags.all };
    let plane = cpu.mmu.plane().filter(|_| matches!(cpu.mode.cpl, 0 | 3))?;
    // The last bits are the plane's alone: code that sets RFLAGS.AC changes them.
    let width = Width::of(cpu)?;
    if width.is_short() {
        return Some(tables.shorts.number(cpu, width) << 2 | plane as u64);
    }
    Some(number(tag, width.is_narrow(), version(plane, width, windows)))
}

/// Of user code that accesses memory by windows, in place of the TLB's plane.
pub const WINDOWED: usize = 3;

/// Which translations are for code with the rights of a plane, if there are windows or not.
pub fn version(plane: usize, width: Width, windows: bool) -> usize {
    if windows && plane == 2 && width == Width::Wide { WINDOWED } else { plane }
}

/// The TLB's plane of a version.
pub fn plane(version: usize) -> usize {
    if version == WINDOWED { 2 } else { version }
}

/// Of a space.
pub fn number(tag: u64, narrow: bool, version: usize) -> u64 {
    (tag << 1 | u64::from(narrow)) << 2 | version as u64
}

/// The code segments of 16-bit code.
#[derive(Debug, Default)]
pub struct Shorts {
    /// What is known of each, and its number.
    known: Vec<(Segment, u64)>,
    given: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    tag: u64,
    base: u64,
    width: Width,
}

impl Shorts {
    fn number(&mut self, cpu: &Cpu, width: Width) -> u64 {
        let base = cpu.segment(SegReg::Cs).base;
        self.of(Segment { tag: cpu.mmu.tags().all, base, width })
    }

    fn of(&mut self, segment: Segment) -> u64 {
        if let Some((_, number)) = self.known.iter().find(|(known, _)| *known == segment) {
            return *number;
        }
        if self.known.len() >= MOST {
            self.known.remove(0);
        }
        self.given += 1;
        // As of 32-bit code, in the last bit.
        let number = SHORT >> 2 | self.given << 1 | 1;
        self.known.push((segment, number));
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_given_once() {
        let mut shorts = Shorts::default();
        let segment = |tag, base| Segment { tag, base, width: Width::Real };
        let first = shorts.of(segment(1, 0x10));
        assert_eq!(shorts.of(segment(1, 0x10)), first);
        let mut all = vec![first];
        for other in 0..2 * MOST as u64 {
            all.push(shorts.of(segment(2, other)));
        }
        all.push(shorts.of(Segment { width: Width::Short, ..segment(2, 0) }));
        all.push(shorts.of(segment(1, 0x10)));
        assert_eq!(shorts.known.len(), MOST);
        all.sort_unstable();
        let count = all.len();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
