//! The two 8259A interrupt controllers of a PC, and the edge/level registers of its chipset
//! (82371AB PIIX4, 8.1.4).
//!
//! The output is pulled: [`Pic::pending`] tells the level of INTR without a lock, and the vCPU
//! that takes the interrupt calls [`Pic::ack`].

pub mod chip;

use crate::bytes::{BytePorts, Bytewise, lock};
use chip::{CASCADE, Chip};
use device::{Device, Line, LineRef, Wiring};
use saved_state::{Error, Reader, Schema, Writer, malformed};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

/// Inputs 0, 1, 2, 8 and 13 are edge-triggered by their nature.
const ELCR_WRITABLE: [u8; 2] = [0xf8, 0xde];

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PicState {
    pub master: Chip,
    pub slave: Chip,
}

impl Schema for PicState {
    const KIND: &'static str = "pic-8259a";
    const VERSION: u16 = 1;
}

#[derive(Debug, Default)]
struct Pair {
    /// Master and slave.
    chips: [Chip; 2],
}

impl Pair {
    /// Drives the slave's output into the master; the level of INTR. An input must stay high
    /// until it is acknowledged (data sheet, "IRR"); other devices' pulses are latched all the
    /// same, but a slave that withdraws its request is taken at its word.
    fn settle(&mut self) -> bool {
        let [master, slave] = &mut self.chips;
        let requests = slave.request(false).is_some();
        master.set_input(CASCADE, requests);
        if !requests {
            master.irr &= !(1 << CASCADE);
        }
        master.request(true).is_some()
    }
}

/// Called when INTR rises.
pub type IntrHook = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
pub struct Pic {
    pair: Mutex<Pair>,
    intr: AtomicBool,
    hook: OnceLock<IntrHook>,
}

impl fmt::Debug for Pic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pic").field("intr", &self.intr).field("pair", &self.pair).finish()
    }
}

impl Pic {
    pub(crate) fn build(wiring: &mut Wiring) -> Arc<Self> {
        let pic = Arc::new(Self::default());
        let ports = Arc::new(Bytewise(pic.clone()));
        wiring.claim_ports("pic", 0x20..=0x21, ports.clone());
        wiring.claim_ports("pic", 0xa0..=0xa1, ports.clone());
        wiring.claim_ports("elcr", 0x4d0..=0x4d1, ports);
        wiring.devices.push(pic.clone());
        pic
    }

    /// `hook` is called whenever INTR rises, without a lock of the PIC; it may not call
    /// devices. Set once.
    pub fn on_intr(&self, hook: IntrHook) {
        let _ = self.hook.set(hook);
    }

    /// The level of INTR.
    pub fn pending(&self) -> bool {
        self.intr.load(SeqCst)
    }

    /// The processor's acknowledge cycle: the vector, or `None` if INTR is low. The chips'
    /// spurious vectors are for requests that fall during the cycle, which here cannot be.
    pub fn ack(&self) -> Option<u8> {
        self.with(|pair| {
            let [master, slave] = &mut pair.chips;
            let input = master.request(true)?;
            master.acknowledge(input);
            if input != CASCADE {
                return Some(master.vector(input));
            }
            let Some(input) = slave.request(false) else { return Some(slave.vector(7)) };
            slave.acknowledge(input);
            // The slave's next request is an edge of its own.
            master.set_input(CASCADE, false);
            Some(slave.vector(input))
        })
    }

    fn with<T>(&self, change: impl FnOnce(&mut Pair) -> T) -> T {
        let mut pair = lock(&self.pair);
        let result = change(&mut pair);
        let intr = pair.settle();
        let rises = !self.intr.swap(intr, SeqCst) && intr;
        drop(pair);
        if rises && let Some(hook) = self.hook.get() {
            hook();
        }
        result
    }

    /// Input 0 to 15 as a line.
    pub(crate) fn input(self: &Arc<Self>, input: u8) -> LineRef {
        Arc::new(Input { pic: self.clone(), chip: usize::from(input >> 3 & 1), input: input & 7 })
    }
}

struct Input {
    pic: Arc<Pic>,
    chip: usize,
    input: u8,
}

impl Line for Input {
    fn set(&self, level: bool) {
        self.pic.with(|pair| pair.chips[self.chip].set_input(self.input, level));
    }
    fn restore(&self, level: bool) {
        self.pic.with(|pair| pair.chips[self.chip].restore_input(self.input, level));
    }
}

impl BytePorts for Pic {
    fn read_byte(&self, port: u16) -> Option<u8> {
        let index = usize::from(matches!(port, 0xa0 | 0xa1 | 0x4d1));
        let value = match port {
            0x20 | 0x21 | 0xa0 | 0xa1 => self.with(|pair| {
                let chip = &mut pair.chips[index];
                match port & 1 {
                    _ if chip.poll => {
                        let answer = chip.take_poll(index == 0);
                        if index == 1 {
                            pair.chips[0].set_input(CASCADE, false);
                        }
                        answer
                    }
                    0 if chip.read_isr => chip.isr,
                    0 => chip.irr,
                    _ => chip.imr,
                }
            }),
            0x4d0 | 0x4d1 => lock(&self.pair).chips[index].elcr,
            _ => return None,
        };
        Some(value)
    }

    fn write_byte(&self, port: u16, value: u8) {
        let index = usize::from(matches!(port, 0xa0 | 0xa1 | 0x4d1));
        self.with(|pair| {
            let chip = &mut pair.chips[index];
            match port {
                0x20 | 0xa0 => {
                    chip.write_command(value);
                    if value & 0x10 != 0 {
                        // A slave whose output stays high must still be noticed.
                        pair.chips[0].set_input(CASCADE, false);
                    }
                }
                0x21 | 0xa1 => chip.write_data(value),
                0x4d0 | 0x4d1 => chip.write_elcr(value & ELCR_WRITABLE[index]),
                _ => {}
            }
        });
    }
}

impl Device for Pic {
    fn name(&self) -> String {
        "pic".into()
    }

    fn reset(&self) {
        self.with(|pair| pair.chips.iter_mut().for_each(Chip::reset));
    }

    fn save(&self, to: &mut Writer) {
        let [master, slave] = lock(&self.pair).chips.clone();
        to.put(0, &PicState { master, slave });
    }

    fn restore(&self, from: &mut Reader) -> Result<(), Error> {
        let PicState { master, slave } = from.take(0)?;
        let chips = [master, slave];
        let elcr = chips.iter().zip(ELCR_WRITABLE).all(|(chip, ok)| chip.elcr & !ok == 0);
        if !elcr || !chips.iter().all(Chip::is_valid) {
            return Err(malformed::<PicState>("a register has a value that the chip has not"));
        }
        self.with(|pair| pair.chips = chips);
        Ok(())
    }
}
