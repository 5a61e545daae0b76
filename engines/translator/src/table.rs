//! The translated blocks.

use iced_x86::Mnemonic;
use semantics::Insn;
use std::sync::Arc;

use crate::{
    lower::{Exit, SITE_BITS},
    width::Width,
};

#[derive(Debug)]
pub struct Translated {
    pub insns: Arc<[Insn]>,
    /// Of each instruction.
    pub mnemonics: Box<[Mnemonic]>,
    /// Offset in its page.
    pub start: u16,
    pub plane: usize,
    pub width: Width,
    /// Offsets in the code memory: where it is entered; the same for jumps from blocks in which
    /// the vector registers are live that it uses; and where such jumps that go forward enter.
    pub entry: usize,
    pub polled: usize,
    pub unpolled: usize,
    /// What it uses of the vector registers; see [`crate::vectors`].
    pub vectors: u8,
    /// The last instruction's handler may set RIP.
    pub flow: bool,
    pub exits: Vec<Exit>,
    /// Cells that refer to this block.
    pub incoming: Vec<u32>,
    /// Entries of the table of jumps that may go to this block.
    pub jumps: Vec<u32>,
    pub alive: bool,
    /// It cannot be run again.
    pub removed: bool,
}

#[derive(Debug, Default)]
pub struct Table {
    pub blocks: Vec<Translated>,
    /// The block of each cell, and the number of the exit in it.
    pub cells: Vec<(u32, u16)>,
}

/// Where a callout is.
#[derive(Debug)]
pub struct Site<'t> {
    /// Offset in its page of the block.
    pub start: u16,
    pub insn: &'t Insn,
    /// The instruction may set RIP.
    pub flow: bool,
    /// Number of the instruction, and how many the block has.
    pub index: u32,
    pub count: u32,
}

impl Table {
    pub fn site(&self, site: u32) -> Option<Site<'_>> {
        let block = self.blocks.get((site >> SITE_BITS) as usize)?;
        let index = site & ((1 << SITE_BITS) - 1);
        let insn = block.insns.get(index as usize)?;
        let count = block.insns.len() as u32;
        let flow = block.flow && index + 1 == count;
        Some(Site { start: block.start, insn, flow, index, count })
    }

    /// What the instruction of a callout is called.
    pub fn mnemonic(&self, site: u32) -> Mnemonic {
        let block = self.blocks.get((site >> SITE_BITS) as usize);
        let index = (site & ((1 << SITE_BITS) - 1)) as usize;
        block.and_then(|b| b.mnemonics.get(index).copied()).unwrap_or(Mnemonic::INVALID)
    }

    pub fn exit(&self, cell: u32) -> Option<(u32, &Exit)> {
        let (block, exit) = *self.cells.get(cell as usize)?;
        Some((block, self.blocks.get(block as usize)?.exits.get(usize::from(exit))?))
    }
}
