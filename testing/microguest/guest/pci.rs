//! PCI's configuration space by ports 0xcf8 and 0xcfc, as far as the drivers here need it.

use crate::hardware::{in32, load, out32, store};

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;

const COMMAND: u8 = 0x04;
const BAR0: u8 = 0x10;
const CAPABILITIES: u8 = 0x34;
const INTERRUPT_LINE: u8 = 0x3c;
const MEMORY_AND_MASTER: u32 = 0x6;
const MSIX: u32 = 0x11;

/// A function of bus 0, by its address for the port.
#[derive(Clone, Copy)]
pub struct Function(u32);

impl Function {
    /// The first with these two IDs.
    pub fn find(vendor: u16, device: u16) -> Option<Self> {
        let wanted = u32::from(device) << 16 | u32::from(vendor);
        (0..32).map(|slot| Self(1 << 31 | slot << 11)).find(|at| at.read(0) == wanted)
    }

    /// The aligned word at or around `at`.
    pub fn read(self, at: u8) -> u32 {
        out32(ADDRESS, self.0 | u32::from(at & !3));
        in32(DATA)
    }

    fn write(self, at: u8, value: u32) {
        out32(ADDRESS, self.0 | u32::from(at & !3));
        out32(DATA, value);
    }

    pub fn bar(self, index: u8) -> u64 {
        u64::from(self.read(BAR0 + index * 4) & !0xf)
    }

    pub fn enable(self) {
        self.write(COMMAND, MEMORY_AND_MASTER);
    }

    /// The pin's input of the IOAPIC, as firmware noted it.
    pub fn line(self) -> u8 {
        self.read(INTERRUPT_LINE) as u8
    }

    /// Where each capability is, and its first word.
    pub fn capabilities(self) -> impl Iterator<Item = (u8, u32)> {
        let mut at = self.read(CAPABILITIES) as u8;
        core::iter::from_fn(move || {
            let here = at;
            let head = (here != 0).then(|| self.read(here))?;
            at = (head >> 8) as u8;
            Some((here, head))
        })
    }

    /// MSI-X on, each entry of the table at this vector of that processor.
    pub fn use_messages(self, entries: u16, vector: u8, processor: u8) {
        let found = self.capabilities().find(|(_, head)| head & 0xff == MSIX);
        let (at, head) = found.expect("a virtio function without MSI-X");
        let place = self.read(at + 4);
        let table = self.bar((place & 7) as u8) + u64::from(place & !7);
        for entry in 0..u64::from(entries) {
            store(table + entry * 16, 0xfee0_0000 | u32::from(processor) << 12);
            store(table + entry * 16 + 4, 0u32);
            store(table + entry * 16 + 8, u32::from(vector));
            store(table + entry * 16 + 12, load::<u32>(table + entry * 16 + 12) & !1);
        }
        self.write(at, head | 1 << 31);
    }
}
