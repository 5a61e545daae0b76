//! Configuration space and BARs of the host bridge, of functions, and of root ports behind which some
//! come and go.

use crate::{
    ground::{Board, ECAM, Ground, Place, WINDOW, drive},
    input::Input,
};
use pci::{Bar, BarKind, Capability, Function, FunctionConfig, MsixConfig, PciHost, Requester};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

/// A function that answers with where it was asked.
struct Echo;

impl Function for Echo {
    fn read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        let word = (bar as u64) << 56 | offset;
        data.iter_mut().zip(word.to_le_bytes()).for_each(|(to, from)| *to = from);
    }
    fn write(&self, _: usize, _: u64, _: &[u8]) {}
    fn read_window(&self, capability: &[u8], data: &mut [u8; 4]) {
        data.copy_from_slice(&capability[4..8]);
    }
}

fn function() -> FunctionConfig {
    FunctionConfig {
        vendor: 0x1af4,
        device: 0x1042,
        class: 0x01_80_00,
        bars: vec![
            Bar { index: 0, kind: BarKind::Memory32, prefetchable: false, size: 0x4000 },
            Bar { index: 1, kind: BarKind::Io, prefetchable: false, size: 32 },
            Bar { index: 4, kind: BarKind::Memory64, prefetchable: true, size: 0x1_0000 },
        ],
        msix: Some(MsixConfig { vectors: 2, bar: 0, table: 0x1000, pba: 0x2000 }),
        capabilities: vec![Capability {
            id: 9,
            body: vec![0; 10],
            writable: vec![0, 0, 0xff, 0xff, 0xff, 0xff],
            window: true,
        }],
        interrupt_pin: true,
        rom: Some(vec![0x55, 0xaa, 3].into()),
        ..FunctionConfig::default()
    }
}

struct Bus {
    ground: Ground,
    pci: Arc<PciHost>,
    requesters: Vec<Arc<Requester>>,
    changed: AtomicBool,
}

const PORTS: usize = 2;
/// Slots: the bridge, two functions, two ports, and the LPC bridge.
const SLOTS: [u64; 6] = [0, 1, 2, 3, 4, 31];

impl Board for Bus {
    fn ground(&self) -> &Ground {
        &self.ground
    }

    fn ports(&self) -> &[u16] {
        &[0xcf8, 0xcf8, 0xcfc, 0xcfd, 0xcfe, 0xcff, 0xc000, 0xc010, 0xd000]
    }

    fn places(&self) -> Vec<Place> {
        let mut places: Vec<Place> =
            SLOTS.iter().map(|slot| (ECAM + (slot << 15), 0x110)).collect();
        places.extend((1..=PORTS as u64 + 1).map(|bus| (ECAM + (bus << 20), 0x110)));
        for slot in [1, 2] {
            places.extend([
                (self.ground.bar(slot, 0), 0x4000),
                (self.ground.bar(slot, 0) + 0x1000, 0x30),
            ]);
            places.push((self.ground.bar(slot, 4), 0x1_0000));
        }
        places.push((ECAM, (PORTS as u64 + 2) << 20));
        places
    }

    fn act(&self, input: &mut Input<'_>) {
        let port = input.below(PORTS as u64 + 1) as usize;
        match input.u8() & 7 {
            0 | 1 => {
                self.changed.store(true, SeqCst);
                let _ = self.pci.plug(port, &function(), |_| Arc::new(Echo));
            }
            2 => {
                self.pci.ask_unplug(port);
            }
            3 => self.pci.pull(port),
            4 => self.pci.assign(),
            5 => self.requesters[input.below(2) as usize].set_pin(input.flag()),
            6 => self.requesters[input.below(2) as usize].notify(input.below(4) as u16),
            _ => {
                // The processor's own port of configuration, whole.
                let address = 1 << 31 | (input.below(32) as u32) << 11 | (input.u8() & 0xfc) as u32;
                let data = input.u32().to_le_bytes();
                self.ground.wiring.pio.write(0xcf8, &address.to_le_bytes());
                self.ground.wiring.pio.write(0xcfc, &data);
            }
        }
    }

    fn is_as_new(&self) -> bool {
        !self.changed.load(SeqCst)
    }
}

pub(super) fn run(data: &[u8]) {
    drive(data, || {
        let mut ground = Ground::new();
        ground.map(0xc_0000);
        let config = q35::Config {
            ecam: ECAM..ECAM + ((PORTS as u64 + 1) << 20),
            window: WINDOW,
            pm_base: 0x600,
            ram: ground.ram.clone(),
            rom: None,
        };
        // That of a PC, with shadow RAM, or a plain one, which is faster to move.
        let pci = if data.first().is_some_and(|byte| byte & 0x80 != 0) {
            q35::build(&config, &mut ground.wiring)
        } else {
            pci::build(&pci::Config { ecam: config.ecam, window: WINDOW }, &mut ground.wiring)
        };
        let mut requesters = Vec::new();
        for _ in 0..2 {
            pci.add(&function(), &ground.wiring, |requester| {
                requesters.push(requester);
                Arc::new(Echo)
            });
        }
        (0..PORTS).for_each(|_| pci.add_port(&ground.wiring));
        pci.assign();
        for slot in [1u64, 2] {
            ground.wiring.mmio.write(ECAM + (slot << 15) + 4, &[7, 0]);
        }
        Bus { ground, pci, requesters, changed: false.into() }
    });
}
