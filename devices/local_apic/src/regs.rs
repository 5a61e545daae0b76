//! Register numbers and the registers that only their own vCPU writes.

use crate::vectors::Isr;
use vcpu_state::ApicState;

/// Register numbers: MMIO offset divided by 16, x2APIC MSR less 0x800 (table 11-1, 11-6).
pub(crate) mod reg {
    pub const ID: usize = 0x02;
    pub const VERSION: usize = 0x03;
    pub const TPR: usize = 0x08;
    pub const APR: usize = 0x09;
    pub const PPR: usize = 0x0a;
    pub const EOI: usize = 0x0b;
    pub const RRD: usize = 0x0c;
    pub const LDR: usize = 0x0d;
    pub const DFR: usize = 0x0e;
    pub const SVR: usize = 0x0f;
    pub const ISR: usize = 0x10;
    pub const TMR: usize = 0x18;
    pub const IRR: usize = 0x20;
    pub const ESR: usize = 0x28;
    pub const ICR: usize = 0x30;
    pub const ICR_HIGH: usize = 0x31;
    /// The timer's entry, and the others.
    pub const LVT: usize = 0x32;
    pub const LVT_SECOND: usize = 0x33;
    pub const LVT_LAST: usize = 0x37;
    pub const INITIAL_COUNT: usize = 0x38;
    pub const CURRENT_COUNT: usize = 0x39;
    pub const DIVIDE: usize = 0x3e;
    /// x2APIC only.
    pub const SELF_IPI: usize = 0x3f;
}

/// Index of an entry of the local vector table.
pub(crate) mod lvt {
    pub const TIMER: usize = 0;
    pub const LINT0: usize = 3;
    pub const LINT1: usize = 4;
    pub const ERROR: usize = 5;
    pub const MASKED: u32 = 1 << 16;
    /// Bits that software may write (figure 11-8).
    pub const WRITABLE: [u32; 6] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
}

pub(crate) mod svr {
    pub const ENABLE: u32 = 1 << 8;
    /// Vector, enable, focus checking.
    pub const WRITABLE: u32 = 0x3ff;
}

/// Error status (11.5.3).
pub(crate) mod esr {
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
    pub const ALL: u32 = 0xff;
}

/// Delivery modes of the ICR, the LVT and messages (11.5.1, 11.6.1).
pub(crate) mod mode {
    pub const FIXED: u32 = 0;
    pub const LOWEST: u32 = 1;
    pub const NMI: u32 = 4;
    pub const INIT: u32 = 5;
    pub const SIPI: u32 = 6;
    pub const EXTINT: u32 = 7;
}

/// ICR bits that exist in its low half, the delivery status apart.
pub(crate) const ICR_LOW: u32 = 0x000c_cfff;
/// Delivery status: never busy here.
pub(crate) const ICR_BUSY: u32 = 1 << 12;
/// Version 14H, six LVT entries.
pub(crate) const VERSION: u32 = 0x0005_0014;

#[derive(Clone, Debug)]
pub(crate) struct Regs {
    pub(crate) isr: Isr,
    pub(crate) ldr: u32,
    pub(crate) dfr: u32,
    pub(crate) svr: u32,
    /// What a read answers: latched by the last write.
    pub(crate) esr: u32,
    pub(crate) icr: u64,
    pub(crate) lvt: [u32; 6],
    pub(crate) initial: u32,
    pub(crate) divide: u32,
    /// Guest nanoseconds of the timer's next expiry.
    pub(crate) expiry: Option<u64>,
    /// IA32_TSC_DEADLINE.
    pub(crate) deadline: u64,
}

impl Default for Regs {
    fn default() -> Self {
        Self {
            isr: Isr::default(),
            ldr: 0,
            dfr: !0,
            svr: 0xff,
            esr: 0,
            icr: 0,
            lvt: [lvt::MASKED; 6],
            initial: 0,
            divide: 0,
            expiry: None,
            deadline: 0,
        }
    }
}

impl Regs {
    pub(crate) fn software_enabled(&self) -> bool {
        self.svr & svr::ENABLE != 0
    }

    /// An entry, if it is not masked.
    pub(crate) fn unmasked(&self, index: usize) -> Option<u32> {
        self.lvt.get(index).copied().filter(|entry| entry & lvt::MASKED == 0)
    }

    /// While the APIC is disabled by software, mask bits stay set (11.4.7.2).
    pub(crate) fn write_lvt(&mut self, index: usize, value: u32) {
        let masked = if self.software_enabled() { 0 } else { lvt::MASKED };
        if let (Some(entry), Some(writable)) = (self.lvt.get_mut(index), lvt::WRITABLE.get(index)) {
            *entry = value & writable | masked;
        }
    }

    pub(crate) fn write_svr(&mut self, value: u32) {
        self.svr = value & svr::WRITABLE;
        if !self.software_enabled() {
            self.lvt.iter_mut().for_each(|entry| *entry |= lvt::MASKED);
        }
    }

    /// Processor priority (11.8.3.1).
    pub(crate) fn ppr(&self, tpr: u32) -> u32 {
        let serving = u32::from(self.isr.highest().unwrap_or(0)) & 0xf0;
        if tpr & 0xf0 >= serving { tpr } else { serving }
    }

    /// The registers as the page lays them out; those of [`crate::LocalApic`]'s atomics
    /// excepted.
    pub(crate) fn page(&self) -> [u32; ApicState::REGS] {
        let mut page = [0; ApicState::REGS];
        page[reg::VERSION] = VERSION;
        page[reg::LDR] = self.ldr;
        page[reg::DFR] = self.dfr;
        page[reg::SVR] = self.svr;
        page[reg::ISR..reg::ISR + 8].copy_from_slice(&self.isr.0);
        page[reg::ESR] = self.esr;
        page[reg::ICR] = self.icr as u32;
        page[reg::ICR_HIGH] = (self.icr >> 32) as u32;
        page[reg::LVT..=reg::LVT_LAST].copy_from_slice(&self.lvt);
        page[reg::INITIAL_COUNT] = self.initial;
        page[reg::DIVIDE] = self.divide;
        page
    }
}

/// The logical ID that x2APIC mode derives from the APIC ID (11.12.10.2).
pub(crate) fn x2apic_ldr(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 0xf)
}
