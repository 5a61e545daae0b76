//! The MSI-X table and its pending bits (PCI, 6.8.2).

use crate::{
    config::{Capability, MsixConfig},
    state::VectorState,
};
use device::{Msi, MsiSink};

const ID: u8 = 0x11;
/// Bytes of an entry of the table.
pub(crate) const ENTRY: u64 = 16;

/// Message control.
pub(crate) mod control {
    pub const ENABLE: u16 = 1 << 15;
    pub const FUNCTION_MASK: u16 = 1 << 14;
}

pub(crate) fn capability(config: &MsixConfig) -> Capability {
    assert!((1..=2048).contains(&config.vectors), "{config:?}");
    assert!((config.table | config.pba).is_multiple_of(8), "{config:?}");
    let bar = config.bar as u32;
    let mut body = (config.vectors - 1).to_le_bytes().to_vec();
    body.extend((config.table | bar).to_le_bytes());
    body.extend((config.pba | bar).to_le_bytes());
    let writable = (control::ENABLE | control::FUNCTION_MASK).to_le_bytes().to_vec();
    Capability { id: ID, body, writable, window: false }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Vector {
    address: u64,
    data: u32,
    masked: bool,
    pending: bool,
}

/// Masked after a reset (PCI, 6.8.2.9).
const RESET: Vector = Vector { address: 0, data: 0, masked: true, pending: false };

#[derive(Clone, Debug)]
pub(crate) struct Table {
    vectors: Vec<Vector>,
    /// Messages may leave: enabled, not masked as a whole, and the function may write memory,
    /// which a message is.
    open: bool,
    enabled: bool,
}

impl Table {
    pub(crate) fn new(vectors: u16) -> Self {
        Self { vectors: vec![RESET; vectors.into()], open: false, enabled: false }
    }

    pub(crate) fn enabled(&self) -> bool {
        self.enabled
    }

    pub(crate) fn set_control(&mut self, control: u16, master: bool, msi: &dyn MsiSink) {
        self.enabled = control & control::ENABLE != 0;
        self.open = self.enabled && control & control::FUNCTION_MASK == 0 && master;
        if !self.enabled {
            // What was pending belongs to an interrupt that is no longer asked for.
            self.vectors.iter_mut().for_each(|vector| vector.pending = false);
        }
        for index in 0..self.vectors.len() {
            self.serve(index, msi);
        }
    }

    pub(crate) fn notify(&mut self, vector: u16, msi: &dyn MsiSink) {
        if !self.enabled {
            return;
        }
        if let Some(entry) = self.vectors.get_mut(usize::from(vector)) {
            entry.pending = true;
            self.serve(vector.into(), msi);
        }
    }

    /// Sends what is pending, if it may leave.
    fn serve(&mut self, index: usize, msi: &dyn MsiSink) {
        let Some(entry) = self.vectors.get_mut(index) else { return };
        if self.open && entry.pending && !entry.masked {
            entry.pending = false;
            msi.send(Msi { address: entry.address, data: entry.data });
        }
    }

    /// Software reads the table; bytes beyond it stay as they are.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in places(offset).zip(data) {
            let Some(entry) = self.entry(at) else { return };
            *byte = entry[(at % ENTRY) as usize];
        }
    }

    fn entry(&self, at: u64) -> Option<[u8; ENTRY as usize]> {
        let vector = self.vectors.get(usize::try_from(at / ENTRY).ok()?)?;
        let mut bytes = [0; ENTRY as usize];
        bytes[..8].copy_from_slice(&vector.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&vector.data.to_le_bytes());
        bytes[12] = u8::from(vector.masked);
        Some(bytes)
    }

    /// Software writes the table. Messages are sent from whole writes only: one of eight bytes
    /// changes the data and the mask at once.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8], msi: &dyn MsiSink) {
        for (at, byte) in places(offset).zip(data) {
            let Some(mut entry) = self.entry(at) else { break };
            entry[(at % ENTRY) as usize] = *byte;
            let Some(vector) = self.vectors.get_mut((at / ENTRY) as usize) else { break };
            vector.address = u64::from_le_bytes(entry[..8].try_into().unwrap_or_default());
            vector.data = u32::from_le_bytes(entry[8..12].try_into().unwrap_or_default());
            vector.masked = entry[12] & 1 != 0;
        }
        let last = offset.saturating_add(data.len().saturating_sub(1) as u64);
        for index in offset / ENTRY..=last / ENTRY {
            self.serve(usize::try_from(index).unwrap_or(usize::MAX), msi);
        }
    }

    /// Software reads the pending bits, which it cannot write.
    pub(crate) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in places(offset).zip(data) {
            let first = usize::try_from(at).unwrap_or(usize::MAX).saturating_mul(8);
            let bit = |i: usize| self.vectors.get(first.saturating_add(i));
            *byte = (0..8)
                .fold(0, |sum, i| sum | u8::from(bit(i).is_some_and(|vector| vector.pending)) << i);
        }
    }

    pub(crate) fn save(&self) -> Vec<VectorState> {
        let save = |v: &Vector| VectorState {
            address: v.address,
            data: v.data,
            masked: v.masked,
            pending: v.pending,
        };
        self.vectors.iter().map(save).collect()
    }

    /// As many vectors as there are; nothing is sent.
    pub(crate) fn restore(&mut self, vectors: &[VectorState], control: u16, master: bool) {
        self.enabled = control & control::ENABLE != 0;
        self.open = self.enabled && control & control::FUNCTION_MASK == 0 && master;
        for (vector, saved) in self.vectors.iter_mut().zip(vectors) {
            let VectorState { address, data, masked, pending } = *saved;
            *vector = Vector { address, data, masked, pending };
        }
    }
}

/// The offsets of bytes from one on, as far as there are any.
fn places(offset: u64) -> impl Iterator<Item = u64> {
    (0..).map_while(move |n| offset.checked_add(n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use device::fake::Recorder;

    const OPEN: u16 = control::ENABLE;
    const MASKED: u16 = control::ENABLE | control::FUNCTION_MASK;

    fn table() -> (Table, Recorder) {
        let (mut table, sink) = (Table::new(3), Recorder::default());
        table.write(16, &0xfee0_1000u64.to_le_bytes(), &sink);
        table.write(24, &0x41u64.to_le_bytes(), &sink);
        (table, sink)
    }

    #[test]
    fn a_masked_message_waits() {
        let (mut table, sink) = table();
        table.notify(1, &sink);
        table.set_control(MASKED, true, &sink);
        assert!(sink.take_messages().is_empty(), "not enabled when it was asked for");
        table.notify(1, &sink);
        table.notify(2, &sink);
        let mut pending = [0; 8];
        table.read_pending(0, &mut pending);
        assert_eq!(pending, [6, 0, 0, 0, 0, 0, 0, 0]);
        table.set_control(OPEN, false, &sink);
        assert!(sink.take_messages().is_empty(), "the function may not write memory");
        table.set_control(OPEN, true, &sink);
        assert_eq!(sink.take_messages(), [Msi { address: 0xfee0_1000, data: 0x41 }]);
        table.read_pending(0, &mut pending);
        assert_eq!(pending[0], 4, "masked by its entry");
        table.write(44, &[0], &sink);
        assert_eq!(sink.take_messages(), [Msi { address: 0, data: 0 }]);
    }

    #[test]
    fn a_message_is_sent_once() {
        let (mut table, sink) = table();
        table.set_control(OPEN, true, &sink);
        table.notify(1, &sink);
        table.notify(7, &sink);
        assert_eq!(sink.take_messages().len(), 1);
        table.set_control(OPEN, true, &sink);
        assert!(sink.take_messages().is_empty());
    }

    #[test]
    fn what_is_written_is_read_and_no_more() {
        let (mut table, sink) = table();
        let mut bytes = [0xee; 32];
        table.read(24, &mut bytes);
        let mut want = [0xee; 32];
        want[..8].copy_from_slice(&0x41u64.to_le_bytes());
        want[8..24].fill(0);
        want[20] = 1;
        assert_eq!(bytes, want);
        table.write(40, &[0xff; 16], &sink);
        table.read(40, &mut bytes[..8]);
        assert_eq!(bytes[..8], [0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
        table.write(u64::MAX - 3, &[1; 4], &sink);
        table.read(u64::MAX, &mut bytes[..1]);
        table.read_pending(u64::MAX, &mut bytes[..1]);
    }
}
