//! Room that one translation after another uses: to ask the allocator for it each time took a
//! tenth of the time.

use super::{Lowerer, Miss, flags::Tracker, flow::FarMiss, reuse::Reuse, scratch::Scratch};
use crate::{
    asm::{Buffer, Patch},
    forms::Forms,
};
use iced_x86::Instruction;

/// What translating needs beside what it translates.
#[derive(Debug, Default)]
pub struct Tools {
    pub forms: Forms,
    /// Those of the block.
    pub insns: Vec<Instruction>,
    pub spare: Spare,
}

/// Empty lists.
#[derive(Debug, Default)]
pub struct Spare {
    pub(super) code: [Buffer; 2],
    pub(super) fars: Vec<FarMiss>,
    pub(super) misses: Vec<Miss>,
    pub(super) ends: Vec<usize>,
    pub(super) calls: Vec<Patch>,
    pub(super) light_calls: Vec<(Patch, [usize; 3])>,
    pub(super) plain: Vec<usize>,
    pub(super) reuse: Reuse,
    pub(super) runs: Vec<bool>,
    pub(super) scratches: Vec<Scratch>,
    pub(super) flags: Tracker,
}

impl Lowerer<'_> {
    /// All but the code.
    pub(super) fn give_back(&mut self) {
        fn empty<T>(mut list: Vec<T>) -> Vec<T> {
            list.clear();
            list
        }
        let spare = &mut *self.spare;
        spare.fars = empty(std::mem::take(&mut self.fars));
        spare.misses = empty(std::mem::take(&mut self.misses));
        spare.ends = empty(std::mem::take(&mut self.ends));
        spare.calls = empty(std::mem::take(&mut self.calls));
        spare.light_calls = empty(std::mem::take(&mut self.light_calls));
        spare.plain = empty(std::mem::take(&mut self.plain));
        spare.reuse = std::mem::take(&mut self.reuse).emptied();
        spare.runs = empty(std::mem::take(&mut self.runs));
        spare.scratches = empty(std::mem::take(&mut self.scratches));
        spare.flags = std::mem::take(&mut self.flags).emptied();
    }
}

impl Spare {
    /// The code of the last translation is where it belongs.
    pub fn take_code(&mut self, code: [Buffer; 2]) {
        self.code = code;
    }
}
