//! The PC board of the machine that leads: the same devices as any machine's, called on the
//! vCPU's own thread, by a time that stands still while the vCPU runs.

use chipset::{Chipset, Pic};
use device::{
    Clock, MmioBus, PioBus, PowerEvent, PowerSink, Wiring,
    fake::{FakeTime, Recorder},
};
use engine::{ClockSample, Flow, GeneralProtection, Pending, VcpuHost};
use guest_mem::GuestMem;
use local_apic::{ApicBus, LocalApic, TscClock};
use pv_kvm::PvKvm;
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::SeqCst},
};

/// One nanosecond of guest time is one tick of its TSC.
pub const TSC_KHZ: u32 = 1_000_000;
/// 2026-01-01, for the clock that runs on batteries.
const EPOCH_NS: u64 = 1_767_225_600_000_000_000;

/// What the guest printed, and what it asked of its machine.
#[derive(Debug, Default)]
pub struct Told {
    console: Mutex<Vec<u8>>,
    power: Mutex<Option<PowerEvent>>,
}

impl Told {
    pub fn console(&self) -> String {
        let bytes = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub fn power(&self) -> Option<PowerEvent> {
        *self.power.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl byte_stream::Output for Told {
    fn write(&self, bytes: &[u8]) {
        self.console.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
    }
}

impl PowerSink for Told {
    fn request(&self, event: PowerEvent) {
        *self.power.lock().unwrap_or_else(PoisonError::into_inner) = Some(event);
    }
}

/// The vCPU's TSC is ahead of guest time by what the guest made it.
#[derive(Debug, Default)]
struct Offset(AtomicU64);

impl TscClock for Offset {
    fn tsc_to_ns(&self, _: u32, tsc: u64) -> u64 {
        let ns = tsc.wrapping_sub(self.0.load(SeqCst));
        if ns as i64 <= 0 { 0 } else { ns }
    }
}

pub struct Board {
    time: FakeTime,
    /// How often the TSC was read since time stood still: so often it has ticked.
    reads: u64,
    offset: Arc<Offset>,
    pio: PioBus,
    mmio: MmioBus,
    chipset: Chipset,
    apic: Arc<LocalApic>,
    pv: Arc<PvKvm>,
    random: u64,
    pub told: Arc<Told>,
    /// Holds the APIC.
    _bus: Arc<ApicBus>,
}

impl std::fmt::Debug for Board {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Board").field("time", &self.time).finish_non_exhaustive()
    }
}

impl Board {
    pub fn new(memory: &Arc<GuestMem>, size: u64) -> Result<Self, super::Error> {
        let mut time = FakeTime::default();
        time.epoch_ns = EPOCH_NS;
        let (told, offset) = (Arc::<Told>::default(), Arc::<Offset>::default());
        let bus = ApicBus::new(local_apic::Parts {
            vcpus: 1,
            clock: Arc::new(time.clone()),
            timers: Arc::new(time.clone()),
            tsc: offset.clone(),
            // Whoever runs the vCPU asks again after each callback, and after time has gone on.
            wake: Box::new(|_| {}),
        });
        let mut wiring: Wiring = device::fake::wiring(&time, &Arc::<Recorder>::default());
        wiring.memory = memory.clone();
        wiring.power = told.clone();
        wiring.msi = bus.clone();
        let config = chipset::Config { memory_low: size, ..chipset::Config::default() };
        let chipset = chipset::build(&config, &mut wiring);
        let ioapic = Arc::downgrade(&chipset.ioapic);
        bus.on_eoi(Box::new(move |vector| {
            if let Some(ioapic) = ioapic.upgrade() {
                ioapic.eoi(vector);
            }
        }));
        i8042::build(false, &mut wiring);
        uart::build(&uart::Config::COM1, told.clone(), &mut wiring);
        let clock = time.clone();
        let sample = move || {
            let ns = clock.now_ns();
            let realtime_ns = clock.realtime_ns();
            ClockSample { guest_ns: ns, tsc: ns, khz: TSC_KHZ, realtime_ns }
        };
        let pv = PvKvm::new(memory.clone(), Arc::new(sample), pv_kvm::Features::all(), 1);
        let apic = bus.apic(0).ok_or("a bus without an APIC")?.clone();
        apic.set_virtual_wire();
        let Wiring { pio, mmio, .. } = wiring;
        let (reads, random) = (0, 1);
        Ok(Self { time, reads, offset, pio, mmio, chipset, apic, pv, random, told, _bus: bus })
    }

    /// The vCPU has retired so many instructions.
    pub fn advance(&mut self, instructions: u64) {
        self.reads = 0;
        self.time.advance(instructions);
    }

    /// The last reading of the TSC was nobody's.
    pub fn unread(&mut self) {
        self.reads = self.reads.saturating_sub(1);
    }

    /// The vCPU is halted: time goes on to what may wake it. False if nothing will.
    pub fn idle(&mut self) -> bool {
        if self.pending().is_some() {
            return true;
        }
        let now = self.time.now_ns();
        let next = self.time.next();
        if let Some(next) = next {
            self.advance(next.saturating_sub(now).max(1));
        }
        next.is_some()
    }

    /// The pages that the guest named by these MSRs: what a callback may have written.
    pub fn named_by(index: u32, value: u64) -> Option<(u64, usize)> {
        use x86_defs::msr;
        match index {
            msr::KVM_WALL_CLOCK | msr::KVM_WALL_CLOCK_NEW => Some((value, 12)),
            msr::KVM_SYSTEM_TIME | msr::KVM_SYSTEM_TIME_NEW if value & 1 != 0 => {
                Some((value & !1, 32))
            }
            msr::KVM_STEAL_TIME if value & 1 != 0 => Some((value & !63, 64)),
            _ => None,
        }
    }

    fn flow(&self) -> Flow {
        if self.told.power().is_some() { Flow::Stop } else { Flow::Continue }
    }

    fn pic(&self) -> &Pic {
        &self.chipset.pic
    }
}

impl VcpuHost for Board {
    fn pio_in(&mut self, port: u16, size: usize, data: &mut [u8]) -> Flow {
        data.chunks_mut(size.max(1)).for_each(|operand| self.pio.read(port, operand));
        self.flow()
    }

    fn pio_out(&mut self, port: u16, size: usize, data: &[u8]) -> Flow {
        data.chunks(size.max(1)).for_each(|operand| self.pio.write(port, operand));
        self.flow()
    }

    fn mmio_read(&mut self, gpa: u64, data: &mut [u8]) -> Flow {
        match self.apic.mmio_offset(gpa) {
            Some(offset) => self.apic.mmio_read(offset, data),
            None => self.mmio.read(gpa, data),
        }
        self.flow()
    }

    fn mmio_write(&mut self, gpa: u64, data: &[u8]) -> Flow {
        match self.apic.mmio_offset(gpa) {
            Some(offset) => self.apic.mmio_write(offset, data),
            None => self.mmio.write(gpa, data),
        }
        self.flow()
    }

    fn rdmsr(&mut self, index: u32, value: &mut u64) -> Result<Flow, GeneralProtection> {
        *value = match self.pv.rdmsr(0, index) {
            Some(result) => result?,
            None => self.apic.rdmsr(index).map_err(|_| GeneralProtection)?,
        };
        Ok(Flow::Continue)
    }

    fn wrmsr(&mut self, index: u32, value: u64) -> Result<Flow, GeneralProtection> {
        match self.pv.wrmsr(0, index, value) {
            Some(result) => result?,
            None => self.apic.wrmsr(index, value).map_err(|_| GeneralProtection)?,
        }
        Ok(Flow::Continue)
    }

    fn pending(&self) -> Option<Pending> {
        Some(match self.apic.pending(self.pic().pending())? {
            local_apic::Pending::Init => Pending::Init,
            local_apic::Pending::Sipi => Pending::Sipi,
            local_apic::Pending::Nmi => Pending::Nmi,
            local_apic::Pending::Interrupt => Pending::Interrupt,
        })
    }

    fn ack(&mut self, what: Pending) -> Option<u8> {
        let what = match what {
            Pending::Init => local_apic::Pending::Init,
            Pending::Sipi => local_apic::Pending::Sipi,
            Pending::Nmi => local_apic::Pending::Nmi,
            Pending::Interrupt => local_apic::Pending::Interrupt,
            Pending::Personality => return None,
        };
        self.apic.ack(what, || self.pic().ack())
    }

    fn cr8(&mut self) -> u8 {
        self.apic.cr8()
    }

    fn set_cr8(&mut self, value: u8) -> Flow {
        self.apic.set_cr8(value);
        Flow::Continue
    }

    fn tsc(&mut self) -> u64 {
        self.reads += 1;
        self.time.now_ns() + self.reads
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.offset.0.store(offset, SeqCst);
        self.pv.set_tsc_offset(0, offset);
        self.apic.tsc_changed();
    }

    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        self.random ^ self.random >> 32
    }
}
