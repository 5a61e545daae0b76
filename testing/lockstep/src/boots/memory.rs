//! The guest's memory as it was when both vCPUs last agreed.

use super::{Error, side::Side};
use engine::Vm;
use guest_mem::{PAGE, PageBitmap};

const LEN: usize = PAGE as usize;

#[derive(Debug)]
pub struct Reference {
    bytes: Vec<u8>,
    /// Pages that either vCPU has written since.
    pub written: PageBitmap,
}

impl Reference {
    /// What is in memory now.
    pub fn new(side: &Side, size: u64) -> Result<Self, Error> {
        let mut bytes = vec![0; usize::try_from(size)?];
        side.memory().read(0, &mut bytes)?;
        Ok(Self { bytes, written: PageBitmap::for_len(size) })
    }

    /// Adds what was written to [`Self::written`].
    pub fn collect(&mut self, sides: [&Side; 2]) -> Result<(), Error> {
        sides.iter().try_for_each(|side| Ok(side.vm.take_dirty(0, &mut self.written)?))
    }

    /// Address and values of the words that differ.
    pub fn compare(&self, a: &Side, b: &Side) -> Result<Vec<(u64, u64, u64)>, Error> {
        let (mut left, mut right) = ([0; LEN], [0; LEN]);
        let mut out = Vec::new();
        for page in self.written.pages() {
            let gpa = page as u64 * PAGE;
            a.memory().read(gpa, &mut left)?;
            b.memory().read(gpa, &mut right)?;
            if left == right {
                continue;
            }
            for ((at, a), b) in (gpa..).step_by(8).zip(left.chunks(8)).zip(right.chunks(8)) {
                if a != b {
                    out.push((at, word(a), word(b)));
                }
            }
        }
        Ok(out)
    }

    /// Both agree: this is the reference from now on.
    pub fn keep(&mut self, side: &Side) -> Result<(), Error> {
        for page in self.written.pages() {
            if let Some(bytes) = self.bytes.get_mut(page * LEN..(page + 1) * LEN) {
                side.memory().read(page as u64 * PAGE, bytes)?;
            }
        }
        self.written.0.fill(0);
        Ok(())
    }

    /// Makes a side's memory the reference again.
    pub fn restore(&self, side: &Side) -> Result<(), Error> {
        let mut now = [0; LEN];
        for page in self.written.pages() {
            let Some(bytes) = self.bytes.get(page * LEN..(page + 1) * LEN) else { continue };
            side.memory().read(page as u64 * PAGE, &mut now)?;
            // Code that is written is forgotten, even if it is the same.
            if bytes != now {
                side.memory().write(page as u64 * PAGE, bytes)?;
            }
        }
        Ok(())
    }
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}
