//! The host bridge (MCH, 5.1): its identity, and the registers that firmware uses.

use crate::{Config, shadow::Shadow};
use device::Wiring;
use pci::{Function, FunctionConfig, PciHost, Registers};
use std::sync::Arc;

/// Where the enhanced configuration space is (5.1.16). It stays where it is.
const PCIEXBAR: usize = 0x60;
const PCIEXBAR_ENABLE: u64 = 1;
/// Seven registers: what is at which part of the upper memory area (5.1.17 to 5.1.23).
pub(crate) const PAM: usize = 0x90;
/// System-management RAM control (5.1.27): there is none, and nothing can be written.
const SMRAM: usize = 0x9d;
/// The memory segment's fixed bits.
const SMRAM_SEGMENT: u8 = 0x02;

/// Reading and writing go to RAM, in both halves of a register.
const OPEN: u8 = 0x33;

struct Mch(Arc<Shadow>);

impl Function for Mch {
    fn read(&self, _: usize, _: u64, _: &mut [u8]) {}
    fn write(&self, _: usize, _: u64, _: &[u8]) {}

    fn configured(&self, config: &[u8; 256]) {
        let mut registers = [0; 7];
        registers.copy_from_slice(&config[PAM..PAM + 7]);
        self.0.set(&registers);
    }
}

/// The first register has one segment only, in its upper half.
const fn pam(value: u8) -> [u8; 7] {
    [value & 0x30, value, value, value, value, value, value]
}

fn function(config: &Config) -> FunctionConfig {
    let ecam = config.ecam.start | PCIEXBAR_ENABLE;
    let at_reset = if config.rom.is_some() { pam(0) } else { pam(OPEN) };
    FunctionConfig {
        vendor: 0x8086,
        device: 0x29c0,
        revision: 2,
        class: 0x06_00_00,
        // By these firmware knows that it runs in a virtual machine.
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
        registers: vec![
            Registers {
                at: PCIEXBAR,
                value: ecam.to_le_bytes().into(),
                writable: 0xf_f000_0007u64.to_le_bytes().into(),
            },
            Registers { at: PAM, value: at_reset.into(), writable: pam(OPEN).into() },
            Registers { at: SMRAM, value: vec![SMRAM_SEGMENT], writable: Vec::new() },
        ],
        ..FunctionConfig::default()
    }
}

pub(crate) fn build(config: &Config, wiring: &mut Wiring) -> Arc<PciHost> {
    let shadow = Shadow::build(config, wiring);
    let places = pci::Config { ecam: config.ecam.clone(), window: config.window.clone() };
    let host = pci::build_as(&places, &function(config), Arc::new(Mch(shadow.clone())), wiring);
    // After the registers, which say what of its memory is seen.
    wiring.devices.push(shadow);
    host
}
