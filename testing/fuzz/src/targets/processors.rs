//! Registers for CPUs that come and go, and the local APICs of those that are there.

use crate::{
    ground::{Board, Ground, RAM, drive},
    input::Input,
};
use ::chipset::{Chipset, Config, cpus::PORTS, gpe::BLOCK};
use ::local_apic::{ApicBus, LocalApic, Parts, Pending, TscClock};
use device::{Clock, Device, Msi, MsiSink, fake::FakeTime};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

const START: u32 = 2;
const MOST: u32 = 5;

struct Hot {
    ground: Ground,
    chipset: Chipset,
}

const REGISTERS: &[u16] =
    &[PORTS, PORTS + 4, PORTS + 5, PORTS + 8, BLOCK, BLOCK + 2, BLOCK + 1, PORTS + 1];

impl Hot {
    /// An operating system that has the event, as ACPI's code does it.
    fn scan(&self, input: &mut Input<'_>) {
        let pio = &self.ground.wiring.pio;
        let out = |port: u16, value: u32, len: usize| pio.write(port, &value.to_le_bytes()[..len]);
        out(BLOCK + 2, 4, 2);
        out(BLOCK, 4, 2);
        out(PORTS, input.below(u64::from(MOST) + 2) as u32, 4);
        out(PORTS + 5, u32::from(input.u8() & 3), 1);
        let mut flags = [0];
        pio.read(PORTS + 4, &mut flags);
        let over = if input.flag() { flags[0] & 6 } else { input.u8() };
        out(PORTS + 4, over.into(), 1);
        out(PORTS + 5, input.pick(&[1, 2, 2, 2]), 1);
        out(PORTS + 8, input.pick(&[0, 0, 1, 3, 0x80, 0x82, 0x84]), 4);
    }
}

impl Board for Hot {
    fn ground(&self) -> &Ground {
        &self.ground
    }

    fn ports(&self) -> &[u16] {
        REGISTERS
    }

    fn act(&self, input: &mut Input<'_>) {
        let Some(cpus) = &self.chipset.cpus else { return };
        match input.u8() & 3 {
            0 => {
                let count = input.below(u64::from(MOST) + 1) as u32;
                let fails = input.below(16) as u32;
                let _ = cpus.set_count(count, |id| {
                    assert!(id > 0 && id < MOST && !cpus.is_present(id), "CPU {id} comes");
                    if id == fails { Err(()) } else { Ok(()) }
                });
            }
            1 => {
                let ejected = cpus.take_ejected();
                let different: BTreeSet<_> = ejected.iter().copied().collect();
                assert_eq!(different.len(), ejected.len(), "each is told once");
                assert!(ejected.iter().all(|id| (1..MOST).contains(id)), "the first one stays");
            }
            _ => self.scan(input),
        }
        cpus.wait(Duration::ZERO);
        assert!(cpus.is_present(0), "the first one stays");
    }
}

pub(super) fn hot_plug(data: &[u8]) {
    drive(data, || {
        let mut ground = Ground::new();
        ground.map(RAM);
        let config = Config { cpus: Some((START, MOST)), ..Config::default() };
        let chipset = ::chipset::build(&config, &mut ground.wiring);
        Hot { ground, chipset }
    });
}

/// The TSC is guest time.
struct Same;

impl TscClock for Same {
    fn tsc_to_ns(&self, _: u32, tsc: u64) -> u64 {
        tsc
    }
}

const APICS: u32 = 4;
const STEPS: usize = 256;
/// Registers that do something, by their offset in the page.
const OFFSETS: [u64; 22] = [
    0x20, 0x30, 0x80, 0xb0, 0xd0, 0xe0, 0xf0, 0x280, 0x2f0, 0x300, 0x300, 0x310, 0x320, 0x330,
    0x340, 0x350, 0x360, 0x370, 0x380, 0x390, 0x3e0, 0x3f0,
];
/// IA32_APIC_BASE, IA32_TSC_DEADLINE.
const BASE: u32 = 0x1b;
const DEADLINE: u32 = 0x6e0;
const X2APIC: u32 = 0x800;

struct Apics {
    time: FakeTime,
    bus: Arc<ApicBus>,
    ended: Arc<Mutex<Vec<u8>>>,
}

impl Apics {
    fn new() -> Self {
        let time = FakeTime::default();
        let ended: Arc<Mutex<Vec<u8>>> = Arc::default();
        let bus = ApicBus::new(Parts {
            vcpus: APICS,
            clock: Arc::new(time.clone()),
            timers: Arc::new(time.clone()),
            tsc: Arc::new(Same),
            wake: Box::new(|id| assert!(id < APICS, "there is no CPU {id}")),
        });
        let heard = ended.clone();
        bus.on_eoi(Box::new(move |vector| heard.lock().expect("no panic").push(vector)));
        Self { time, bus, ended }
    }

    fn access(&self, apic: &LocalApic, input: &mut Input<'_>) {
        let offset = if input.u8() < 0xf0 { input.pick(&OFFSETS) } else { input.below(0x1000) };
        let value = match offset {
            // A command: to where, and what.
            0x300 => {
                apic.mmio_write(0x310, &u32::to_le_bytes(input.u32()));
                u64::from(input.u32()) & 0xc_dfff
            }
            _ => input.number(),
        };
        match input.u8() & 7 {
            0..=2 => apic.mmio_write(offset, &(value as u32).to_le_bytes()),
            3 => {
                let mut data = [0; 8];
                apic.mmio_read(offset, &mut data[..input.pick(&[1, 2, 4, 8])]);
            }
            4 => {
                let base = input.pick(&[0xfee0_0800, 0xfee0_0c00, 0xfee0_0000, 0xd000_0800]);
                let _ = apic.wrmsr(BASE, if input.flag() { base } else { value });
            }
            5 => drop(apic.wrmsr(DEADLINE, self.time.now_ns().wrapping_add(value))),
            6 => drop(apic.wrmsr(X2APIC + (offset >> 4) as u32, value)),
            _ => drop(apic.rdmsr(X2APIC + (offset >> 4) as u32)),
        }
    }

    /// What is pending is there, of a vector that can be, and of the highest class.
    fn take(apic: &LocalApic, pic: bool) {
        let Some(what) = apic.pending(pic) else { return };
        let vector = apic.ack(what, || pic.then_some(0x20));
        if what == Pending::Interrupt {
            assert!(vector.is_some_and(|vector| vector >= 16), "{what:?} has {vector:?}");
        }
    }

    /// Into others and out of them again.
    fn moves(&self) -> Self {
        let other = Self::new();
        other.time.advance(self.time.now_ns());
        for (from, to) in self.bus.apics().iter().zip(other.bus.apics()) {
            let saved = from.save();
            to.restore(&saved).expect("what was saved is restored");
            assert_eq!(to.save(), saved, "what was restored is what was saved");
        }
        other
    }

    /// As somebody made it: it is refused and nothing changes, or the APIC goes on with it.
    fn tamper(apic: &LocalApic, input: &mut Input<'_>) {
        let before = apic.save();
        let mut saved = before.clone();
        for _ in 0..=input.u8() & 3 {
            let at = input.below(saved.apic.regs.len() as u64) as usize;
            if let Some(word) = saved.apic.regs.get_mut(at) {
                *word = input.number() as u32;
            }
        }
        match input.u8() & 7 {
            0 => saved.apic.base = input.number(),
            1 => saved.apic.timer_left_ns = Some(input.number()),
            2 => saved.apic.regs.truncate(usize::from(input.u8())),
            3 => saved.deadline = input.number(),
            _ => saved.sipi = Some(input.u8()),
        }
        if apic.restore(&saved).is_err() {
            assert_eq!(apic.save(), before, "what was refused changes nothing");
        }
    }
}

pub(super) fn local_apic(data: &[u8]) {
    let mut input = Input::new(data);
    let mut apics = Apics::new();
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let (what, id) = (input.u8() & 0x1f, input.below(APICS.into()) as u32);
        let Some(apic) = apics.bus.apic(id).cloned() else { continue };
        match what {
            0..=14 => apics.access(&apic, &mut input),
            15..=18 => Apics::take(&apic, input.flag()),
            19..=21 => {
                let address = 0xfee0_0000 | u64::from(input.u32()) & 0xf_f00c;
                apics.bus.send(Msi { address, data: u32::from(input.u16()) });
            }
            22 => apic.pulse_lint(usize::from(input.u8() & 1)),
            23 => apic.nmi(),
            24 => apic.set_cr8(input.u8()),
            25..=27 => apics.time.advance(u64::from(input.u16()) << (input.u8() & 7)),
            28 => apic.reset(),
            29 => apics.bus.reset(),
            30 => Apics::tamper(&apic, &mut input),
            _ => apics = apics.moves(),
        }
        apics.ended.lock().expect("no panic").clear();
    }
}
