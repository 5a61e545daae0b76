//! Running stubs.

#![expect(unsafe_code, reason = "calls generated code")]

use std::sync::{Arc, Mutex, PoisonError};

use vcpu_state::FpuState;
use x86_defs::rflags;

use crate::cache::SCRATCH;
use crate::code_memory::{self, CodeMemory};
use crate::properties::Properties;
use crate::stub_code::{Entry, SimdControl};

#[cfg(test)]
mod exception_tests;
mod simd_fp;
mod x87_unit;

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
    /// changed (but for the operand buffer). #XM, or #UD if not CR4.OSXMMEXCPT.
    ///
    /// Flags may differ from the host's in two cases: PE beside an unmasked OE or UE, and those
    /// of DPPS, DPPD and VCVTPS2PH, which do not report all elements' exceptions.
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
    Resident {
        entry: Entry,
        at: usize,
        room: usize,
    },
    /// Written to the scratch page for each run.
    Transient(Vec<u8>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    SimdFp,
    X87,
    X87Control,
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
        let home = Home::Resident { entry: entry(memory, at), at, room };
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
        let kind = if properties.x87_control.is_some() {
            Kind::X87Control
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

    /// Where its code is in the memory, and how many bytes it has there.
    pub(crate) fn place(&self) -> Option<(usize, usize)> {
        match self.0.home {
            Home::Resident { at, room, .. } => Some((at, room)),
            Home::Transient(_) => None,
        }
    }

    /// True if there is no clone of it.
    pub(crate) fn is_unshared(&mut self) -> bool {
        Arc::get_mut(&mut self.0).is_some()
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
            Kind::X87Control => self.run_x87_control(fpu, gpr, operand),
        }
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
            Home::Resident { entry, .. } => call(*entry),
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
