//! The translated blocks, and the links between them, in segments.
//!
//! Code memory and what is kept of each block are divided into a few segments, which are filled
//! one after the other. When all are full, the oldest one is emptied. So what has to go is found
//! without a search, code memory has no holes, and to make room never takes long.

use x86_defs::is_canonical_48;

use crate::{
    far::{FARS, Far},
    lower::{Exit, SITE_BITS, reach},
    width::Width,
};

const PAGE: u64 = 4096;
/// Segments at most.
const SEGMENTS: usize = 8;
/// Bytes of code memory in each, at least, so that any block fits.
const SEGMENT: usize = 128 << 10;
/// A block's number is that of its segment, and these bits. A site has it in 31 bits.
const BLOCK_BITS: u32 = 31 - SITE_BITS - SEGMENTS.ilog2();
/// Exits of all blocks together.
const CELLS: usize = 1 << 18;
/// Exits of the blocks in a segment.
const SEGMENT_CELLS: usize = CELLS / SEGMENTS;
/// Branches to other pages of the blocks in a segment.
const SEGMENT_FARS: u32 = (FARS / SEGMENTS) as u32;
/// The number of no block and no cell.
const NONE: u32 = u32::MAX;
/// What an allocation takes beside its bytes, on average.
const ALLOCATION: usize = 24;

/// A translated block. Stale ones are recognised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Code {
    epoch: u32,
    pub(crate) number: u32,
}

/// An exit that can be linked to the block that follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    epoch: u32,
    pub(crate) cell: u32,
}

#[derive(Debug)]
pub struct Translated {
    pub text: Text,
    /// Offset in its page.
    pub start: u16,
    /// See [`crate::spaces::version`].
    pub version: usize,
    pub width: Width,
    /// Of 16-bit code, the offset in its segment of the page's beginning.
    pub page: u64,
    /// Offsets in the code memory: where it is entered; the same for jumps from blocks in which
    /// the vector registers are live that it uses; and where such jumps that go forward enter.
    pub entry: usize,
    pub polled: usize,
    pub unpolled: usize,
    /// What it uses of the vector registers; see [`crate::vectors`].
    pub vectors: u8,
    /// The last instruction's handler may set RIP.
    pub flow: bool,
    /// Number of its first cell, and how many it has.
    pub cells: (u32, u32),
    /// How many branches to other pages it has.
    pub fars: u32,
    /// The first of the cells that refer to this block.
    pub incoming: u32,
    /// Entries of the table of jumps that may go to this block.
    pub jumps: Vec<u32>,
    pub alive: bool,
    /// It cannot be run again.
    pub removed: bool,
}

/// The instructions of a block.
#[derive(Clone, Copy, Debug, Default)]
pub struct Text {
    /// Where their bytes begin that are kept, with the length of each behind them.
    pub at: u32,
    /// How many bytes that is, and how many instructions: of one turn, if several were made.
    pub bytes: u16,
    pub turn: u16,
    /// How many instructions the block has.
    pub count: u16,
}

impl Translated {
    /// Of [`Self::incoming`]: none.
    pub const UNLINKED: u32 = NONE;

    /// What is kept of it, in bytes.
    fn bytes(&self) -> usize {
        let cell = size_of::<Cell>();
        size_of::<Self>()
            + usize::from(self.text.bytes)
            + usize::from(self.text.turn)
            + self.cells.1 as usize * cell
            + self.fars as usize * (size_of::<Far>() + ALLOCATION)
            + ALLOCATION
    }
}

/// An exit, and where it goes.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    pub block: u32,
    /// Offset in the code memory of the jump's displacement.
    pub jump: u32,
    /// See [`Exit`].
    pub stub: u32,
    pub offset: u16,
    pub plane: u8,
    pub returned: bool,
    /// The block that it is linked to, and its neighbours in the list of those that are.
    to: u32,
    next: u32,
    before: u32,
}

#[derive(Debug, Default)]
struct Segment {
    /// How often it was emptied.
    epoch: u32,
    blocks: Vec<Translated>,
    cells: Vec<Cell>,
    /// Of each block, its bytes and the lengths of its instructions.
    text: Vec<u8>,
    /// How many branches to other pages it has.
    fars: u32,
    /// Of the hot and the cold parts: the beginning in code memory, where the next one goes, the
    /// end.
    first: [usize; 2],
    next: [usize; 2],
    end: [usize; 2],
    /// What is kept of its blocks, in bytes.
    kept: usize,
}

/// Where the next block goes.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Offsets in the code memory.
    pub at: [usize; 2],
    pub number: u32,
    pub first_cell: u32,
    /// The number of its first branch to another page, and the end of those.
    pub fars: (u32, u32),
}

#[derive(Debug)]
pub struct Table {
    segments: Vec<Segment>,
    /// The one that is being filled.
    now: usize,
    /// What may be kept of the blocks of a segment, in bytes.
    most: usize,
}

/// Where a callout is.
#[derive(Debug)]
pub struct Site<'t> {
    /// Offset in its page of the block.
    pub start: u16,
    pub width: Width,
    /// The instruction.
    pub bytes: &'t [u8],
    /// Offset of the next one from the beginning of the block.
    pub end: u16,
    /// The instruction may set RIP.
    pub flow: bool,
    /// Number of the instruction, and how many the block has.
    pub index: u32,
    pub count: u32,
}

impl Site<'_> {
    /// Of the instruction, in a page at this address.
    pub fn address(&self, page: u64) -> u64 {
        let start = page.wrapping_add(self.start.into());
        start.wrapping_add(self.end.into()).wrapping_sub(self.bytes.len() as u64)
    }
}

impl Translated {
    /// The block may be at this RIP: so far from the ends of the canonical ranges that no direct
    /// jump leaves them without a check; or, in 32-bit code, in a page that has one after it.
    pub fn fits(&self, rip: u64) -> bool {
        let page = rip.wrapping_sub(self.start.into());
        match self.width {
            Width::Real | Width::Short => page == self.page && rip < 1 << 16,
            Width::Narrow => page % PAGE == 0 && rip < (1 << 32) - PAGE,
            Width::Wide => {
                let reach = reach(crate::spaces::plane(self.version)) + 2 * PAGE;
                let (low, high) = (rip.wrapping_sub(reach), rip.wrapping_add(reach));
                page % PAGE == 0 && [rip, low, high].into_iter().all(is_canonical_48)
            }
        }
    }
}

impl Table {
    /// Of code memory between these offsets, for hot and for cold parts; in which `most` bytes
    /// may be kept of all blocks.
    pub fn new(hot: [usize; 2], cold: [usize; 2], most: usize) -> Self {
        let len = (hot[1] - hot[0]) + (cold[1] - cold[0]);
        let count = (len / SEGMENT).clamp(2, SEGMENTS);
        let part = |[start, end]: [usize; 2], n: usize| {
            if n == count { end } else { start + ((end - start) / count * n).next_multiple_of(64) }
        };
        let segment = |n: usize| {
            let first = [part(hot, n), part(cold, n)];
            let end = [part(hot, n + 1), part(cold, n + 1)];
            Segment { first, next: first, end, ..Segment::default() }
        };
        let segments = (0..count).map(segment).collect();
        Self { segments, now: 0, most: most / count }
    }

    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Bytes of code memory in use.
    pub fn used(&self) -> usize {
        let used = |s: &Segment| s.next.iter().zip(s.first).map(|(n, f)| n - f).sum::<usize>();
        self.segments.iter().map(used).sum()
    }

    /// Bytes of memory that blocks take beside their code.
    pub fn kept(&self) -> usize {
        self.segments.iter().map(|s| s.kept).sum()
    }

    /// Blocks that may be run.
    pub fn alive(&self) -> usize {
        self.segments.iter().flat_map(|s| &s.blocks).filter(|b| b.alive).count()
    }

    pub fn place(&self) -> Place {
        let segment = self.now as u32;
        let Some(s) = self.segments.get(self.now) else {
            return Place { at: [0; 2], number: 0, first_cell: 0, fars: (0, 0) };
        };
        Place {
            at: s.next,
            number: segment << BLOCK_BITS | s.blocks.len() as u32,
            first_cell: segment * SEGMENT_CELLS as u32 + s.cells.len() as u32,
            fars: (segment * SEGMENT_FARS + s.fars, (segment + 1) * SEGMENT_FARS),
        }
    }

    /// There is room at [`Self::place`] for a block with code of these lengths. `None`: there is
    /// not, and the segment is empty.
    pub fn fits(&self, block: &Translated, parts: [usize; 2]) -> Option<bool> {
        let s = self.segments.get(self.now)?;
        let code = (0..2).all(|n| s.next[n] + parts[n] <= s.end[n]);
        let cells = s.cells.len() + block.cells.1 as usize <= SEGMENT_CELLS;
        let number = s.blocks.len() < 1 << BLOCK_BITS;
        let fits = code && cells && number && s.kept + block.bytes() <= self.most;
        (fits || !s.blocks.is_empty()).then_some(fits)
    }

    /// Puts a block at [`Self::place`], with its bytes and the lengths of its instructions.
    pub fn add(
        &mut self,
        mut block: Translated,
        exits: &[Exit],
        parts: [usize; 2],
        (bytes, lengths): (&[u8], impl Iterator<Item = u8>),
    ) -> Option<Code> {
        let Place { number, .. } = self.place();
        let s = self.segments.get_mut(self.now)?;
        block.text.at = s.text.len() as u32;
        s.text.extend(bytes.iter().take(block.text.bytes.into()));
        s.text.extend(lengths.take(block.text.turn.into()));
        s.next = [(s.next[0] + parts[0]).next_multiple_of(16), s.next[1] + parts[1]];
        s.next[0] = s.next[0].min(s.end[0]);
        s.kept += block.bytes();
        s.fars += block.fars;
        s.cells.extend(exits.iter().map(|exit| Cell {
            block: number,
            jump: exit.jump.offset() as u32,
            stub: exit.stub as u32,
            offset: exit.offset as u16,
            plane: exit.plane as u8,
            returned: exit.returned,
            to: NONE,
            next: NONE,
            before: NONE,
        }));
        s.blocks.push(block);
        Some(Code { epoch: s.epoch, number })
    }

    /// Something more is kept of the block.
    pub fn grow(&mut self, number: u32, bytes: usize) {
        if let Some(segment) = self.segments.get_mut((number >> BLOCK_BITS) as usize) {
            segment.kept += bytes;
        }
    }

    /// The oldest segment is filled next: it is to be emptied.
    pub fn advance(&mut self) -> usize {
        self.now = (self.now + 1) % self.segments.len();
        self.now
    }

    /// Where a segment's hot parts are in code memory.
    pub fn hot(&self, segment: usize) -> std::ops::Range<usize> {
        self.segments.get(segment).map_or(0..0, |s| s.first[0]..s.end[0])
    }

    /// Numbers of a segment's blocks.
    pub fn blocks_of(&self, segment: usize) -> std::ops::Range<u32> {
        let first = (segment as u32) << BLOCK_BITS;
        first..first + self.segments.get(segment).map_or(0, |s| s.blocks.len()) as u32
    }

    /// The segment's blocks are no more; nothing may refer to them.
    pub fn empty(&mut self, segment: usize) -> Vec<Translated> {
        let first = (segment * SEGMENT_CELLS) as u32;
        let count = self.segments.get(segment).map_or(0, |s| s.cells.len()) as u32;
        for cell in first..first + count {
            self.detach(cell);
        }
        self.segments.get_mut(segment).map(Segment::empty).unwrap_or_default()
    }

    /// All blocks are no more.
    pub fn clear(&mut self) -> Vec<Translated> {
        self.now = 0;
        self.segments.iter_mut().flat_map(Segment::empty).collect()
    }

    pub fn block(&self, number: u32) -> Option<&Translated> {
        let segment = self.segments.get((number >> BLOCK_BITS) as usize)?;
        segment.blocks.get((number & ((1 << BLOCK_BITS) - 1)) as usize)
    }

    fn block_mut(&mut self, number: u32) -> Option<&mut Translated> {
        let segment = self.segments.get_mut((number >> BLOCK_BITS) as usize)?;
        segment.blocks.get_mut((number & ((1 << BLOCK_BITS) - 1)) as usize)
    }

    fn is_current(&self, code: Code) -> bool {
        let segment = self.segments.get((code.number >> BLOCK_BITS) as usize);
        segment.is_some_and(|s| s.epoch == code.epoch)
    }

    /// The block, if it was not evicted.
    pub fn get(&self, code: Code) -> Option<&Translated> {
        self.block(code.number).filter(|_| self.is_current(code))
    }

    pub fn get_mut(&mut self, code: Code) -> Option<&mut Translated> {
        if self.is_current(code) { self.block_mut(code.number) } else { None }
    }

    pub fn cell(&self, number: u32) -> Option<&Cell> {
        let number = number as usize;
        self.segments.get(number / SEGMENT_CELLS)?.cells.get(number % SEGMENT_CELLS)
    }

    fn cell_mut(&mut self, number: u32) -> Option<&mut Cell> {
        let number = number as usize;
        self.segments.get_mut(number / SEGMENT_CELLS)?.cells.get_mut(number % SEGMENT_CELLS)
    }

    /// By which an exit is known for as long as it exists.
    pub fn link(&self, cell: u32) -> Link {
        let epoch = self.segments.get(cell as usize / SEGMENT_CELLS).map_or(0, |s| s.epoch);
        Link { epoch, cell }
    }

    /// The exit, if it was not evicted.
    pub fn linked(&self, link: Link) -> Option<&Cell> {
        self.cell(link.cell).filter(|_| self.link(link.cell) == link)
    }

    /// The cell refers to this block from now on.
    pub fn attach(&mut self, cell: u32, block: u32) {
        self.detach(cell);
        let Some(to) = self.block_mut(block) else { return };
        let next = std::mem::replace(&mut to.incoming, cell);
        if let Some(cell) = self.cell_mut(cell) {
            (cell.to, cell.next) = (block, next);
        }
        if let Some(next) = self.cell_mut(next) {
            next.before = cell;
        }
    }

    fn detach(&mut self, number: u32) {
        let Some(cell) = self.cell_mut(number) else { return };
        let Cell { to, next, before, .. } = *cell;
        (cell.to, cell.next, cell.before) = (NONE, NONE, NONE);
        if to == NONE {
            return;
        }
        if let Some(next) = self.cell_mut(next) {
            next.before = before;
        }
        match self.cell_mut(before) {
            Some(before) => before.next = next,
            None => {
                if let Some(block) = self.block_mut(to) {
                    block.incoming = next;
                }
            }
        }
    }

    /// One of the cells that refer to the block, which does so no more.
    pub fn take_incoming(&mut self, block: u32) -> Option<u32> {
        let cell = self.block(block)?.incoming;
        if cell == NONE {
            return None;
        }
        self.detach(cell);
        Some(cell)
    }

    /// What the block was made of, if it was not evicted.
    pub fn text(&self, code: Code) -> Option<&[u8]> {
        let Text { at, bytes, .. } = self.get(code)?.text;
        let segment = self.segments.get((code.number >> BLOCK_BITS) as usize)?;
        segment.text.get(at as usize..)?.get(..bytes.into())
    }

    pub fn site(&self, site: u32) -> Option<Site<'_>> {
        let number = site >> SITE_BITS;
        let (block, index) = (self.block(number)?, site & ((1 << SITE_BITS) - 1));
        let Text { at, bytes, turn, count } = block.text;
        let text = self.segments.get((number >> BLOCK_BITS) as usize)?.text.get(at as usize..)?;
        let (bytes, lengths) = text.split_at_checked(bytes.into())?;
        let nth = (index as usize).checked_rem(turn.into())?;
        let (before, len) = (lengths.get(..nth)?, *lengths.get(nth)?);
        let from: usize = before.iter().copied().map(usize::from).sum();
        let to = from + usize::from(len);
        let flow = block.flow && index + 1 == u32::from(count);
        Some(Site {
            start: block.start,
            width: block.width,
            bytes: bytes.get(from..to)?,
            end: to as u16,
            flow,
            index,
            count: count.into(),
        })
    }
}

impl Segment {
    fn empty(&mut self) -> Vec<Translated> {
        self.epoch = self.epoch.wrapping_add(1);
        self.next = self.first;
        (self.kept, self.fars) = (0, 0);
        self.cells.clear();
        self.text.clear();
        std::mem::take(&mut self.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::asm::Asm;
    use std::collections::HashMap;

    fn block(place: Place, exits: u32) -> Translated {
        Translated {
            text: Text { at: 0, bytes: 3, turn: 2, count: 6 },
            start: 0,
            version: 0,
            width: Width::Wide,
            page: 0,
            entry: place.at[0],
            polled: place.at[0],
            unpolled: place.at[0],
            vectors: 0,
            flow: false,
            cells: (place.first_cell, exits),
            fars: 1,
            incoming: Translated::UNLINKED,
            jumps: Vec::new(),
            alive: true,
            removed: false,
        }
    }

    fn exit(cell: u32) -> Exit {
        let jump = Asm::new(0, 64).jmp_forward();
        Exit { cell, offset: 0, returned: false, plane: 0, jump, stub: 0 }
    }

    /// Adds a block; the segment that was emptied for it.
    fn add(table: &mut Table, parts: [usize; 2]) -> (Code, Option<usize>) {
        let mut emptied = None;
        loop {
            let place = table.place();
            let block = block(place, 2);
            if table.fits(&block, parts).unwrap() {
                let exits = [0, 1].map(|n| exit(place.first_cell + n));
                let far = place.fars.0 + 1;
                assert!(far <= place.fars.1 && place.fars.1 as usize <= FARS);
                let text = (&[7, 8, 9, 10][..], [2, 1, 1].into_iter());
                return (table.add(block, &exits, parts, text).unwrap(), emptied);
            }
            let segment = table.advance();
            emptied = Some(segment);
            for number in table.blocks_of(segment) {
                while table.take_incoming(number).is_some() {}
            }
            table.empty(segment);
        }
    }

    /// The links are those that a map has, after each of many random changes.
    #[test]
    fn links_go_with_either_end() {
        let (hot, cold) = ([64, 400 << 10], [400 << 10, 1 << 20]);
        let mut table = Table::new(hot, cold, 1 << 20);
        assert_eq!(table.segments(), 7);
        let mut seed = 7_u32;
        let mut random = move |below: usize| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as usize % below
        };
        let mut codes = Vec::<Code>::new();
        let mut links = HashMap::<u32, u32>::new();
        let segment = |block: u32| (block >> BLOCK_BITS) as usize;
        let mut evictions = 0;
        for _ in 0..20_000 {
            let (code, emptied) = add(&mut table, [200 + random(2000), 300 + random(4000)]);
            if let Some(emptied) = emptied {
                evictions += 1;
                let gone = codes.extract_if(.., |c| segment(c.number) == emptied);
                assert!(gone.into_iter().all(|code| table.get(code).is_none()));
                links.retain(|cell, to| {
                    *cell as usize / SEGMENT_CELLS != emptied && segment(*to) != emptied
                });
            }
            codes.push(code);
            for _ in 0..3 {
                let (from, to) = (codes[random(codes.len())], codes[random(codes.len())]);
                let cell = table.get(from).unwrap().cells.0 + random(2) as u32;
                table.attach(cell, to.number);
                links.insert(cell, to.number);
            }
            let at = codes[random(codes.len())].number;
            let mut taken = Vec::new();
            if random(4) == 0 {
                taken.extend(std::iter::from_fn(|| table.take_incoming(at)));
                let mut known: Vec<u32> =
                    links.extract_if(|_, to| *to == at).map(|(cell, _)| cell).collect();
                known.sort_unstable();
                taken.sort_unstable();
                assert_eq!(taken, known);
            }
        }
        assert!(evictions > 100, "{evictions}");
        for (cell, to) in links {
            assert_eq!(table.cell(cell).unwrap().to, to);
        }
    }

    #[test]
    fn places_do_not_overlap_and_end_with_the_memory() {
        for len in [256 << 10, 384 << 10, 1 << 20, 48 << 20] {
            let (cold, first) = (len / 5 * 2, 4000_usize.next_multiple_of(64));
            let table = Table::new([first, cold], [cold, len], 1 << 20);
            for part in 0..2 {
                let (from, to) = ([first, cold][part], [cold, len][part]);
                let mut at = from;
                for segment in &table.segments {
                    assert_eq!(segment.first[part], at);
                    assert!(segment.end[part] > at + 16 * 1024);
                    at = segment.end[part];
                }
                assert_eq!(at, to);
            }
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut table = Table::new([0, 4 << 20], [4 << 20, 10 << 20], 64 << 10);
        for _ in 0..5000 {
            add(&mut table, [16, 16]);
            assert!(table.kept() <= 64 << 10);
        }
        let (first, _) = add(&mut table, [16, 16]);
        assert!(table.get(first).is_some());
        table.clear();
        assert!(table.get(first).is_none() && table.kept() == 0 && table.used() == 0);
    }

    #[test]
    fn a_site_has_the_bytes_of_its_instruction() {
        let mut table = Table::new([0, 4 << 20], [4 << 20, 10 << 20], 64 << 10);
        for _ in 0..3 {
            let (code, _) = add(&mut table, [16, 16]);
            for turn in 0..3 {
                let site = |nth: u32| {
                    let site = table.site(code.number << SITE_BITS | (2 * turn + nth)).unwrap();
                    (site.bytes, site.end, site.count)
                };
                assert_eq!(site(0), (&[7, 8][..], 2, 6));
                assert_eq!(site(1), (&[9][..], 3, 6));
            }
            assert!(table.site((code.number + 1) << SITE_BITS).is_none());
            assert_eq!(table.text(code), Some(&[7, 8, 9][..]));
        }
    }

    #[test]
    fn a_block_that_fits_nowhere_is_refused() {
        let table = Table::new([0, 128 << 10], [128 << 10, 256 << 10], 1 << 20);
        let block = block(table.place(), 2);
        assert_eq!(table.fits(&block, [64 << 10, 16]), Some(true));
        assert_eq!(table.fits(&block, [(64 << 10) + 1, 16]), None);
    }
}
