//! The vCPU while it runs: [`VcpuState`] in the form that handlers like.

use crate::{
    Flags,
    mem::Mmu,
    ring3::Ring3,
    sync::{Request, Slot, Slots},
};
use cpu_model::CpuidTable;
use guest_mem::GuestMem;
use std::sync::Arc;
use vcpu_state::{
    Control, Debug as DebugRegs, Events, Exception, FpuState, MpState, Msrs, Regs, SegReg, Segment,
    Segments, Table, Tsc, VcpuState,
};
use x86_defs::{
    cr::{cr0, efer},
    rflags,
    segment::{ATTR_DB, ATTR_L},
};

/// Default operand and address size of the code segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum CodeSize {
    #[default]
    Bits16,
    Bits32,
    Bits64,
}

/// What follows from control registers, RFLAGS.VM and segments; see [`Cpu::update_mode`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mode {
    pub code: CodeSize,
    pub cpl: u8,
    /// CR0.PE.
    pub protected: bool,
    /// Virtual-8086 mode.
    pub v86: bool,
    /// EFER.LMA: long or compatibility mode.
    pub long: bool,
    /// Stack address size in bytes: 2, 4, 8.
    pub stack: u8,
}

impl Mode {
    #[inline(always)]
    pub fn is64(&self) -> bool {
        self.code == CodeSize::Bits64
    }

    /// Real mode or virtual-8086 mode: selectors are paragraphs.
    pub fn real_like(&self) -> bool {
        !self.protected || self.v86
    }

    /// Bits of RIP.
    #[inline(always)]
    pub fn ip_mask(&self) -> u64 {
        if self.is64() { !0 } else { 0xffff_ffff }
    }

    /// Bits of the stack pointer that are used.
    #[inline(always)]
    pub fn stack_mask(&self) -> u64 {
        match self.stack {
            2 => 0xffff,
            4 => 0xffff_ffff,
            _ => !0,
        }
    }

    /// What decoding depends on, as a number below 16.
    #[inline(always)]
    pub fn key(&self) -> u64 {
        self.code as u64 | (u64::from(self.stack) >> 1 & 3) << 2
    }
}

pub struct Cpu {
    /// RAX to R15 in encoding order. Beyond: always zero ([`crate::insn::NO_REG`]).
    pub gpr: [u64; 32],
    /// Of the next instruction, while one executes.
    pub rip: u64,
    pub flags: Flags,
    /// What [`Flags`] does not hold; its bits are meaningless here.
    pub rflags: u64,
    pub mode: Mode,
    /// The block under execution ends after this instruction.
    pub leave: bool,
    /// The host asked to stop at the next boundary.
    pub stop_asked: bool,
    /// Ask the host what is pending at the next boundary where it could be taken.
    pub look: bool,
    /// An interrupt waits for its window: whatever opens that looks again.
    pub held: bool,
    pub seg: [Segment; 8],
    pub mmu: Mmu,
    pub slot: Arc<Slot>,
    pub slots: Arc<Slots>,
    pub mem: Arc<GuestMem>,

    pub gdtr: Table,
    pub idtr: Table,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub xcr0: u64,
    pub pdpte: [u64; 4],
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    /// DR6 bits of data and I/O breakpoints that the instruction under way has hit.
    pub dr_hits: u64,

    pub msrs: Msrs,
    pub hot: HotMsrs,
    pub tsc_offset: u64,
    pub tsc_adjust: u64,
    pub tsc_deadline: u64,

    pub fpu: FpuState,
    pub events: Events,
    pub mp: MpState,
    /// Of the last [`crate::Stop::Fault`].
    pub raised: Exception,
    /// Of the last [`crate::Stop::Unhandled`].
    pub unhandled: &'static str,
    /// Code that the decode cache must forget before the next instruction.
    pub stale_code: Vec<std::ops::Range<u64>>,
    /// Iterations of a REP that may yet be done before the block must end.
    pub rep_budget: u64,
    /// Iterations of REPs beyond each instruction's first.
    pub rep_retired: u64,
    /// Tell the host of interrupts and exceptions.
    pub trace: bool,
    pub intercepts: engine::Intercepts,
    /// Of a guest whose kernel runs at level 3, once its personality has told of its roots.
    pub ring3: Option<Box<Ring3>>,

    pub id: u32,
    pub cpuid: Arc<CpuidTable>,
    /// CPUID.(7,0):EBX[6]: FDP and FOP change at unmasked x87 exceptions only.
    pub fdp_exceptions_only: bool,
}

/// MSRs that instructions read; the others are in [`Cpu::msrs`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HotMsrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub tsc_aux: u64,
}

impl HotMsrs {
    pub fn get_mut(&mut self, index: u32) -> Option<&mut u64> {
        use x86_defs::msr::*;
        Some(match index {
            STAR => &mut self.star,
            LSTAR => &mut self.lstar,
            CSTAR => &mut self.cstar,
            SFMASK => &mut self.sfmask,
            KERNEL_GS_BASE => &mut self.kernel_gs_base,
            IA32_SYSENTER_CS => &mut self.sysenter_cs,
            IA32_SYSENTER_ESP => &mut self.sysenter_esp,
            IA32_SYSENTER_EIP => &mut self.sysenter_eip,
            TSC_AUX => &mut self.tsc_aux,
            _ => return None,
        })
    }

    pub const ALL: [u32; 9] = {
        use x86_defs::msr::*;
        [
            STAR,
            LSTAR,
            CSTAR,
            SFMASK,
            KERNEL_GS_BASE,
            IA32_SYSENTER_CS,
            IA32_SYSENTER_ESP,
            IA32_SYSENTER_EIP,
            TSC_AUX,
        ]
    };
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cpu")
            .field("gpr", &format_args!("{:x?}", &self.gpr[..16]))
            .field("rip", &format_args!("{:#x}", self.rip))
            .field("rflags", &format_args!("{:#x}", self.rflags()))
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl Cpu {
    /// In its reset state.
    pub fn new(id: u32, mem: &Arc<GuestMem>, slots: &Arc<Slots>, cpuid: Arc<CpuidTable>) -> Self {
        let reset = VcpuState::reset(id);
        let mut cpu = Self {
            gpr: [0; 32],
            rip: 0,
            flags: Flags::default(),
            rflags: 2,
            mode: Mode::default(),
            leave: false,
            stop_asked: false,
            look: true,
            held: false,
            seg: reset.segments.reg,
            mmu: Mmu::new(mem),
            slot: Arc::new(Slot::new(id)),
            slots: slots.clone(),
            mem: mem.clone(),
            gdtr: Table::default(),
            idtr: Table::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            pdpte: [0; 4],
            dr: [0; 4],
            dr6: 0,
            dr7: 0,
            dr_hits: 0,
            msrs: Msrs::default(),
            hot: HotMsrs::default(),
            tsc_offset: 0,
            tsc_adjust: 0,
            tsc_deadline: 0,
            fpu: FpuState::reset(),
            events: Events::default(),
            mp: MpState::Running,
            raised: Exception::default(),
            unhandled: "",
            stale_code: Vec::new(),
            rep_budget: u64::MAX,
            rep_retired: 0,
            trace: false,
            intercepts: engine::Intercepts::default(),
            ring3: None,
            id,
            cpuid,
            fdp_exceptions_only: false,
        };
        slots.add(&cpu.slot);
        cpu.load_state(&reset);
        cpu
    }

    /// A serialising instruction was executed (SDM volume 3, 9.3): what others have written is
    /// looked at before the next one, which may be what was written.
    pub fn serialize(&mut self) {
        self.leave = true;
    }

    /// RFLAGS with all its bits.
    pub fn rflags(&self) -> u64 {
        self.rflags & !rflags::STATUS | rflags::FIXED | self.flags.bits()
    }

    /// Sets all of RFLAGS; the mode follows.
    pub fn set_rflags(&mut self, value: u64) {
        let changed = self.rflags ^ value;
        self.rflags = value & rflags::DEFINED | rflags::FIXED;
        self.flags.set_bits(value);
        self.leave = true;
        self.look |= changed & value & rflags::IF != 0;
        // Callers may have changed segments, too.
        self.update_mode();
        if changed & rflags::AC != 0 {
            self.mode_changed();
        }
    }

    #[inline(always)]
    pub fn segment(&self, which: SegReg) -> &Segment {
        &self.seg[which as usize & 7]
    }

    pub fn segment_mut(&mut self, which: SegReg) -> &mut Segment {
        &mut self.seg[which as usize & 7]
    }

    /// Call after a change of CR0, EFER.LMA, RFLAGS.VM, CS or SS.
    pub fn update_mode(&mut self) {
        let (cs, ss) = (&self.seg[SegReg::Cs as usize], &self.seg[SegReg::Ss as usize]);
        let protected = self.cr0 & cr0::PE != 0;
        let v86 = protected && self.rflags & rflags::VM != 0;
        let long = self.efer & efer::LMA != 0;
        let code = match (long && cs.attr & ATTR_L != 0, cs.attr & ATTR_DB != 0) {
            (true, _) => CodeSize::Bits64,
            (false, true) => CodeSize::Bits32,
            (false, false) => CodeSize::Bits16,
        };
        let stack = match code {
            CodeSize::Bits64 => 8,
            _ if ss.attr & ATTR_DB != 0 => 4,
            _ => 2,
        };
        let cpl = match (protected, v86) {
            (false, _) => 0,
            (true, true) => 3,
            (true, false) => ss.dpl(),
        };
        let mode = Mode { code, cpl, protected, v86, long, stack };
        if mode != self.mode {
            self.mode = mode;
            self.leave = true;
            self.mode_changed();
        }
    }

    /// Replaces everything; nothing of the state before is left.
    pub fn load_state(&mut self, state: &VcpuState) {
        self.gpr = [0; 32];
        self.gpr[..16].copy_from_slice(&state.regs.gpr);
        self.rip = state.regs.rip;
        self.rflags = state.regs.rflags & rflags::DEFINED | rflags::FIXED;
        self.flags.set_bits(state.regs.rflags);
        self.seg = state.segments.reg;
        (self.gdtr, self.idtr) = (state.segments.gdtr, state.segments.idtr);
        let Control { cr0, cr2, cr3, cr4, cr8: _, efer, xcr0, pdpte } = state.control;
        (self.cr0, self.cr2, self.cr3, self.cr4) = (cr0, cr2, cr3, cr4);
        (self.efer, self.xcr0, self.pdpte) = (efer, xcr0, pdpte);
        DebugRegs { dr: self.dr, dr6: self.dr6, dr7: self.dr7 } = state.debug;
        self.dr_hits = 0;
        self.fpu.clone_from(&state.fpu);
        self.fpu.own_header();
        self.msrs.clone_from(&state.msrs);
        self.hot = HotMsrs::default();
        for index in HotMsrs::ALL {
            if let (Some(value), Some(hot)) = (state.msrs.get(index), self.hot.get_mut(index)) {
                *hot = value;
            }
        }
        self.tsc_adjust = state.tsc.adjust;
        self.tsc_deadline = state.tsc.deadline;
        self.events = state.events;
        self.mp = state.mp;
        (self.leave, self.look, self.stop_asked) = (true, true, false);
        self.ring3 = None;
        self.update_mode();
        self.state_replaced();
        self.mode_changed();
    }

    /// `tsc` is this vCPU's own, now. CR8 and the APIC are the host's.
    pub fn save_state(&self, tsc: u64, khz: u32) -> VcpuState {
        let mut state = VcpuState::reset(self.id);
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&self.gpr[..16]);
        state.regs = Regs { gpr, rip: self.rip, rflags: self.rflags() };
        state.segments = Segments { reg: self.seg, gdtr: self.gdtr, idtr: self.idtr };
        state.control = Control {
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            cr8: 0,
            efer: self.efer,
            xcr0: self.xcr0,
            pdpte: self.pdpte,
        };
        state.debug = DebugRegs { dr: self.dr, dr6: self.dr6, dr7: self.dr7 };
        state.fpu.clone_from(&self.fpu);
        state.msrs.clone_from(&self.msrs);
        let mut hot = self.hot;
        for index in HotMsrs::ALL {
            if let Some(value) = hot.get_mut(index) {
                state.msrs.set(index, *value);
            }
        }
        state.events = self.events;
        state.mp = self.mp;
        let (adjust, deadline) = (self.tsc_adjust, self.tsc_deadline);
        state.tsc = Tsc { value: tsc, khz, adjust, deadline };
        state
    }

    /// Does what other threads asked. Called at polls, and after every callback to the host.
    #[inline]
    pub fn serve_requests(&mut self) {
        if self.slot.flags.load(std::sync::atomic::Ordering::Relaxed) & crate::sync::flag::REQUEST
            != 0
        {
            self.serve();
        }
    }

    #[cold]
    fn serve(&mut self) {
        let (requests, number) = self.slot.take();
        for request in requests {
            match request {
                Request::RevokeWrite(page) => self.mmu.revoke_write(page),
                Request::RevokeWrites => self.mmu.revoke_writes(),
                Request::Code(range) => self.stale_code.push(range),
                Request::Flush(Some(linear)) => self.mmu.flush_page(linear),
                Request::Flush(None) => self.flush_tables(),
                Request::Layout => {
                    self.layout_changed();
                    self.stale_code.push(0..u64::MAX);
                }
            }
        }
        self.leave = true;
        self.slot.served(number);
    }

    /// This vCPU has written bytes of a page with a code mark: to be called after the write.
    #[cold]
    pub fn code_written(&mut self, gpa: std::ops::Range<u64>) {
        for stale in self.slots.code_written(&self.mem.layout(), gpa, Some(&self.slot)) {
            self.stale_code.push(stale);
        }
        self.leave = true;
    }

    /// SIPI, if the vCPU waits for one; ignored otherwise (SDM volume 3, 9.4).
    pub fn startup(&mut self, vector: u8) {
        if self.mp == MpState::WaitForSipi {
            let mut state = self.save_state(0, 0);
            state.sipi(vector);
            self.load_state(&state);
        }
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        self.slots.remove(&self.slot);
    }
}
