//! What translated code works on, reachable from one host register.

use crate::{
    asm::{Mem, RSP},
    far::{FARS, Far},
    jumps::{Jumps, TABLES},
    regs,
    vectors::KINDS,
    windows::{Slot, WINDOWS},
};
use std::mem::offset_of;

/// RSP points so far into [`State`]. With the state's alignment, RSP modulo 64 is 12: it serves
/// as the shift count of a page. What is used most lies within 128 bytes of it, where a
/// displacement takes one byte.
pub const BIAS: usize = 140;
/// Bytes below RSP that frames of signals leave alone (System V ABI for x86-64, 3.2.2).
const RED_ZONE: usize = 128;
/// Entries in each plane of the TLB.
pub const TLB: usize = 16384;
/// Rights for which the TLB has entries; see `soft_mmu::Privilege`.
pub const PLANES: usize = 3;
/// Distances that a block keeps for later accesses.
pub const SLOTS: usize = 8;
/// Entries in a table of expected returns.
pub const EXPECTED: usize = 512;
const PAGE: u64 = 4096;

/// The TLB for some rights, of one page in each place: an access hits if the distance of its
/// last byte from the page, which is the sum of its address and a tag, is below 4096.
#[derive(Debug)]
#[repr(C)]
pub struct Plane {
    /// The negated linear address of the page, if it may be read.
    pub read: [u64; TLB],
    pub write: [u64; TLB],
    /// Host address less linear address.
    pub delta: [u64; TLB],
    /// What is known of the entries; see [`crate::tlb`].
    pub kind: [u8; TLB],
}

/// A tag that never hits: the page that it names belongs elsewhere, and so do its neighbours.
/// It is zero where that is possible, so that memory that was not used yet will do.
pub const fn none(index: usize) -> u64 {
    if index < 2 || index >= TLB - 2 { ((TLB / 2) as u64 * PAGE).wrapping_neg() } else { 0 }
}

/// Where calls will return to.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Expected {
    /// Linear addresses, with all bits inverted.
    pub linear: [u64; EXPECTED],
    pub host: [u64; EXPECTED],
    /// For which address space.
    pub space: u64,
}

#[derive(Debug)]
#[repr(C, align(64))]
pub struct State {
    /// Frames of signals may overwrite this, while RSP points to the state.
    pub below: [u64; 2],
    /// Linear address of the page of code under execution.
    pub page: u64,
    /// Bits of an address that select its TLB entry.
    pub index_mask: u64,
    /// Address of the word of requests.
    pub poll: u64,
    /// Host address of the part of `jumps` that belongs to the present space.
    pub table: u64,
    /// Bits of the stack pointer that select an entry of `expected`.
    pub stack_mask: u64,
    /// Of a block's own: host less linear address of pages that it has checked.
    pub slots: [u64; SLOTS],
    /// What is pushed, and what RSP points into.
    pub pushed: [u64; 3],
    /// See [`crate::windows`].
    pub windows: [Slot; WINDOWS],
    /// The guest's general registers, while they are not in the host's, as [`PLACES`] says.
    pub placed: [u64; 16],
    /// A linear address that was in none of them, and what `poll` becomes then.
    pub window_missed: u64,
    pub window_poll: u64,
    /// Host address of the last access that faulted, and whether it was a write.
    pub fault: u64,
    pub fault_write: u64,
    pub rip: u64,
    /// The host's flags register with the guest's status flags.
    pub flags: u64,
    /// Bits of an address that select its place in a table of jumps.
    pub jump_mask: u64,
    /// The address space and rights, for which jumps may differ.
    pub space: u64,
    /// `table` of each plane.
    pub tables: [u64; PLANES],
    /// Whose tables these are.
    pub spaces: [u64; PLANES],
    /// What is to be done to the vCPU's segments; see [`crate::levels`].
    pub level: u64,
    /// Not zero if SYSCALL, or SYSRET, is for the handler.
    pub syscall_bad: u64,
    pub sysret_bad: u64,
    /// IDTR and GDTR.
    pub idt_limit: u64,
    pub idt_base: u64,
    pub gdt_limit: u64,
    pub gdt_base: u64,
    /// SYSCALL's target, and the bits of RFLAGS that it leaves alone.
    pub lstar: u64,
    pub syscall_keeps: u64,
    /// The bits of RFLAGS with which SYSRET is for the handler.
    pub sysret_odd: u64,
    /// Not zero if user mode must not read the time-stamp counter.
    pub tsc_bad: u64,
    /// Not zero if CPUID is for the handler.
    pub cpuid_bad: u64,
    pub tsc_aux: u64,
    /// Of ES to GS, in the order of encodings.
    pub selectors: [u64; 6],
    /// Of CS and SS after SYSCALL, and after SYSRET.
    pub level_selectors: [[u64; 2]; 2],
    /// Not zero if the bases of FS and GS must not be read or written by instructions for that.
    pub fsgs_bad: u64,
    /// A function that reads it, and one that answers CPUID.
    pub tsc: u64,
    pub cpuid: u64,
    /// The guest's.
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    /// The status flags while it does, as LAHF and SETO have them.
    pub saved_flags: u64,
    /// Half of the canonical range.
    pub half: u64,
    pub fs: u64,
    pub gs: u64,
    /// Not zero if 32-bit code must not simply add these bases.
    pub fs_odd: u64,
    pub gs_odd: u64,
    pub kernel_gs: u64,
    /// Of 16-bit code, and whether it has loaded any.
    pub segments: [crate::segments::Words; crate::segments::COUNT],
    pub loaded: u64,
    /// RFLAGS but for the status flags: IF, AC, and the rest.
    pub intf: u64,
    pub ac: u64,
    pub rest: u64,
    /// Not zero if opening the window for interrupts takes one.
    pub held: u64,
    /// The status flags of RFLAGS.
    pub status_mask: u64,
    /// Linear address that missed the TLB.
    pub missed: u64,
    /// Site and address of the last miss that only filled the TLB.
    pub refilled: (u32, u64),
    pub temp: u64,
    /// What [`crate::jumps::look_ahead`] has found.
    pub jump: u64,
    /// Host address of what looks a jump up.
    pub elsewhere: u64,
    /// Address of the guest's XSAVE area, where its vector registers are.
    pub fpu: u64,
    /// Masks of the bits of a distance from a page that are zero in the page, for operands that
    /// are aligned.
    pub outside_16: u64,
    pub outside_32: u64,
    /// Of the low bits of an address.
    pub below_16: u64,
    pub below_32: u64,
    pub below_64: u64,
    /// Of MXCSR: the exceptions' masks, and what is reserved.
    pub mxcsr_masks: u64,
    pub mxcsr_reserved: u64,
    /// Not zero if the vector registers are in the XSAVE area, and MXCSR is the host's.
    pub retired: u64,
    /// Not zero if blocks that use so much of them must not run; see [`crate::vectors`].
    pub bad: [u64; KINDS],
    /// The same, or all of them not zero if they are retired.
    pub dead: [u64; KINDS],
    /// The guest's, when the vector registers are retired.
    pub mxcsr: u32,
    pub host_mxcsr: u32,
    /// Operand of LDMXCSR.
    pub new_mxcsr: u32,
    /// `mxcsr` is what the guest has.
    pub masked: u32,
    /// Not zero if the x87 registers are in the XSAVE area.
    pub x87_retired: u64,
    /// FIP, FDP and FOP, of which the host's own mean nothing.
    pub x87_ip: u64,
    pub x87_dp: u64,
    pub x87_op: u64,
    /// The last two before any of what runs now.
    pub kept_dp: u64,
    pub kept_op: u64,
    /// Operand of FLDCW, and the masks in it.
    pub new_fcw: u64,
    pub fcw_masks: u64,
    pub saved_rax: u64,
    pub saved_rdx: u64,
    /// Not zero if RFLAGS.DF is set.
    pub backward: u64,
    /// Of a string instruction under way: the flags, the host address of the destination, and
    /// the guest's RDI.
    pub string_flags: u64,
    pub string_to: u64,
    pub string_rdi: u64,
    /// Block and instruction of the callout.
    pub site: u32,
    /// The callout is because of `missed`.
    pub miss: u32,
    /// Which branch to another page missed.
    pub far: u32,
    /// How many more branches miss until one copies.
    pub far_turn: u64,
    /// Which exit was taken.
    pub exit: u32,
    /// Instructions that may yet be retired, where they are counted; see `lower::count`.
    pub budget: u64,
    pub counted: bool,
    pub callout: u64,
    /// Where the callout returns to in translated code.
    pub resume: u64,
    /// The thread's own stack pointer.
    pub host_rsp: u64,
    /// What the callout needs; an address.
    pub env: u64,
    pub filled: crate::tlb::Filled,
    pub kept: crate::kept::Kept,
    /// Of each plane; see `lower::returns`.
    pub expected: [Expected; PLANES],
    pub jumps: [Jumps; TABLES],
    /// Where direct branches to other pages go.
    pub fars: [Far; FARS],
    pub tlb: [Plane; PLANES],
}

const _: () = {
    assert!(offset_of!(State, page) >= BIAS - RED_ZONE);
    // Two words are pushed at most.
    let pushed = offset_of!(State, pushed);
    assert!(pushed <= BIAS - 16 && pushed + 24 >= BIAS);
    assert!(offset_of!(State, windows) + size_of::<[Slot; WINDOWS]>() < BIAS + 128);
    assert!(offset_of!(State, placed) + 8 * 3 < BIAS + 128);
};

/// Where a field is, as translated code sees it.
macro_rules! field {
    ($name:ident) => {
        $crate::asm::Mem::at(
            $crate::asm::RSP,
            std::mem::offset_of!($crate::state::State, $name) as i32 - $crate::state::BIAS as i32,
        )
    };
}
pub(crate) use field;

/// Where in [`State::gpr`] each register is: those first that have no host register.
const PLACES: [usize; 16] = {
    let (mut places, mut next) = ([0; 16], 0);
    let (mut homeless, mut n) = (true, 0);
    while n < 32 {
        homeless = if n == 16 { false } else { homeless };
        if regs::home(n as u8 % 16).is_none() == homeless {
            places[n % 16] = next;
            next += 1;
        }
        n += 1;
    }
    places
};

pub fn gpr(number: u8) -> Mem {
    let place = PLACES[usize::from(number & 15)];
    Mem::at(RSP, offset_of!(State, placed) as i32 + 8 * place as i32 - BIAS as i32)
}

/// Of a segment register.
pub fn selector(number: u8) -> Mem {
    let selectors = field!(selectors);
    Mem { disp: selectors.disp + 8 * i32::from(number % 6), ..selectors }
}

/// Of CS, or of SS if `stack`, after SYSCALL, or after SYSRET if `user`.
pub fn level_selector(user: bool, stack: bool) -> Mem {
    let selectors = field!(level_selectors);
    Mem { disp: selectors.disp + 16 * i32::from(user) + 8 * i32::from(stack), ..selectors }
}

pub fn window_field(window: usize, field: usize) -> Mem {
    let at = offset_of!(State, windows) + window % WINDOWS * size_of::<Slot>() + field;
    Mem::at(RSP, at as i32 - BIAS as i32)
}

pub fn slot(number: usize) -> Mem {
    Mem::at(RSP, offset_of!(State, slots) as i32 + 8 * (number % SLOTS) as i32 - BIAS as i32)
}

/// The TLB's entry, whose index is in a register, in the array at `at` of [`Plane`].
pub fn tlb_field(plane: usize, index: u8, at: usize) -> Mem {
    let table = offset_of!(State, tlb) + plane * size_of::<Plane>() + at;
    Mem::indexed(RSP, index, 3, table as i32 - BIAS as i32)
}

/// Of the expected return whose number is in a register.
pub fn expected_return(plane: usize, number: u8) -> Mem {
    let at = offset_of!(State, expected) + plane * size_of::<Expected>();
    Mem::indexed(RSP, number, 3, (at + offset_of!(Expected, linear)) as i32 - BIAS as i32)
}

pub fn expected_host(plane: usize, number: u8) -> Mem {
    let at = offset_of!(State, expected) + plane * size_of::<Expected>();
    Mem::indexed(RSP, number, 3, (at + offset_of!(Expected, host)) as i32 - BIAS as i32)
}

impl State {
    /// The general registers, by their numbers.
    pub fn registers(&self) -> [u64; 16] {
        PLACES.map(|place| self.placed[place])
    }

    /// The low half of one.
    pub fn register(&self, number: usize) -> u32 {
        self.placed[PLACES[number % 16]] as u32
    }

    /// The upper half becomes zero.
    pub fn set_register(&mut self, number: usize, value: u32) {
        self.placed[PLACES[number % 16]] = value.into();
    }

    pub fn set_registers(&mut self, registers: &[u64; 16]) {
        for (place, value) in PLACES.into_iter().zip(registers) {
            self.placed[place] = *value;
        }
    }

    /// Address of a word that is not zero: what polls it, leaves.
    pub fn always(&self) -> u64 {
        debug_assert_ne!(self.index_mask as u32, 0);
        std::ptr::from_ref(&self.index_mask) as u64
    }

    /// No return is expected in the plane. A return to address 0 is, which goes to `elsewhere`.
    pub fn forget_returns(&mut self, plane: usize, space: u64, elsewhere: u64) {
        if let Some(expected) = self.expected.get_mut(plane) {
            expected.linear.fill(!0);
            expected.host.fill(elsewhere);
            expected.space = space;
        }
    }
}
