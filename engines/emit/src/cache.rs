//! Finds or makes the stub of an instruction.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iced_x86::Instruction;

use crate::code_memory::CodeMemory;
use crate::properties::Properties;
use crate::stub::Stub;
use crate::{Unsupported, stub_code};

/// Stubs begin at multiples of this: a cache line.
const LINE: usize = 64;

/// Kept free of cached stubs, for the one transient stub that may run at a time.
pub(crate) const SCRATCH: usize = 4096;

/// The default size of the code memory.
pub const DEFAULT_LEN: usize = 4 << 20;

/// Makes stubs, and keeps them in bounded memory; clones share one memory.
///
/// Sites with the same operation, registers and immediate share a stub. When the memory is full,
/// stubs that no [`Stub`] refers to any more are dropped; if all are in use, further ones are
/// transient: right, but written anew each time they run.
#[derive(Clone, Debug)]
pub struct StubCache {
    memory: Arc<CodeMemory>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    /// By the normalised instruction: its bytes, and the general registers that it uses.
    stubs: HashMap<Box<[u8]>, Stub>,
    /// Where code was never written.
    fresh: usize,
}

impl StubCache {
    /// A cache with code memory of [`DEFAULT_LEN`] bytes.
    pub fn new() -> io::Result<Self> {
        Self::with_len(DEFAULT_LEN)
    }

    /// A cache with `len` bytes of code memory, rounded up to pages; at least 8 KiB.
    pub fn with_len(len: usize) -> io::Result<Self> {
        let len = len
            .max(SCRATCH)
            .checked_next_multiple_of(4096)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?
            .max(2 * SCRATCH);
        Ok(Self {
            memory: Arc::new(CodeMemory::new(len)?),
            shared: Arc::new(Mutex::new(Shared { stubs: HashMap::new(), fresh: SCRATCH })),
        })
    }

    /// The stub of a decoded instruction of any mode.
    pub fn compile(&self, insn: &Instruction) -> Result<Stub, Unsupported> {
        let properties = Properties::of(insn)?;
        let (normal, pointers) = stub_code::normalise(insn, &properties)?;
        let mut key = stub_code::encode(&normal)?;
        // Which register stands for the guest's RSP is not in the bytes.
        key.extend_from_slice(&properties.gpr_used.to_le_bytes());
        let key = key.into_boxed_slice();
        let mut shared = self.lock();
        if let Some(stub) = shared.stubs.get(&key) {
            return Ok(stub.clone());
        }
        let code = stub_code::build(&normal, &pointers, &properties)?;
        let Some(at) = shared.reserve(code.len(), self.memory.len()) else {
            return Ok(Stub::transient(&self.memory, code, properties));
        };
        let stub = Stub::resident(&self.memory, at, code.len(), &code, properties)
            .ok_or(Unsupported::Encoding)?;
        shared.stubs.insert(key, stub.clone());
        Ok(stub)
    }

    /// How many stubs are kept.
    pub fn resident_stubs(&self) -> usize {
        self.lock().stubs.len()
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Nothing that panics runs while it is held.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn reserve(&mut self, len: usize, limit: usize) -> Option<usize> {
        let at = self.fresh;
        let end = at.checked_add(len.next_multiple_of(LINE))?;
        if end > limit {
            return None;
        }
        self.fresh = end;
        Some(at)
    }
}
