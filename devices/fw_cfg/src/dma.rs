//! Commands in memory: 16 bytes, of which numbers have their most significant byte first:
//! control, length, address.

use crate::{Cursor, FwCfg};
use std::sync::atomic::Ordering::Relaxed;

/// Bits of the control field; the upper half is the item for [`SELECT`].
const ERROR: u32 = 1;
const READ: u32 = 2;
const SKIP: u32 = 4;
const SELECT: u32 = 8;
const WRITE: u32 = 16;

/// Bytes that are copied at once.
const CHUNK: usize = 64 << 10;
/// Bytes behind an item's end that a command is given as zeroes. Nobody asks for many; without
/// a limit one command could write all memory.
const ZEROES_MAX: u64 = 1 << 20;

/// A refused command; there is no more to be told than that.
struct Refused;

impl FwCfg {
    /// Executes the command at this address. When it is done its control field is zero, or the
    /// error bit; a command that is not in memory is not heard of again.
    pub(crate) fn execute(&self, at: u64) {
        let mut command = [0; 16];
        if self.memory.read(at, &mut command).is_err() {
            self.refused.fetch_add(1, Relaxed);
            return;
        }
        let field = |from: usize| {
            command.iter().skip(from).take(4).fold(0, |sum, byte| sum << 8 | u32::from(*byte))
        };
        let (control, length) = (field(0), field(4));
        let address = u64::from(field(8)) << 32 | u64::from(field(12));
        let mut cursor = self.cursor();
        let done = self.transfer(&mut cursor, control, length, address);
        drop(cursor);
        let answer = match done {
            Ok(()) => 0,
            Err(Refused) => {
                self.refused.fetch_add(1, Relaxed);
                ERROR
            }
        };
        // It was memory when it was read.
        drop(self.memory.write(at, &answer.to_be_bytes()));
    }

    fn transfer(
        &self,
        cursor: &mut Cursor,
        control: u32,
        length: u32,
        address: u64,
    ) -> Result<(), Refused> {
        if control & SELECT != 0 {
            (cursor.item, cursor.offset) = ((control >> 16) as u16, 0);
        }
        let rest = self.rest(cursor);
        let from_item = rest.get(..length as usize).unwrap_or(rest);
        if control & READ != 0 {
            let zeroes = u64::from(length) - from_item.len() as u64;
            if zeroes > ZEROES_MAX {
                return Err(Refused);
            }
            let mut to = address;
            for chunk in from_item.chunks(CHUNK) {
                to = self.put(to, chunk)?;
            }
            for chunk in vec![0; zeroes as usize].chunks(CHUNK) {
                to = self.put(to, chunk)?;
            }
            self.given.fetch_add(from_item.len() as u64, Relaxed);
        } else if control & WRITE != 0 {
            return Err(Refused);
        } else if control & SKIP == 0 {
            return Ok(());
        }
        // Inside the item, whose length has 32 bits.
        cursor.offset += from_item.len() as u32;
        Ok(())
    }

    /// Writes to memory; where it ends.
    fn put(&self, at: u64, bytes: &[u8]) -> Result<u64, Refused> {
        self.memory.write(at, bytes).map_err(|_| Refused)?;
        at.checked_add(bytes.len() as u64).ok_or(Refused)
    }
}
