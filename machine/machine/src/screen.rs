//! What a person in front of the guest has: a screen, a keyboard, a mouse.

use crate::Error;
use device::Wiring;
use display::Seat;
use pci::PciHost;
use std::{ops::Range, sync::Arc};
use vga::Vga;
use vm_spec::VmSpec;

/// The VGA's window, which takes the place of RAM.
pub(crate) const WINDOW: Range<u64> = vga::WINDOW;

/// The devices, as far as the spec has them.
#[derive(Debug)]
pub(crate) struct Screen {
    pub(crate) vga: Option<Arc<Vga>>,
    pub(crate) seat: Seat,
}

/// Every board has the keyboard controller, and one with a screen the rest, too. `rom` is the
/// VGA's firmware.
pub(crate) fn build(
    spec: &VmSpec,
    rom: Option<Arc<[u8]>>,
    pci: &PciHost,
    wiring: &mut Wiring,
) -> Result<Screen, Error> {
    let there = spec.display.is_there();
    let i8042 = i8042::build(there, wiring);
    if !there {
        return Ok(Screen { vga: None, seat: Seat::default() });
    }
    let no_memory = |source| Error::Memory { size: u64::from(vga::FRAMEBUFFER) >> 20, source };
    let vga = vga::build(rom, pci, wiring).map_err(no_memory)?;
    let seat = Seat::new(Some(vga.clone()), vec![i8042.clone()], vec![i8042]);
    Ok(Screen { vga: Some(vga), seat })
}
