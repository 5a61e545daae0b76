//! The keyboard controller of a PC, with a PS/2 keyboard and a wheel mouse, or with nothing
//! connected.
//!
//! ```text
//!   port 0x64 --> commands, status --+          +-- keyboard (scan code set 2, or 1 and 3)
//!   port 0x60 --> data --------------+-- ctrl --+
//!                  IRQ 1, IRQ 12 <---+          +-- mouse (3 bytes; 4 with a wheel)
//! ```
//!
//! As in IBM's Personal System/2 hardware reference and the data sheet of the 8042's descendants.
//! A byte of a device is in the output buffer as soon as the one before is read; the A20 gate's
//! bit is kept, and masks nothing; a pulse of bit 0 of the output port resets the machine.
//!
//! What a device has to say and the guest does not read is bounded: a full keyboard says so
//! with an overrun code, and a mouse adds up how far it was moved.
//!
//! Locks: one, held while the interrupt lines are driven, and not while a reset is asked for.

mod controller;
mod keyboard;
mod mouse;
mod state;

pub use state::{ControllerState, I8042State, KeyboardState, MouseState, Operand};

use controller::Controller;
use device::{Device, LineRef, PioDevice, PowerEvent, PowerSink, Wiring};
use display::{Key, Keyboard, Pointer, PointerEvent};
use saved_state::{Error, Reader, Writer, malformed};
use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

const DATA: u16 = 0x60;
const COMMAND: u16 = 0x64;
const KEYBOARD_IRQ: usize = 1;
const MOUSE_IRQ: usize = 12;

/// The controller with what is connected to it.
pub struct I8042 {
    controller: Mutex<Controller>,
    connected: bool,
    keyboard_irq: LineRef,
    mouse_irq: LineRef,
    power: Arc<dyn PowerSink>,
    keys: AtomicU64,
    moves: AtomicU64,
}

impl fmt::Debug for I8042 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("I8042").field("connected", &self.connected).finish_non_exhaustive()
    }
}

/// Puts the controller on the board; `connected` says whether there are a keyboard and a mouse.
pub fn build(connected: bool, wiring: &mut Wiring) -> Arc<I8042> {
    let device = Arc::new(I8042 {
        controller: Mutex::new(Controller::new(connected)),
        connected,
        keyboard_irq: wiring.irq(KEYBOARD_IRQ),
        mouse_irq: wiring.irq(MOUSE_IRQ),
        power: wiring.power.clone(),
        keys: AtomicU64::new(0),
        moves: AtomicU64::new(0),
    });
    wiring.claim_ports("i8042", DATA..=DATA, device.clone());
    wiring.claim_ports("i8042", COMMAND..=COMMAND, device.clone());
    wiring.devices.push(device.clone());
    device
}

impl I8042 {
    /// Changes the controller and drives the lines; a reset that came of it is asked for after.
    fn with<T>(&self, change: impl FnOnce(&mut Controller) -> T) -> T {
        let mut controller = self.controller.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut controller);
        if controller.take_read() {
            // The byte that was read takes its interrupt with it: the next one has its own edge.
            self.keyboard_irq.set(false);
            self.mouse_irq.set(false);
        }
        controller.fill();
        let (keyboard, mouse) = controller.lines();
        self.keyboard_irq.set(keyboard);
        self.mouse_irq.set(mouse);
        let reset = controller.take_reset();
        drop(controller);
        if reset {
            self.power.request(PowerEvent::Reset);
        }
        result
    }
}

impl PioDevice for I8042 {
    /// The ports are one byte wide.
    fn read(&self, port: u16, data: &mut [u8]) {
        if let Some(byte) = data.first_mut() {
            *byte = match port {
                DATA => self.with(Controller::read_data),
                _ => self.with(|controller| controller.status()),
            };
        }
    }

    fn write(&self, port: u16, data: &[u8]) {
        if let Some(byte) = data.first() {
            match port {
                DATA => self.with(|controller| controller.write_data(*byte)),
                _ => self.with(|controller| controller.command(*byte)),
            }
        }
    }
}

impl Keyboard for I8042 {
    /// Whoever takes keys from others takes them from here: every PC has this one.
    fn listens(&self) -> bool {
        true
    }

    fn key(&self, key: Key, down: bool) {
        if self.connected {
            self.keys.fetch_add(1, Relaxed);
            self.with(|controller| controller.key(key, down));
        }
    }
}

impl Pointer for I8042 {
    fn listens(&self) -> bool {
        self.connected && self.with(|controller| controller.mouse_reports())
    }

    fn is_absolute(&self) -> bool {
        false
    }

    fn point(&self, event: PointerEvent) {
        if self.connected {
            self.moves.fetch_add(1, Relaxed);
            self.with(|controller| controller.point(event));
        }
    }
}

impl Device for I8042 {
    fn name(&self) -> String {
        "i8042".into()
    }

    fn reset(&self) {
        self.with(|controller| *controller = Controller::new(self.connected));
    }

    fn save(&self, to: &mut Writer) {
        to.put(0, &self.with(|controller| controller.save()));
    }

    fn restore(&self, from: &mut Reader) -> Result<(), Error> {
        let state: I8042State = from.take(0)?;
        let restored =
            Controller::restore(state, self.connected).map_err(malformed::<I8042State>)?;
        let mut controller = self.controller.lock().unwrap_or_else(PoisonError::into_inner);
        *controller = restored;
        let (keyboard, mouse) = controller.lines();
        self.keyboard_irq.restore(keyboard);
        self.mouse_irq.restore(mouse);
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![("keys", self.keys.load(Relaxed)), ("pointer events", self.moves.load(Relaxed))]
    }
}
