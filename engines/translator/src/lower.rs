//! One block: its instructions, its exits, and what lies out of line.

mod access;
mod bits;
mod check;
mod copy;
mod count;
mod divide;
mod flags;
mod flow;
mod liveness;
mod narrow;
mod operand;
mod returns;
mod reuse;
mod scratch;
mod segments;
mod short;
mod short_stack;
mod short_string;
mod spare;
mod stack;
mod string;
mod syscall;
mod system;
mod time;
mod turns;
mod vector;
mod window;
mod x87;

use crate::{
    asm::{Asm, Buffer, Mem, Patch},
    forms::Forms,
    probe::Place,
    regs::{SA, SB, SC},
    state::{field, gpr, slot},
    thunks::{EXIT_BUDGET, EXIT_POLL, READ, RETRY, Thunks, WRITE},
    vectors,
    windows::Expectation,
};
pub use check::{Check, immediate};
pub use copy::writes;
use flags::{Flags, Tracker};
pub use flow::{is_flow, reach};
use iced_x86::{Instruction, Mnemonic};
pub use narrow::decode as decode_narrow;
use reuse::Reuse;
use scratch::Scratch;
use semantics::Insn;
pub use short::{Short, decode as decode_short};
use spare::Spare;
pub use spare::Tools;
pub use system::ends;
pub use turns::turns;

/// The instruction has no translation: its handler executes it.
#[derive(Clone, Copy, Debug)]
pub struct Untranslated;

type Done = Result<(), Untranslated>;

/// Instructions are decoded as if their page began here: what they say relative to RIP becomes
/// relative to the page.
pub const BASE: u64 = 1 << 40;

/// An exit to an address relative to the page.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    pub cell: u32,
    pub offset: i64,
    /// It is what a call returns to.
    pub returned: bool,
    /// The TLB's plane of what is there.
    pub plane: usize,
    /// The jump that is linked, and the offset in the code memory of where it goes until then.
    pub jump: Patch,
    pub stub: usize,
}

/// What block is made of.
#[derive(Debug)]
pub struct Lowered {
    /// What mostly runs.
    pub hot: Buffer,
    /// What seldom does: misses, plain parts, exits that are not linked.
    pub cold: Buffer,
    pub exits: Vec<Exit>,
    /// Where it may fault: from, to, and where it goes on then.
    pub recover: Vec<[usize; 3]>,
    /// The number of the next branch to another page.
    pub fars: u32,
    /// Where forward jumps enter: behind the poll.
    pub unpolled: usize,
    /// What it uses of the vector registers; see [`crate::vectors`].
    pub vectors: u8,
    /// Where it is entered from elsewhere: there it looks after the vector registers.
    pub entry: usize,
    pub callouts: usize,
}

/// A jump to what lies out of line.
#[derive(Debug)]
struct Miss {
    index: usize,
    patch: Patch,
    why: Why,
    again: Again,
    /// How the guest's flags are had there.
    flags: Flags,
}

/// Where the instruction under way begins, and what scratch registers hold there.
#[derive(Clone, Copy, Debug, Default)]
struct Again {
    at: usize,
    scratch: Scratch,
    /// The slot of a distance in [`SB`].
    slot: Option<usize>,
    flags: Flags,
}

#[derive(Clone, Copy, Debug)]
enum Why {
    /// The handler has to execute the instruction.
    Handler,
    /// The TLB does not know the page, for reading or for writing.
    Tlb(Place, bool),
    /// The range of several accesses is not known: the plain part is made for this.
    Plain,
}

pub struct Lowerer<'t> {
    asm: Asm,
    thunks: &'t Thunks,
    forms: &'t mut Forms,
    spare: &'t mut Spare,
    plane: usize,
    /// The same of what follows the block.
    exit_plane: usize,
    /// It runs at level 0.
    supervisor: bool,
    /// The instruction under way is the last one.
    last: bool,
    /// Not 64-bit code.
    narrow: bool,
    /// 16-bit code.
    short: Option<Short>,
    /// Retired instructions are counted.
    counted: bool,
    /// Instructions of the block.
    length: usize,
    /// Where it begins, in its page and in the code memory.
    start: i64,
    origin: usize,
    /// Instructions of each turn, if it is a loop of which several are made.
    turn: Option<usize>,
    /// A call at the end will return.
    returns: bool,
    /// Number of the block.
    id: u32,
    /// Instruction under way.
    index: usize,
    first_cell: u32,
    exits: Vec<Exit>,
    /// Branches to other pages: the number of the next, the end of these, and what each does
    /// elsewhere.
    next_far: u32,
    end_far: u32,
    fars: Vec<flow::FarMiss>,
    misses: Vec<Miss>,
    recoveries: Vec<window::Recovery>,
    recover: Vec<[usize; 3]>,
    /// Where each instruction's successor begins.
    ends: Vec<usize>,
    /// What the instructions use of the vector registers.
    vectors: u8,
    /// What the interpreter knows of the instructions.
    known: &'t [Insn],
    /// Where handlers are called in the line.
    calls: Vec<Patch>,
    /// Where the time-stamp counter is asked for.
    light_calls: Vec<(Patch, [usize; 3])>,
    /// Where instructions begin in the plain part, by number.
    plain: Vec<usize>,
    reuse: Reuse,
    /// Which instructions [`stack::moves_only`] says.
    runs: Vec<bool>,
    /// How far the guest's RSP is from its host register, between two of them.
    moved: i32,
    scratch: Scratch,
    /// What they hold after each instruction.
    scratches: Vec<Scratch>,
    again: Again,
    flags: Tracker,
    /// No check may use the guest's flags.
    steady: bool,
    /// Windows are used.
    expected: Option<Expectation>,
    /// The window in which each instruction's access is expected.
    expected_windows: Vec<Option<u8>>,
    /// The instruction under way uses one.
    used_window: bool,
}

/// Instructions in a block at most, and how a site is made of block and instruction.
pub const SITE_BITS: u32 = 8;

impl<'t> Lowerer<'t> {
    /// Made at these two offsets of the code memory; see [`Lowered`].
    pub fn new(
        at: [usize; 2],
        thunks: &'t Thunks,
        tools: &'t mut Tools,
        plane: usize,
        id: u32,
        first_cell: u32,
    ) -> Self {
        let [hot, cold] = at;
        let Tools { forms, spare, .. } = tools;
        let room = std::mem::take(spare);
        Self {
            asm: Asm::with_room(hot, cold, room.code),
            thunks,
            forms,
            spare,
            plane,
            exit_plane: plane,
            supervisor: false,
            last: false,
            narrow: false,
            short: None,
            counted: false,
            length: 0,
            start: 0,
            origin: 0,
            turn: None,
            returns: true,
            id,
            index: 0,
            first_cell,
            exits: Vec::new(),
            next_far: 0,
            end_far: 0,
            fars: room.fars,
            misses: room.misses,
            recoveries: Vec::new(),
            recover: Vec::new(),
            ends: room.ends,
            vectors: 0,
            known: &[],
            calls: room.calls,
            light_calls: room.light_calls,
            plain: room.plain,
            reuse: room.reuse,
            runs: room.runs,
            moved: 0,
            scratch: Scratch::default(),
            scratches: room.scratches,
            again: Again::default(),
            flags: room.flags,
            steady: false,
            expected: None,
            expected_windows: Vec::new(),
            used_window: false,
        }
    }

    /// Privileged instructions are none that fault.
    pub fn supervisor(self, supervisor: bool) -> Self {
        Self { supervisor, ..self }
    }

    /// Translates; `start` is the block's offset in its page. `allowed` says whether the
    /// guest has the instruction. `None` if it cannot be made.
    pub fn run(
        mut self,
        start: i64,
        insns: &[Instruction],
        check: Option<&Check<'_>>,
        allowed: impl Fn(&Instruction) -> bool,
    ) -> Option<Lowered> {
        let origin = self.asm.here();
        (self.start, self.origin) = (start, origin);
        self.asm.load(SC, field!(poll));
        self.asm.load32(SC, Mem::at(SC, 0));
        let mut poll = None;
        self.asm.unless_rcx_zero(|asm| poll = Some(asm.jmp_forward()));
        let unpolled = self.asm.here();
        let changed = check.map(|check| self.compare(check, insns)).unwrap_or_default();
        self.length = insns.len();
        let short = self.want_budget();
        // What is loaded from the code exists once.
        let plain = check.is_some() || self.narrow;
        if !plain {
            access::accesses(insns, self.forms, &mut self.reuse.accesses, &mut self.flags.written);
            if let Some(expectation) = &self.expected {
                self.expected_windows = self.reuse.windows(expectation);
            }
            if !self.steady {
                liveness::note(insns, &allowed, &mut self.flags.notes);
            }
        }
        self.runs.extend(insns.iter().map(stack::moves_only));
        let (mut callouts, mut open) = (0, true);
        for (index, insn) in insns.iter().enumerate() {
            self.last = index + 1 == insns.len();
            if let Some(check) = check
                && check.soft.checked_shr(index as u32).unwrap_or(0) & 1 != 0
            {
                // Its handler knows one operand only.
                self.scratch.begin(false);
                self.soft(check, index, insn).ok()?;
                self.ends.push(self.asm.here());
                self.scratches.push(self.scratch);
                continue;
            }
            let translated = self.one(index, insn, allowed(insn));
            callouts += usize::from(!translated);
            open = !translated || !(flow::is_flow(insn) || ends(insn, self.plane));
            self.ends.push(self.asm.here());
            self.scratches.push(self.scratch);
        }
        self.scratch.clear();
        self.flags_here();
        if open {
            // After a callout that changes RIP this is not reached.
            let end = insns.last().map_or(start, |i| i.next_ip().wrapping_sub(BASE) as i64);
            self.exit(end);
        }
        self.asm.change_part();
        let stop = self.asm.here();
        if let Some(poll) = poll {
            self.asm.patch(poll);
            self.leave_at(start, EXIT_POLL);
        }
        if !changed.is_empty() {
            changed.into_iter().for_each(|patch| self.asm.patch(patch));
            self.leave_at(start, EXIT_POLL);
        }
        if let Some(short) = short {
            self.asm.patch(short);
            self.leave_at(start, EXIT_BUDGET);
        }
        self.recoverable();
        self.doubled(insns, allowed);
        self.out_of_line();
        self.asm.change_part();
        let entry = self.vector_entry(origin, stop);
        let failed = self.flags.failed;
        self.give_back();
        if failed {
            return None;
        }
        let Self { vectors, exits, asm, next_far: fars, recover, .. } = self;
        let [hot, cold] = asm.finish();
        Some(Lowered { hot, cold, exits, recover, fars, unpolled, vectors, entry, callouts })
    }

    /// Where the block, which begins at `origin`, is entered from anywhere; at `stop` it is
    /// left before its first instruction.
    fn vector_entry(&mut self, origin: usize, stop: usize) -> usize {
        if self.vectors == 0 {
            return origin;
        }
        let (_, callout) = self.outside();
        for call in self.calls.drain(..) {
            self.asm.patch_to(call, callout);
        }
        let x87 = self.vectors & vectors::X87 != 0;
        for (call, [_, live, live_x87]) in self.light_calls.drain(..) {
            self.asm.patch_to(call, if x87 { live_x87 } else { live });
        }
        let entry = self.asm.here();
        let wanted = vectors::wanted(self.vectors);
        self.asm.load(SC, wanted);
        let mut dead = None;
        self.asm.unless_rcx_zero(|asm| dead = Some(asm.jmp_forward()));
        self.asm.jmp(origin);
        self.asm.change_part();
        dead.into_iter().for_each(|dead| self.asm.patch(dead));
        let back = self.asm.lea_forward(SA);
        let x87 = self.vectors & vectors::X87 != 0;
        self.asm.jmp(if x87 { self.thunks.revive_x87 } else { self.thunks.revive });
        self.asm.patch(back);
        self.asm.load(SC, wanted);
        // Such a block is not entered while they may not be used at all.
        self.asm.unless_rcx_zero(|asm| asm.jmp(stop));
        self.asm.jmp(origin);
        self.asm.change_part();
        entry
    }

    /// The thunks that execute an instruction outside, after a miss and otherwise, for a block
    /// that uses such registers.
    fn outside(&self) -> (usize, usize) {
        let thunks = self.thunks;
        match self.vectors {
            0 => (thunks.miss, thunks.callout),
            used if used & vectors::X87 != 0 => (thunks.miss_x87, thunks.callout_x87),
            _ => (thunks.miss_live, thunks.callout_live),
        }
    }

    /// One instruction; false if it is left to its handler.
    fn one(&mut self, index: usize, insn: &Instruction, allowed: bool) -> bool {
        self.index = index;
        self.reuse.begin();
        self.scratch.begin(copy::keeps_account(insn, self.narrow) && !self.reuse.plain);
        self.flags_begin(index);
        let flags = self.flags.known;
        let (scratch, slot) = (self.scratch, self.reuse.held);
        self.again = Again { at: self.asm.here(), scratch, slot, flags: flags.now };
        let (code, exits, misses) = (self.asm.code.len(), self.exits.len(), self.misses.len());
        let fars = self.fars.len();
        let moved = self.moved;
        self.used_window = false;
        let result = if allowed { self.instruction(insn) } else { Err(Untranslated) };
        let result = result.and_then(|()| self.flags_seen(index));
        let (before, used) = (self.flags.known.now, self.used_window);
        if result.is_err() {
            self.asm.code.truncate(code);
            self.exits.truncate(exits);
            self.misses.truncate(misses);
            self.fars.truncate(fars);
            self.scratch.clear();
            self.flags.known = flags;
            self.flags_here();
            self.callout();
        }
        if used && result.is_ok() {
            let (again, end) = (self.again, self.asm.here());
            self.recoveries.push(window::Recovery { index, again, end, flags: before, moved });
        }
        self.flags_end(index, insn, result.is_err());
        // With another base, or other rights, the same addresses are elsewhere.
        use Mnemonic::{Clac, Stac, Swapgs, Wrfsbase, Wrgsbase};
        let elsewhere = matches!(insn.mnemonic(), Swapgs | Stac | Clac | Wrfsbase | Wrgsbase);
        self.reuse.end(index, elsewhere || result.is_err());
        result.is_ok()
    }

    /// The plain version of what was made with the reuse of checks.
    fn doubled(&mut self, insns: &[Instruction], allowed: impl Fn(&Instruction) -> bool) {
        self.reuse.plain = true;
        self.flags.known.now = Flags::Here;
        self.plain.resize(insns.len(), self.thunks.leave);
        for n in 0..self.reuse.doubled.len() {
            let (first, last) = self.reuse.doubled[n];
            for (index, insn) in insns.iter().enumerate().take(last + 1).skip(first) {
                self.plain[index] = self.asm.here();
                self.last = index + 1 == insns.len();
                self.one(index, insn, allowed(insn));
            }
            self.load_again(last);
            self.flags_again(last);
            self.asm.jmp(self.ends.get(last).copied().unwrap_or(self.thunks.leave));
        }
    }

    /// Whether what follows the block looks like a place to return to.
    pub fn returning(mut self, returns: bool) -> Self {
        self.returns = returns;
        self
    }

    /// What the interpreter has of these instructions.
    pub fn knowing(mut self, insns: &'t [Insn]) -> Self {
        self.known = insns;
        self
    }

    /// 32-bit or 16-bit code, or not.
    pub fn narrow(mut self, narrow: bool) -> Self {
        self.narrow = narrow;
        self
    }

    /// Uses windows, by what registers have now, and where the page is.
    pub fn windows(mut self, expected: Option<Expectation>) -> Self {
        self.expected = expected;
        self
    }

    /// The guest's flags stay in the host's register all the time, as they must if a first try
    /// to do otherwise was not made.
    pub fn steady(mut self, steady: bool) -> Self {
        self.steady = steady;
        self
    }

    fn site(&mut self, index: usize) {
        let site = self.id << SITE_BITS | index as u32;
        self.asm.store_imm(field!(site), site as i32, false);
    }

    /// The instruction's handler executes it.
    fn callout(&mut self) {
        self.site(self.index);
        let call = self.asm.call(self.thunks.callout);
        self.calls.push(call);
    }

    fn out_of_line(&mut self) {
        let mut misses = std::mem::take(&mut self.misses);
        for Miss { index, patch, why, again, flags } in misses.drain(..) {
            if let Why::Plain = why {
                let to = self.plain.get(index).copied().unwrap_or(self.thunks.leave);
                if flags == Flags::Here {
                    self.asm.patch_to(patch, to);
                    continue;
                }
                self.asm.patch(patch);
                self.flags_from(flags);
                self.asm.jmp(to);
                continue;
            }
            self.asm.patch(patch);
            self.flags_from(flags);
            self.site(index);
            let (miss, callout) = self.outside();
            let _ = match why {
                Why::Handler => self.asm.call(callout),
                Why::Tlb(place, write) => {
                    if place.base != SA || place.disp != 0 {
                        self.asm.lea(SA, place.linear(), true);
                    }
                    self.asm.store_imm(
                        field!(miss),
                        if write { WRITE } else { READ } as i32,
                        false,
                    );
                    let call = self.asm.call(miss);
                    self.retry(again);
                    call
                }
                Why::Plain => continue,
            };
            let next = if self.reuse.inside(index) {
                self.plain.get(index + 1)
            } else {
                self.load_again(index);
                self.flags_again(index);
                self.ends.get(index)
            };
            let back = next.copied().unwrap_or(self.thunks.leave);
            self.asm.jmp(back);
        }
        self.misses = misses;
        self.recoveries();
        self.far_misses();
        for n in 0..self.exits.len() {
            self.exits[n].stub = self.asm.here();
            let Exit { cell, offset, jump, .. } = self.exits[n];
            self.asm.patch(jump);
            self.leave_at(offset, cell);
        }
    }

    /// Behind the call of a miss: it returns to a jump over this if the handler has run, and
    /// behind that jump if only the TLB has changed. Then the instruction, which has had no
    /// effect yet, is begun again.
    fn retry(&mut self, again: Again) {
        let start = self.asm.here();
        let over = self.asm.jmp_forward();
        debug_assert_eq!((self.asm.here() - start) as u64, RETRY);
        for (host, guest) in again.scratch.held() {
            self.asm.load(host, gpr(guest));
        }
        if let Some(number) = again.slot {
            self.asm.load(SB, slot(number));
        }
        self.flags_to(again.flags);
        self.asm.jmp(again.at);
        self.asm.patch(over);
    }

    /// Leaves translated code with RIP at an offset from the page.
    fn leave_at(&mut self, offset: i64, exit: u32) {
        self.page_relative(SC, offset);
        self.asm.store(field!(rip), SC);
        self.asm.store_imm(field!(exit), exit as i32, false);
        self.asm.jmp(self.thunks.leave);
    }

    /// A linear address relative to the page; offsets of branches fit, others are checked.
    fn page_relative(&mut self, to: u8, offset: i64) {
        self.asm.load(to, field!(page));
        self.asm.lea(to, Mem::at(to, offset as i32), !self.narrow);
    }

    /// The handler executes the instruction if control gets to `patch`.
    fn handler_from(&mut self, patch: Option<Patch>) {
        self.miss(patch, Why::Handler);
    }

    /// Encodes an instruction whose operands are the host's.
    fn encode(&mut self, insn: &Instruction) -> Done {
        let bytes = self.forms.encode(insn, BASE).ok_or(Untranslated)?;
        let (bytes, len) = bytes.all();
        self.asm.code.put(bytes, len);
        Ok(())
    }
}
