//! Running stubs.

#![expect(unsafe_code, reason = "calls generated code")]

use std::sync::{Arc, Mutex, PoisonError};

use vcpu_state::FpuState;
use x86_defs::{rflags, xsave};

use crate::cache::SCRATCH;
use crate::code_memory::{self, CodeMemory};
use crate::properties::Properties;
use crate::stub_code::{Entry, SimdControl};
use crate::x87;

/// The memory operand of the instruction that runs, at its start.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Operand(pub [u8; 64]);

impl Operand {
    pub const fn new() -> Self {
        Self([0; 64])
    }
}

impl Default for Operand {
    fn default() -> Self {
        Self::new()
    }
}

/// What came of an instruction.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done: registers, flags and operand buffer hold the results.
    Done,
    /// It is done but for its store: an unmasked x87 exception keeps memory as it was. The next
    /// waiting x87 instruction reports it.
    NoStore,
    /// An unmasked SIMD floating-point exception: MXCSR's flags are updated, nothing else
    /// changed. #XM, or #UD if not CR4.OSXMMEXCPT.
    SimdException,
    /// Not executed: an earlier x87 exception is pending. #MF, or FERR# if not CR0.NE.
    X87Pending,
}

/// One instruction's host code. Clones are cheap and share it.
#[derive(Clone, Debug)]
pub struct Stub(Arc<StubCode>);

#[derive(Debug)]
struct StubCode {
    home: Home,
    properties: Properties,
    kind: Kind,
    /// Keeps the code that `home` points to.
    memory: Arc<CodeMemory>,
}

#[derive(Debug)]
enum Home {
    Resident(Entry),
    /// Written to the scratch page for each run.
    Transient(Vec<u8>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    SimdFp,
    X87,
    /// WAIT: reports what is pending, and no more.
    Wait,
}

/// Held while the scratch page is in use. One for all caches: transient stubs are rare.
static SCRATCH_IN_USE: Mutex<()> = Mutex::new(());

impl Stub {
    /// A stub in `room` bytes of the memory at `at`, which the caller has reserved for it.
    pub(crate) fn resident(
        memory: &Arc<CodeMemory>,
        at: usize,
        room: usize,
        code: &[u8],
        properties: Properties,
    ) -> Option<Self> {
        // SAFETY: the range was reserved for this stub alone, which nobody can run yet.
        if !unsafe { memory.write(at, room, code) } {
            return None;
        }
        let home = Home::Resident(entry(memory, at));
        Some(Self::with_home(memory, home, properties))
    }

    pub(crate) fn transient(
        memory: &Arc<CodeMemory>,
        code: Vec<u8>,
        properties: Properties,
    ) -> Self {
        Self::with_home(memory, Home::Transient(code), properties)
    }

    fn with_home(memory: &Arc<CodeMemory>, home: Home, properties: Properties) -> Self {
        let kind = if properties.wait {
            Kind::Wait
        } else if properties.on_x87() {
            Kind::X87
        } else if properties.simd_fp {
            Kind::SimdFp
        } else {
            Kind::Plain
        };
        Self(Arc::new(StubCode { home, properties, kind, memory: Arc::clone(memory) }))
    }

    pub fn properties(&self) -> &Properties {
        &self.0.properties
    }

    /// Executes the instruction once.
    ///
    /// `operand` holds the memory operand if the instruction reads it, and afterwards what to
    /// write if it writes it. Of `rflags`, only status flags are read and changed.
    #[inline]
    pub fn run(
        &self,
        fpu: &mut FpuState,
        gpr: &mut [u64; 16],
        rflags: &mut u64,
        operand: &mut Operand,
    ) -> Outcome {
        match self.0.kind {
            Kind::Plain => {
                let mut control = SimdControl::default();
                self.call(fpu, gpr, rflags, operand, &mut control);
                Outcome::Done
            }
            Kind::SimdFp => self.run_simd_fp(fpu, gpr, rflags, operand),
            Kind::X87 => self.run_x87(fpu, gpr, rflags, operand),
            Kind::Wait if x87::pending(fpu) => Outcome::X87Pending,
            Kind::Wait => Outcome::Done,
        }
    }

    fn run_simd_fp(
        &self,
        fpu: &mut FpuState,
        gpr: &mut [u64; 16],
        rflags: &mut u64,
        operand: &mut Operand,
    ) -> Outcome {
        let before = fpu.mxcsr();
        let mut control = simd_control(before);
        let mut flags = *rflags;
        self.call(fpu, gpr, &mut flags, operand, &mut control);
        let outcome = finish_simd_fp(fpu, before, &control);
        if outcome == Outcome::Done {
            *rflags = flags;
        }
        outcome
    }

    fn run_x87(
        &self,
        fpu: &mut FpuState,
        gpr: &mut [u64; 16],
        rflags: &mut u64,
        operand: &mut Operand,
    ) -> Outcome {
        let properties = &self.0.properties;
        let was_pending = x87::pending(fpu);
        if properties.waiting && was_pending {
            return Outcome::X87Pending;
        }
        x87::make_consistent(fpu);
        let before = fpu.mxcsr() & xsave::MXCSR_MASK_VALUE;
        // FXRSTOR refuses reserved bits.
        fpu.set_u32(xsave::MXCSR, before);
        let kept = x87::Kept::of(fpu);
        let mut control = simd_control(before);
        let mut flags = *rflags;
        self.call(fpu, gpr, &mut flags, operand, &mut control);
        kept.put_back(fpu);
        if properties.simd_fp {
            fpu.set_u32(xsave::MXCSR, before);
            if finish_simd_fp(fpu, before, &control) == Outcome::SimdException {
                return Outcome::SimdException;
            }
        }
        *rflags = flags;
        let stores = properties.memory.is_some_and(|memory| memory.write);
        if stores && properties.waiting && x87::suppresses_store(fpu) {
            return Outcome::NoStore;
        }
        Outcome::Done
    }

    #[inline]
    fn call(
        &self,
        fpu: &mut FpuState,
        gpr: &mut [u64; 16],
        rflags: &mut u64,
        operand: &mut Operand,
        control: &mut SimdControl,
    ) {
        let written = self.0.properties.flags_written;
        let mut flags = *rflags & rflags::STATUS | rflags::FIXED;
        let mut call = |entry: Entry| {
            // SAFETY: the code at `entry` is this stub's (see `entry`), and these are exclusive
            // references to all that it touches.
            unsafe {
                entry(
                    fpu.area.as_mut_ptr(),
                    gpr.as_mut_ptr(),
                    operand.0.as_mut_ptr(),
                    &mut flags,
                    control,
                );
            }
        };
        match &self.0.home {
            Home::Resident(code) => call(*code),
            Home::Transient(code) => self.with_scratch(code, call),
        }
        *rflags = *rflags & !written | flags & written;
    }

    #[cold]
    fn with_scratch(&self, code: &[u8], call: impl FnOnce(Entry)) {
        let _held = SCRATCH_IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = &self.0.memory;
        // SAFETY: the scratch page is written and executed only under the lock.
        let written = unsafe { memory.write(0, SCRATCH, code) };
        assert!(written, "no stub is longer than a page");
        code_memory::serialize();
        call(entry(memory, 0));
    }
}

fn entry(memory: &CodeMemory, at: usize) -> Entry {
    // SAFETY: stub code is written at `at` before anyone calls it. It follows this calling
    // convention, reads and writes only the five objects that it is given, within their sizes,
    // and leaves the host's MXCSR control bits, x87 state and stack as they were. The code stays
    // mapped as long as the memory, which whoever calls it holds.
    unsafe { std::mem::transmute::<*const u8, Entry>(memory.address(at)) }
}

/// Exceptions are masked while the instruction runs, and judged afterwards by the guest's masks.
fn simd_control(mxcsr: u32) -> SimdControl {
    SimdControl {
        wanted: mxcsr & MXCSR_CONTROL | MXCSR_MASKS,
        result: 0,
        unmasked: !(mxcsr >> 7) & MXCSR_FLAGS,
        host: xsave::MXCSR_RESET,
    }
}

/// MXCSR's exception flags; the masks are the same bits seven higher.
const MXCSR_FLAGS: u32 = 0x3f;
const MXCSR_MASKS: u32 = MXCSR_FLAGS << 7;
/// FTZ, rounding control and DAZ.
const MXCSR_CONTROL: u32 = 0xe040;
/// Invalid, denormal and divide-by-zero are found before the operation.
const PRE_COMPUTATION: u32 = 0x7;

/// Adds the new exception flags to the guest's MXCSR.
fn finish_simd_fp(fpu: &mut FpuState, before: u32, control: &SimdControl) -> Outcome {
    let mut raised = control.result & MXCSR_FLAGS;
    let outcome = if raised & control.unmasked == 0 {
        Outcome::Done
    } else {
        // Then the operation does not take place, and nothing is known about its result
        // (SDM volume 1, 11.5.2).
        if raised & control.unmasked & PRE_COMPUTATION != 0 {
            raised &= PRE_COMPUTATION;
        }
        Outcome::SimdException
    };
    if before & raised != raised {
        fpu.set_u32(xsave::MXCSR, before | raised);
    }
    outcome
}
