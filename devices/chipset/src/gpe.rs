//! ACPI general-purpose events: a block of 16 (ACPI 6.5, section 4.8.4.1), which shares the SCI
//! with the fixed events. A board has it if something on it tells of changes that way.

use crate::{bytes::lock, pm};
use device::{Device, LineRef, PioDevice, Wiring};
use saved_state::{Error, Reader, Schema, Writer, malformed};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    sync::{Arc, Mutex},
};

/// GPE0_BLK: status, then enable, two bytes each. It is where a chipset of the ICH9's kind has it,
/// behind the PM ports.
pub const BLOCK: u16 = 0x620;
pub const LENGTH: u8 = 4;
/// The event of CPUs that come and go.
pub const CPUS: u8 = 2;
/// The events that there are.
const EVENTS: u16 = 1 << CPUS;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpeState {
    pub status: u16,
    pub enable: u16,
}

impl Schema for GpeState {
    const KIND: &'static str = "acpi-gpe";
    const VERSION: u16 = 1;
}

impl GpeState {
    fn sci(self) -> bool {
        self.status & self.enable != 0
    }
}

pub struct Gpe {
    regs: Mutex<GpeState>,
    sci: LineRef,
}

impl fmt::Debug for Gpe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpe").field("regs", &self.regs).finish_non_exhaustive()
    }
}

impl Gpe {
    pub(crate) fn build(wiring: &mut Wiring) -> Arc<Self> {
        let gpe = Arc::new(Self { regs: Mutex::default(), sci: wiring.irq(pm::SCI_IRQ) });
        let last = BLOCK + u16::from(LENGTH) - 1;
        wiring.claim_ports("acpi_gpe", BLOCK..=last, gpe.clone());
        wiring.devices.push(gpe.clone());
        gpe
    }

    /// An event has happened; one that is not there never does.
    pub(crate) fn raise(&self, event: u8) {
        self.with(|regs| regs.status |= 1u16.checked_shl(event.into()).unwrap_or(0) & EVENTS);
    }

    /// The lock is held while the line is driven; interrupt controllers call no device.
    fn with(&self, change: impl FnOnce(&mut GpeState)) {
        let mut regs = lock(&self.regs);
        change(&mut regs);
        self.sci.set(regs.sci());
    }
}

impl PioDevice for Gpe {
    fn read(&self, port: u16, data: &mut [u8]) {
        let regs = *lock(&self.regs);
        let [status, enable] = [regs.status, regs.enable].map(u16::to_le_bytes);
        let bytes = [status, enable].concat();
        for (at, byte) in (usize::from(port.wrapping_sub(BLOCK))..).zip(data) {
            *byte = bytes.get(at).copied().unwrap_or(0);
        }
    }

    fn write(&self, port: u16, data: &[u8]) {
        self.with(|regs| {
            for (at, byte) in (port.wrapping_sub(BLOCK)..).zip(data) {
                let (word, mask) = match at & 1 {
                    0 => (u16::from(*byte), 0x00ff),
                    _ => (u16::from(*byte) << 8, 0xff00),
                };
                match at / 2 {
                    0 => regs.status &= !word,
                    1 => regs.enable = (regs.enable & !mask | word) & EVENTS,
                    _ => {}
                }
            }
        });
    }
}

impl Device for Gpe {
    fn name(&self) -> String {
        "acpi_gpe".into()
    }

    fn reset(&self) {
        self.with(|regs| *regs = GpeState::default());
    }

    fn save(&self, to: &mut Writer) {
        to.put(0, &*lock(&self.regs));
    }

    fn restore(&self, from: &mut Reader) -> Result<(), Error> {
        let state: GpeState = from.take(0)?;
        if (state.status | state.enable) & !EVENTS != 0 {
            return Err(malformed::<GpeState>("there is no such event"));
        }
        *lock(&self.regs) = state;
        self.sci.restore(state.sci());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use device::fake::{FakeTime, Recorder, wiring};

    fn board() -> (Arc<Gpe>, Arc<Recorder>) {
        let (time, sink) = (FakeTime::default(), Arc::new(Recorder::default()));
        let mut wiring = wiring(&time, &sink);
        wiring.irqs = vec![sink.clone(); 16];
        (Gpe::build(&mut wiring), sink)
    }

    fn read(gpe: &Gpe) -> [u8; 4] {
        let mut data = [0xff; 4];
        gpe.read(BLOCK, &mut data);
        data
    }

    #[test]
    fn an_event_interrupts_while_it_is_enabled_until_it_is_cleared() {
        let (gpe, sink) = board();
        gpe.raise(CPUS);
        assert_eq!((read(&gpe), sink.level()), ([4, 0, 0, 0], false));
        gpe.write(BLOCK + 2, &[0xff, 0xff]);
        assert_eq!((read(&gpe), sink.level()), ([4, 0, 4, 0], true), "others are not there");
        gpe.write(BLOCK, &[0xfb]);
        assert!(sink.level(), "a zero clears nothing");
        gpe.write(BLOCK, &[4, 0, 4, 0]);
        assert_eq!((read(&gpe), sink.level()), ([0, 0, 4, 0], false));
        gpe.raise(3);
        gpe.raise(200);
        assert_eq!((read(&gpe), sink.level()), ([0, 0, 4, 0], false));
        gpe.raise(CPUS);
        assert!(sink.level());
        gpe.reset();
        assert_eq!((read(&gpe), sink.level()), ([0; 4], false));
    }

    #[test]
    fn it_is_restored_with_its_line() {
        let (gpe, sink) = board();
        gpe.write(BLOCK + 2, &[4]);
        gpe.raise(CPUS);
        let mut writer = Writer::default();
        gpe.save(&mut writer);
        gpe.reset();
        let parts = writer.finish();
        gpe.restore(&mut Reader::new(parts.clone()).unwrap()).unwrap();
        assert_eq!((read(&gpe), sink.level()), ([4, 0, 4, 0], true));
        let mut writer = Writer::default();
        writer.put(0, &GpeState { status: 8, enable: 0 });
        assert!(gpe.restore(&mut Reader::new(writer.finish()).unwrap()).is_err());
        assert_eq!(read(&gpe), [4, 0, 4, 0]);
    }
}
