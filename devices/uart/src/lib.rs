//! The 16550A serial port, as the National Semiconductor PC16550D data sheet describes it.
//!
//! Sending takes no time: the transmitter is always empty again when a write returns. What a
//! carrier offers is taken up to the depth of the receive FIFO and no further, so a guest that
//! does not read holds its sender back and loses nothing.
//!
//! Locks: the port's own lock is held while its interrupt line is driven (interrupt
//! controllers never call devices), and never while the output or the room callback is called.

mod regs;
mod state;

pub use state::UartState;

use byte_stream::{Input, Output};
use device::{Device, LineRef, PioDevice, Wiring};
use regs::Regs;
use saved_state::{Error, Reader, Writer};
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

/// Where a port is on the board.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// First of eight ports: 0x3f8 for COM1.
    pub base: u16,
    /// ISA IRQ: 4 for COM1.
    pub irq: usize,
    /// Which of the machine's serial ports this is, for names and saved state.
    pub instance: u32,
}

impl Config {
    pub const COM1: Self = Self { base: 0x3f8, irq: 4, instance: 0 };
    pub const COM2: Self = Self { base: 0x2f8, irq: 3, instance: 1 };
}

type RoomCallback = Box<dyn Fn() + Send + Sync>;

pub struct Uart {
    instance: u32,
    regs: Mutex<Regs>,
    line: LineRef,
    output: Arc<dyn Output>,
    room: OnceLock<RoomCallback>,
}

impl fmt::Debug for Uart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uart").field("instance", &self.instance).finish_non_exhaustive()
    }
}

/// Puts a port on the board. The carrier gives it bytes through [`Input`].
pub fn build(config: &Config, output: Arc<dyn Output>, wiring: &mut Wiring) -> Arc<Uart> {
    let uart = Arc::new(Uart {
        instance: config.instance,
        regs: Mutex::new(Regs::default()),
        line: wiring.irq(config.irq),
        output,
        room: OnceLock::new(),
    });
    let last = config.base.saturating_add(7);
    wiring.claim_ports("uart", config.base..=last, uart.clone());
    wiring.devices.push(uart.clone());
    uart
}

/// What is left to do once the lock is released.
#[derive(Default)]
pub(crate) struct After {
    /// A byte left the port.
    pub(crate) sent: Option<u8>,
    /// A sender who was refused may try again.
    pub(crate) room: bool,
}

impl Uart {
    fn lock(&self) -> MutexGuard<'_, Regs> {
        self.regs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the registers, drives the line, and calls out after that.
    fn with<T>(&self, change: impl FnOnce(&mut Regs, &mut After) -> T) -> T {
        let mut after = After::default();
        let mut regs = self.lock();
        let before = regs.line();
        let result = change(&mut regs, &mut after);
        after.room |= regs.take_room();
        let level = regs.line();
        if level != before {
            self.line.set(level);
        }
        drop(regs);
        if let Some(byte) = after.sent {
            self.output.write(&[byte]);
        }
        if after.room
            && let Some(callback) = self.room.get()
        {
            callback();
        }
        result
    }

    /// The line goes into the break condition: a zero byte with the break flag. What a
    /// terminal sends for Linux's SysRq.
    pub fn send_break(&self) {
        self.with(|regs, _| regs.receive_break());
    }
}

impl PioDevice for Uart {
    fn read(&self, port: u16, data: &mut [u8]) {
        for (i, byte) in (0u16..).zip(data) {
            let reg = port.wrapping_add(i) & 7;
            // An access that runs over the last register is another device's from there on.
            if (port & 7) + i > 7 {
                return;
            }
            *byte = self.with(|regs, _| regs.read(reg));
        }
    }

    fn write(&self, port: u16, data: &[u8]) {
        for (i, byte) in (0u16..).zip(data) {
            if (port & 7) + i > 7 {
                return;
            }
            let reg = port.wrapping_add(i) & 7;
            self.with(|regs, after| regs.write(reg, *byte, after));
        }
    }
}

impl Input for Uart {
    fn receive(&self, bytes: &[u8]) -> usize {
        self.with(|regs, _| regs.receive(bytes))
    }

    /// The first callback stays: a port has one carrier.
    fn on_room(&self, callback: RoomCallback) {
        let _ = self.room.set(callback);
    }
}

impl Device for Uart {
    fn name(&self) -> String {
        format!("uart{}", self.instance)
    }

    fn reset(&self) {
        self.with(|regs, after| {
            after.room = regs.is_waiting();
            *regs = Regs::default();
        });
    }

    fn save(&self, to: &mut Writer) {
        to.put(self.instance, &self.lock().save());
    }

    fn restore(&self, from: &mut Reader) -> Result<(), Error> {
        let restored = Regs::restore(from.take::<UartState>(self.instance)?)?;
        let mut regs = self.lock();
        *regs = restored;
        self.line.restore(regs.line());
        drop(regs);
        if let Some(callback) = self.room.get() {
            callback();
        }
        Ok(())
    }
}
