//! Out to the neutral vCPU state and back.

use crate::{
    LocalApic,
    apic::{flag, lock},
    regs::*,
    timer::Mode,
    vectors::Isr,
};
use saved_state::{Error, malformed};
use std::sync::atomic::Ordering::SeqCst;
use vcpu_state::ApicState;
use x86_defs::msr::apic_base;

/// Everything of an APIC that a vCPU's state has a place for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Section `apic`.
    pub apic: ApicState,
    /// IA32_TSC_DEADLINE: `tsc.deadline`.
    pub deadline: u64,
    /// Posted and not yet taken: `mp` becomes `MpState::Init`.
    pub init: bool,
    /// `events.nmi_pending`.
    pub nmi: bool,
    /// `events.sipi`.
    pub sipi: Option<u8>,
}

fn words(page: &[u32], at: usize) -> [u32; 8] {
    std::array::from_fn(|i| page.get(at + i).copied().unwrap_or(0))
}

impl LocalApic {
    /// As after power-on.
    pub fn reset(&self) {
        let bsp = if self.id == 0 { apic_base::BSP } else { 0 };
        self.base.store(apic_base::DEFAULT | apic_base::ENABLE | bsp, SeqCst);
        self.flags.store(0, SeqCst);
        self.sipi.store(0, SeqCst);
        self.init();
    }

    /// The vCPU is stopped.
    pub fn save(&self) -> Saved {
        let regs = lock(&self.regs);
        let base = self.base.load(SeqCst);
        let mut page = regs.page();
        let x2apic = base & apic_base::X2APIC != 0;
        page[reg::ID] = if x2apic { self.id } else { self.id << 24 };
        page[reg::TPR] = self.tpr.load(SeqCst);
        page[reg::PPR] = self.ppr.load(SeqCst);
        page[reg::TMR..reg::IRR].copy_from_slice(&self.tmr.words());
        page[reg::IRR..reg::ESR].copy_from_slice(&self.irr.words());
        let now = self.clock.now_ns();
        page[reg::CURRENT_COUNT] = regs.current_count(now);
        let timer_left_ns = match regs.timer_mode() {
            Mode::Deadline => None,
            _ => regs.expiry.map(|at| at.saturating_sub(now)),
        };
        let flags = self.flags.load(SeqCst);
        Saved {
            apic: ApicState { base, regs: page.to_vec(), timer_left_ns },
            deadline: regs.deadline,
            init: flags & flag::INIT != 0,
            nmi: flags & flag::NMI != 0,
            sipi: (flags & flag::SIPI != 0).then(|| self.sipi.load(SeqCst)),
        }
    }

    /// Validates and then changes. Registers that this APIC has not, and bits that it does not
    /// keep, are left out: another engine's APIC may have them.
    pub fn restore(&self, saved: &Saved) -> Result<(), Error> {
        let refuse = |reason: &str| Err(malformed::<ApicState>(reason));
        let ApicState { base, regs: page, timer_left_ns } = &saved.apic;
        let x2apic = base & apic_base::X2APIC != 0;
        if page.len() != ApicState::REGS {
            return refuse("a page has 64 registers");
        }
        if x2apic && base & apic_base::ENABLE == 0 {
            return refuse("x2APIC mode of a disabled APIC");
        }
        let id = if x2apic { page[reg::ID] } else { page[reg::ID] >> 24 };
        if id != if x2apic { self.id } else { self.id & 0xff } {
            return refuse("the APIC ID is another vCPU's");
        }
        let (isr, irr) = (words(page, reg::ISR), words(page, reg::IRR));
        if (isr[0] | irr[0]) & 0xffff != 0 {
            return refuse("a vector below 16 is requested or in service");
        }
        let mut new = Regs {
            isr: Isr(isr),
            ldr: if x2apic { x2apic_ldr(self.id) } else { page[reg::LDR] & 0xff00_0000 },
            dfr: page[reg::DFR] | 0x0fff_ffff,
            svr: page[reg::SVR] & svr::WRITABLE,
            esr: page[reg::ESR] & esr::ALL,
            icr: u64::from(page[reg::ICR] & ICR_LOW) | u64::from(page[reg::ICR_HIGH]) << 32,
            initial: page[reg::INITIAL_COUNT],
            divide: page[reg::DIVIDE] & 0xb,
            ..Regs::default()
        };
        for (index, entry) in page[reg::LVT..=reg::LVT_LAST].iter().enumerate() {
            new.write_lvt(index, *entry);
        }
        let now = self.clock.now_ns();
        if new.timer_mode() == Mode::Deadline {
            self.set_deadline(&mut new, saved.deadline);
        } else {
            new.expiry = timer_left_ns.map(|left| now.saturating_add(left));
        }
        self.commit(new, saved, irr);
        Ok(())
    }

    fn commit(&self, new: Regs, saved: &Saved, irr: [u32; 8]) {
        let page = &saved.apic.regs;
        let mut regs = lock(&self.regs);
        *regs = new;
        self.base.store(saved.apic.base, SeqCst);
        self.tpr.store(page.get(reg::TPR).map_or(0, |tpr| tpr & 0xff), SeqCst);
        self.tmr.set_words(words(page, reg::TMR));
        self.irr.set_words(irr);
        self.errors.store(0, SeqCst);
        self.sipi.store(saved.sipi.unwrap_or(0), SeqCst);
        let mut flags = 0;
        for (is, flag) in [
            (saved.init, flag::INIT),
            (saved.nmi, flag::NMI),
            (saved.sipi.is_some(), flag::SIPI),
            (irr != [0; 8], flag::IRR),
        ] {
            flags |= if is { flag } else { 0 };
        }
        self.flags.store(flags, SeqCst);
        self.derive(&regs);
        self.arm(&regs);
    }
}
