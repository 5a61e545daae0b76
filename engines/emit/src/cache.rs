//! Finds or makes the stub of an instruction.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iced_x86::Instruction;

use crate::code_memory::{self, CodeMemory};
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
    /// Places of dropped stubs, by their number of lines.
    free: BTreeMap<usize, Vec<usize>>,
    /// Transient stubs to hand out before the next attempt to drop stubs.
    patience: u32,
    /// Places may be written again: every processor can be made to forget what it fetched.
    recycles: bool,
}

/// A sweep looks at every stub: if it found little, the next one waits this many compilations.
const PATIENCE: u32 = 1024;

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
            shared: Arc::new(Mutex::new(Shared {
                stubs: HashMap::new(),
                fresh: SCRATCH,
                free: BTreeMap::new(),
                patience: 0,
                recycles: code_memory::register_for_sync(),
            })),
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
        let Some((at, recycled)) = shared.reserve(code.len(), self.memory.len()) else {
            return Ok(Stub::transient(&self.memory, code, properties));
        };
        let room = lines(code.len()) * LINE;
        let stub = Stub::resident(&self.memory, at, room, &code, properties)
            .ok_or(Unsupported::Encoding)?;
        if recycled && !code_memory::sync_all_processors() {
            shared.recycles = false;
            return Ok(Stub::transient(&self.memory, code, stub.properties().clone()));
        }
        shared.stubs.insert(key, stub.clone());
        Ok(stub)
    }

    #[cfg(test)]
    pub(crate) fn transient(&self, code: Vec<u8>, properties: Properties) -> Stub {
        Stub::transient(&self.memory, code, properties)
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

fn lines(len: usize) -> usize {
    len.div_ceil(LINE)
}

impl Shared {
    /// A place for `len` bytes, and whether other code was there before.
    fn reserve(&mut self, len: usize, limit: usize) -> Option<(usize, bool)> {
        let lines = lines(len);
        let end = self.fresh.checked_add(lines * LINE)?;
        if end <= limit {
            let at = std::mem::replace(&mut self.fresh, end);
            return Some((at, false));
        }
        if !self.recycles {
            return None;
        }
        if let Some(at) = self.take_free(lines) {
            return Some((at, true));
        }
        if self.patience > 0 {
            self.patience -= 1;
            return None;
        }
        let dropped = self.drop_unused();
        self.patience = if dropped < 64 { PATIENCE } else { 0 };
        self.take_free(lines).map(|at| (at, true))
    }

    /// The smallest free place that suffices; what is over stays free.
    fn take_free(&mut self, lines: usize) -> Option<usize> {
        let (size, at) = self
            .free
            .range_mut(lines..)
            .find_map(|(&size, places)| places.pop().map(|at| (size, at)))?;
        if size > lines {
            self.free.entry(size - lines).or_default().push(at + lines * LINE);
        }
        Some(at)
    }

    /// Drops stubs that are kept here alone: nobody runs them, nor can begin to.
    fn drop_unused(&mut self) -> usize {
        let before = self.stubs.len();
        let free = &mut self.free;
        self.stubs.retain(|_, stub| {
            let unused = stub.is_unshared();
            if unused && let Some((at, room)) = stub.place() {
                free.entry(room / LINE).or_default().push(at);
            }
            !unused
        });
        before - self.stubs.len()
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};
    use vcpu_state::FpuState;

    use super::*;
    use crate::{Operand, Outcome};

    /// PSHUFD XMM`to`, XMM2, `order`.
    fn pshufd(to: u8, order: u8) -> Instruction {
        let bytes = [0x66, 0x0f, 0x70, 0xc2 | to << 3, order];
        Decoder::new(64, &bytes, DecoderOptions::NONE).decode()
    }

    #[test]
    fn dropped_stubs_make_room() {
        let cache = StubCache::with_len(3 * SCRATCH).unwrap();
        let kept = cache.compile(&pshufd(1, 0xe4)).unwrap();
        for to in 0..8 {
            for order in 0..=255 {
                let stub = cache.compile(&pshufd(to, order)).unwrap();
                assert!(stub.place().is_some(), "transient, though none is in use");
                let (mut fpu, mut gpr, mut flags) = (FpuState::init(), [0; 16], 2);
                fpu.set_xmm(2, 0x3333_3333_2222_2222_1111_1111_0000_0000);
                let mut operand = Operand::new();
                assert_eq!(stub.run(&mut fpu, &mut gpr, &mut flags, &mut operand), Outcome::Done);
                let low = fpu.xmm(usize::from(to)) as u32;
                assert_eq!(low, u32::from(order & 3) * 0x1111_1111);
            }
        }
        assert!(cache.compile(&pshufd(1, 0xe4)).unwrap().place() == kept.place());
        assert!(cache.resident_stubs() <= 2 * SCRATCH / LINE);
    }

    #[test]
    fn stubs_in_use_stay() {
        let cache = StubCache::with_len(2 * SCRATCH).unwrap();
        let all: Vec<Stub> =
            (0..=255).map(|order| cache.compile(&pshufd(3, order)).unwrap()).collect();
        let places: Vec<_> = all.iter().filter_map(Stub::place).collect();
        assert!(places.len() < 256, "the rest are transient");
        let mut distinct = places.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), places.len());
    }
}
