//! Registers by MMIO and MSR (tables 11-1 and 11-6), and IA32_APIC_BASE.

use crate::{GeneralProtection, LocalApic, apic::lock, ipi, regs::*};
use std::sync::atomic::Ordering::SeqCst;
use x86_defs::msr::{self, apic_base};

/// Physical address bits of the base; those above the model's width are the engine's check.
const BASE_WRITABLE: u64 =
    apic_base::ADDRESS | apic_base::BSP | apic_base::X2APIC | apic_base::ENABLE;

/// What a register write leaves to be done without the lock.
#[derive(Default)]
struct After {
    /// A vector whose service ended.
    eoi: Option<u8>,
    ipi: Option<(u32, u32)>,
    error: u32,
}

impl LocalApic {
    /// The offset into the APIC's page, if `gpa` is there and the page is.
    pub fn mmio_offset(&self, gpa: u64) -> Option<u64> {
        let base = self.base.load(SeqCst);
        (self.has_page() && (gpa ^ base) & !0xfff == 0).then_some(gpa & 0xfff)
    }

    fn has_page(&self) -> bool {
        let base = self.base.load(SeqCst);
        base & (apic_base::ENABLE | apic_base::X2APIC) == apic_base::ENABLE
    }

    /// Accesses that are not aligned 32-bit ones are undefined (11.4.1): here a smaller read
    /// gives the register's bytes, a larger one ends in zeros, and a write does nothing.
    /// The page answers in xAPIC mode only; the caller found it by [`Self::mmio_offset`].
    pub fn mmio_read(&self, offset: u64, data: &mut [u8]) {
        if !self.has_page() {
            return;
        }
        let register = (offset >> 4 & 0xff) as usize;
        let within = (offset & 0xf) as usize;
        let bytes = match self.read_register(register, false) {
            Some(value) => value.to_le_bytes(),
            None => {
                self.error(esr::ILLEGAL_REGISTER);
                [0; 4]
            }
        };
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = bytes.get(within + i).copied().unwrap_or(0);
        }
    }

    pub fn mmio_write(&self, offset: u64, data: &[u8]) {
        if offset & 0xf != 0 || !self.has_page() {
            return;
        }
        let Ok(bytes) = <[u8; 4]>::try_from(data) else { return };
        let register = (offset >> 4 & 0xff) as usize;
        self.write_register(register, u32::from_le_bytes(bytes), false);
    }

    /// IA32_APIC_BASE, IA32_TSC_DEADLINE and the x2APIC's registers.
    pub fn rdmsr(&self, index: u32) -> Result<u64, GeneralProtection> {
        match index {
            msr::IA32_APIC_BASE => Ok(self.base.load(SeqCst)),
            msr::IA32_TSC_DEADLINE => Ok(lock(&self.regs).deadline),
            _ => {
                let register = self.x2apic_register(index)?;
                if register == reg::ICR {
                    return Ok(lock(&self.regs).icr);
                }
                let value = self.read_register(register, true).ok_or(GeneralProtection)?;
                Ok(value.into())
            }
        }
    }

    pub fn wrmsr(&self, index: u32, value: u64) -> Result<(), GeneralProtection> {
        match index {
            msr::IA32_APIC_BASE => self.write_base(value),
            msr::IA32_TSC_DEADLINE => {
                let mut regs = lock(&self.regs);
                self.set_deadline(&mut regs, value);
                self.arm(&regs);
                drop(regs);
                // A deadline that has passed interrupts at once.
                self.timer_fired(self.clock.now_ns());
                Ok(())
            }
            _ => {
                let register = self.x2apic_register(index)?;
                self.write_x2apic(register, value)
            }
        }
    }

    fn x2apic_register(&self, index: u32) -> Result<usize, GeneralProtection> {
        if self.base.load(SeqCst) & apic_base::X2APIC == 0 {
            return Err(GeneralProtection);
        }
        let register = index.checked_sub(msr::X2APIC_FIRST).ok_or(GeneralProtection)?;
        usize::try_from(register).map_err(|_| GeneralProtection)
    }

    /// Reserved bits and read-only registers raise #GP (11.12.1.3).
    fn write_x2apic(&self, register: usize, value: u64) -> Result<(), GeneralProtection> {
        let allowed: u64 = match register {
            reg::TPR | reg::SELF_IPI => 0xff,
            reg::EOI | reg::ESR => 0,
            reg::SVR => svr::WRITABLE.into(),
            reg::ICR => u64::from(ICR_LOW | ICR_BUSY) | 0xffff_ffff << 32,
            // Status bits that are read-only are ignored.
            reg::LVT..=reg::LVT_LAST => {
                let writable = lvt::WRITABLE.get(register - reg::LVT).copied().unwrap_or(0);
                u64::from(writable) | 0x5000
            }
            reg::INITIAL_COUNT => 0xffff_ffff,
            reg::DIVIDE => 0xb,
            _ => return Err(GeneralProtection),
        };
        if value & !allowed != 0 {
            return Err(GeneralProtection);
        }
        if register == reg::ICR {
            lock(&self.regs).icr = value & !u64::from(ICR_BUSY);
            self.send(value as u32, (value >> 32) as u32, true);
        } else {
            self.write_register(register, value as u32, true);
        }
        Ok(())
    }

    /// `None` if there is no such register, or it cannot be read.
    fn read_register(&self, register: usize, x2apic: bool) -> Option<u32> {
        let value = match register {
            reg::ID if x2apic => self.id,
            reg::ID => self.id << 24,
            reg::TPR => self.tpr.load(SeqCst),
            reg::PPR => self.ppr.load(SeqCst),
            reg::EOI if x2apic => return None,
            reg::APR | reg::RRD | reg::DFR | reg::ICR_HIGH if x2apic => return None,
            reg::EOI | reg::APR | reg::RRD => 0,
            reg::TMR..reg::IRR => self.tmr.word(register - reg::TMR),
            reg::IRR..reg::ESR => self.irr.word(register - reg::IRR),
            reg::CURRENT_COUNT => lock(&self.regs).current_count(self.clock.now_ns()),
            reg::VERSION
            | reg::LDR..reg::TMR
            | reg::ESR
            | reg::ICR..=reg::INITIAL_COUNT
            | reg::DIVIDE => *lock(&self.regs).page().get(register)?,
            _ => return None,
        };
        Some(value)
    }

    fn write_register(&self, register: usize, value: u32, x2apic: bool) {
        let mut after = After::default();
        let mut regs = lock(&self.regs);
        match register {
            reg::TPR => self.tpr.store(value & 0xff, SeqCst),
            reg::EOI => after.eoi = self.end_of_interrupt(&mut regs),
            reg::LDR if !x2apic => regs.ldr = value & 0xff00_0000,
            reg::DFR if !x2apic => regs.dfr = value | 0x0fff_ffff,
            reg::SVR => regs.write_svr(value),
            reg::ESR => regs.esr = self.errors.swap(0, SeqCst),
            reg::ICR => {
                regs.icr = regs.icr >> 32 << 32 | u64::from(value & ICR_LOW);
                after.ipi = Some((value & ICR_LOW, (regs.icr >> 56) as u32));
            }
            reg::ICR_HIGH => {
                regs.icr = regs.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32;
            }
            reg::LVT => regs.write_lvt_timer(value),
            reg::LVT_SECOND..=reg::LVT_LAST => regs.write_lvt(register - reg::LVT, value),
            reg::INITIAL_COUNT => regs.write_initial(value, self.clock.now_ns()),
            reg::DIVIDE => regs.write_divide(value, self.clock.now_ns()),
            reg::SELF_IPI if x2apic => after.ipi = Some((1 << 18 | value & 0xff, 0)),
            reg::ID | reg::VERSION | reg::PPR | reg::APR | reg::RRD => {}
            reg::LDR..=reg::ESR | reg::CURRENT_COUNT => {}
            _ => after.error = esr::ILLEGAL_REGISTER,
        }
        match register {
            reg::TPR | reg::EOI => self.update_ppr(&regs),
            reg::LVT | reg::INITIAL_COUNT | reg::DIVIDE => self.arm(&regs),
            reg::LDR..=reg::SVR | reg::LVT..=reg::LVT_LAST => self.derive(&regs),
            _ => {}
        }
        drop(regs);
        if after.error != 0 {
            self.error(after.error);
        }
        if let Some(vector) = after.eoi
            && let Some(bus) = self.bus.upgrade()
        {
            bus.end_of_interrupt(vector);
        }
        if let Some((low, dest)) = after.ipi {
            self.send(low, dest, false);
        }
    }

    /// Ends the service of the highest vector; that vector if IOAPICs must hear of it (11.8.5).
    fn end_of_interrupt(&self, regs: &mut Regs) -> Option<u8> {
        let vector = regs.isr.highest()?;
        regs.isr.remove(vector);
        self.tmr.contains(vector).then_some(vector)
    }

    fn send(&self, low: u32, dest: u32, wide: bool) {
        let Some(message) = ipi::from_icr(self.id, low, dest, wide) else { return };
        if matches!(message.mode, mode::FIXED | mode::LOWEST) && message.vector < 16 {
            return self.error(esr::SEND_ILLEGAL_VECTOR);
        }
        if let Some(bus) = self.bus.upgrade() {
            bus.deliver(&message);
        }
    }

    /// The transitions of figure 11-27 and table 11-5.
    fn write_base(&self, value: u64) -> Result<(), GeneralProtection> {
        const MODE: u64 = apic_base::ENABLE | apic_base::X2APIC;
        const XAPIC: u64 = apic_base::ENABLE;
        let old = self.base.load(SeqCst);
        let legal = match (old & MODE, value & MODE) {
            (_, apic_base::X2APIC) => false,
            (from, to) if from == to => true,
            (0, to) => to == XAPIC,
            (XAPIC, _) => true,
            (MODE, to) => to == 0,
            _ => false,
        };
        if !legal || value & !BASE_WRITABLE != 0 {
            return Err(GeneralProtection);
        }
        self.base.store(value, SeqCst);
        if value & MODE == 0 && old & MODE != 0 {
            // Enabled again, it is as after power-on.
            self.init();
            return Ok(());
        }
        let mut regs = lock(&self.regs);
        if old & MODE == XAPIC && value & MODE == MODE {
            regs.ldr = x2apic_ldr(self.id);
            regs.dfr = !0;
            regs.icr &= 0xffff_ffff;
        }
        self.derive(&regs);
        Ok(())
    }
}
