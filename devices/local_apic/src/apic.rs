//! One local APIC: what others post to it, and what its vCPU takes.

use crate::{
    ApicBus, TscClock,
    ipi::Address,
    regs::{Regs, esr, lvt, mode, svr},
    vectors::VectorSet,
};
use device::{Clock, Timer};
use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst},
    },
};
use x86_defs::msr::apic_base;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a vCPU may take at its next boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    Init,
    Sipi,
    Nmi,
    Interrupt,
}

/// The access raises #GP(0) in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// Bits of [`LocalApic::flags`]: one word tells whether anything is to be done.
pub(crate) mod flag {
    pub const INIT: u32 = 1;
    pub const SIPI: u32 = 2;
    pub const NMI: u32 = 4;
    /// An ExtINT message came: the PIC has the vector.
    pub const EXTINT: u32 = 8;
    /// The IRR may not be empty.
    pub const IRR: u32 = 16;
    /// The PIC's INTR reaches the processor: through LINT0, or past a disabled APIC.
    pub const TAKES_PIC: u32 = 32;
}

pub struct LocalApic {
    pub(crate) id: u32,
    pub(crate) bus: Weak<ApicBus>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) tsc: Arc<dyn TscClock>,
    pub(crate) timer: OnceLock<Arc<dyn Timer>>,
    /// Attention, see [`flag`].
    pub(crate) flags: AtomicU32,
    pub(crate) sipi: AtomicU8,
    pub(crate) irr: VectorSet,
    pub(crate) tmr: VectorSet,
    pub(crate) tpr: AtomicU32,
    pub(crate) ppr: AtomicU32,
    /// SVR's enable bit and that of IA32_APIC_BASE.
    pub(crate) accepts: AtomicU32,
    /// An [`Address`].
    pub(crate) address: AtomicU64,
    pub(crate) base: AtomicU64,
    /// Errors since the ESR was last written.
    pub(crate) errors: AtomicU32,
    pub(crate) regs: Mutex<Regs>,
}

impl fmt::Debug for LocalApic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalApic")
            .field("id", &self.id)
            .field("base", &self.base)
            .field("flags", &self.flags)
            .field("regs", &lock(&self.regs))
            .finish_non_exhaustive()
    }
}

impl LocalApic {
    /// The APIC ID, which is also the vCPU's number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What the vCPU may take now, in the order of priority. `pic` is the level of the PIC's
    /// INTR where it leads to this vCPU. No lock, no side effect.
    pub fn pending(&self, pic: bool) -> Option<Pending> {
        let flags = self.flags.load(SeqCst);
        if flags & (flag::INIT | flag::SIPI | flag::NMI) != 0 {
            return Some(match flags {
                f if f & flag::INIT != 0 => Pending::Init,
                f if f & flag::SIPI != 0 => Pending::Sipi,
                _ => Pending::Nmi,
            });
        }
        let from_pic = pic && flags & (flag::TAKES_PIC | flag::EXTINT) != 0;
        let own = flags & flag::IRR != 0 && self.deliverable().is_some();
        (from_pic || own).then_some(Pending::Interrupt)
    }

    /// The vCPU takes `what`: the vector of an interrupt or SIPI, 2 for an NMI, 0 for INIT, or
    /// `None` if it is gone, and then nothing is taken. `pic` acknowledges the PIC if that is
    /// whose interrupt it is. The spurious vector (11.9) is for interrupts that vanish between
    /// request and acknowledgement, which `None` tells here. INIT puts the APIC into the state that INIT leaves (11.4.7.3).
    pub fn ack(&self, what: Pending, pic: impl FnOnce() -> Option<u8>) -> Option<u8> {
        match what {
            Pending::Init => self.take(flag::INIT).then(|| {
                self.init();
                0
            }),
            Pending::Sipi => self.take(flag::SIPI).then(|| self.sipi.load(SeqCst)),
            Pending::Nmi => self.take(flag::NMI).then_some(2),
            Pending::Interrupt => self.ack_interrupt(pic),
        }
    }

    fn take(&self, flag: u32) -> bool {
        self.flags.fetch_and(!flag, SeqCst) & flag != 0
    }

    fn ack_interrupt(&self, pic: impl FnOnce() -> Option<u8>) -> Option<u8> {
        // The 8259A is not subject to the priorities of the APIC (11.8.1).
        if self.flags.load(SeqCst) & (flag::TAKES_PIC | flag::EXTINT) != 0
            && let Some(vector) = pic()
        {
            self.take(flag::EXTINT);
            return Some(vector);
        }
        let vector = self.deliverable()?;
        let mut regs = lock(&self.regs);
        self.irr.remove(vector);
        regs.isr.insert(vector);
        self.update_ppr(&regs);
        drop(regs);
        self.take(flag::IRR);
        if self.irr.highest().is_some() {
            self.flags.fetch_or(flag::IRR, SeqCst);
        }
        Some(vector)
    }

    /// The vector in the IRR that the processor's priority lets through (11.8.3.1).
    fn deliverable(&self) -> Option<u8> {
        let vector = self.irr.highest()?;
        (u32::from(vector) & 0xf0 > self.ppr.load(SeqCst) & 0xf0).then_some(vector)
    }

    pub(crate) fn update_ppr(&self, regs: &Regs) {
        self.ppr.store(regs.ppr(self.tpr.load(SeqCst)), SeqCst);
    }

    /// The task priority as CR8 has it (11.8.6).
    pub fn cr8(&self) -> u8 {
        (self.tpr.load(SeqCst) >> 4) as u8 & 0xf
    }

    /// The engine asks [`Self::pending`] again afterwards.
    pub fn set_cr8(&self, value: u8) {
        let regs = lock(&self.regs);
        self.tpr.store(u32::from(value & 0xf) << 4, SeqCst);
        self.update_ppr(&regs);
    }

    /// A fixed interrupt arrives, from any thread.
    pub(crate) fn post(&self, vector: u8, level: bool) {
        const BOTH: u32 = 3;
        if vector < 16 {
            return self.error(esr::RECEIVE_ILLEGAL_VECTOR);
        }
        if self.accepts.load(SeqCst) != BOTH {
            return;
        }
        if level {
            self.tmr.insert(vector);
        } else {
            self.tmr.remove(vector);
        }
        if self.irr.insert(vector) {
            self.flag(flag::IRR);
        }
    }

    /// Raises a flag and wakes the vCPU.
    pub(crate) fn flag(&self, flag: u32) {
        self.flags.fetch_or(flag, SeqCst);
        if let Some(bus) = self.bus.upgrade() {
            bus.wake(self.id);
        }
    }

    /// A message of the bus that is for this APIC.
    pub(crate) fn receive(&self, mode: u32, vector: u8, level: bool) {
        match mode {
            mode::FIXED | mode::LOWEST => self.post(vector, level),
            mode::NMI => self.flag(flag::NMI),
            mode::INIT => {
                // A SIPI from before the INIT is forgotten.
                self.flags.fetch_and(!flag::SIPI, SeqCst);
                self.flag(flag::INIT);
            }
            mode::SIPI => {
                self.sipi.store(vector, SeqCst);
                self.flag(flag::SIPI);
            }
            mode::EXTINT => self.flag(flag::EXTINT),
            // System management mode is not there.
            _ => {}
        }
    }

    /// An NMI for this vCPU alone, from outside the guest.
    pub fn nmi(&self) {
        self.flag(flag::NMI);
    }

    /// A rising edge at LINT0 or LINT1, in the modes that are not ExtINT.
    pub fn pulse_lint(&self, pin: usize) {
        let Some(index) = lvt::LINT0.checked_add(pin).filter(|i| *i <= lvt::LINT1) else { return };
        let Some(entry) = lock(&self.regs).unmasked(index) else { return };
        match entry >> 8 & 7 {
            mode::EXTINT => {}
            mode => self.receive(mode, entry as u8, entry & 1 << 15 != 0),
        }
    }

    /// Records errors and raises the error interrupt (11.5.3). Not with the lock held.
    pub(crate) fn error(&self, bits: u32) {
        if self.errors.fetch_or(bits, SeqCst) & bits == bits {
            return;
        }
        let entry = lock(&self.regs).unmasked(lvt::ERROR);
        if let Some(entry) = entry.filter(|entry| entry & 0xff >= 16) {
            self.post(entry as u8, false);
        }
    }

    /// Brings up to date what is derived from the registers.
    pub(crate) fn derive(&self, regs: &Regs) {
        let base = self.base.load(SeqCst);
        let present = base & apic_base::ENABLE != 0;
        let x2apic = base & apic_base::X2APIC != 0;
        let logical = if x2apic { regs.ldr } else { regs.ldr >> 24 };
        let cluster = regs.dfr >> 28 == 0;
        self.address.store(Address { logical, x2apic, present, cluster }.pack(), SeqCst);
        let enabled = u32::from(regs.svr & svr::ENABLE != 0);
        self.accepts.store(enabled | u32::from(present) << 1, SeqCst);
        let extint = regs.unmasked(lvt::LINT0).is_some_and(|e| e >> 8 & 7 == mode::EXTINT);
        if extint || !present {
            self.flags.fetch_or(flag::TAKES_PIC, SeqCst);
        } else {
            self.flags.fetch_and(!flag::TAKES_PIC, SeqCst);
        }
        self.update_ppr(regs);
    }

    pub(crate) fn address(&self) -> Address {
        Address::unpack(self.address.load(SeqCst))
    }

    /// Everything but ID and base as after power-on.
    pub(crate) fn init(&self) {
        let mut regs = lock(&self.regs);
        *regs = Regs::default();
        if self.base.load(SeqCst) & apic_base::X2APIC != 0 {
            regs.ldr = crate::regs::x2apic_ldr(self.id);
        }
        self.irr.set_words([0; 8]);
        self.tmr.set_words([0; 8]);
        self.tpr.store(0, SeqCst);
        self.errors.store(0, SeqCst);
        self.flags.fetch_and(!(flag::IRR | flag::EXTINT), SeqCst);
        self.derive(&regs);
        self.arm(&regs);
    }

    /// What firmware leaves on the bootstrap processor: enabled, the PIC at LINT0, NMI at
    /// LINT1 ("virtual wire mode", MultiProcessor Specification 3.6.2.2).
    pub fn set_virtual_wire(&self) {
        let mut regs = lock(&self.regs);
        regs.write_svr(svr::ENABLE | 0xff);
        regs.write_lvt(lvt::LINT0, mode::EXTINT << 8);
        regs.write_lvt(lvt::LINT1, mode::NMI << 8);
        self.derive(&regs);
    }
}
