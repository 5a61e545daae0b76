//! The port's saved state.

use crate::regs::{FIFO, Regs, fcr, ier, lsr, mcr};
use saved_state::{Error, Schema, malformed};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UartState {
    pub ier: u8,
    /// The enable and trigger bits.
    pub fcr: u8,
    pub lcr: u8,
    pub mcr: u8,
    pub scr: u8,
    pub divisor: u16,
    /// Received bytes, oldest first, each with its LSR error bits.
    pub received: Vec<(u8, u8)>,
    pub overrun: bool,
    /// MSR bits 0 to 3.
    pub modem_changed: u8,
    /// A THR empty interrupt was not yet identified.
    pub thr_empty: bool,
}

impl Schema for UartState {
    const KIND: &'static str = "uart-16550a";
    const VERSION: u16 = 1;
}

impl Regs {
    pub(crate) fn save(&self) -> UartState {
        UartState {
            ier: self.ier,
            fcr: self.fcr,
            lcr: self.lcr,
            mcr: self.mcr,
            scr: self.scr,
            divisor: self.divisor,
            received: self.rx.iter().copied().collect(),
            overrun: self.overrun,
            modem_changed: self.changed,
            thr_empty: self.thr_empty,
        }
    }

    pub(crate) fn restore(state: UartState) -> Result<Self, Error> {
        let refuse = |reason: &str| Err(malformed::<UartState>(reason));
        let depth = if state.fcr & fcr::ENABLE != 0 { FIFO } else { 1 };
        if state.received.len() > depth {
            return refuse("more received bytes than the FIFO holds");
        }
        if state.received.iter().any(|(_, errors)| errors & !lsr::BYTE_ERRORS != 0) {
            return refuse("a received byte has flags that are not errors");
        }
        if state.ier & !ier::ALL != 0
            || state.fcr & !fcr::KEPT != 0
            || state.mcr & !mcr::ALL != 0
            || state.modem_changed & !0xf != 0
        {
            return refuse("a register has bits that the chip has not");
        }
        let mut regs = Self::default();
        regs.ier = state.ier;
        regs.fcr = state.fcr;
        regs.lcr = state.lcr;
        regs.mcr = state.mcr;
        regs.scr = state.scr;
        regs.divisor = state.divisor;
        regs.rx.extend(state.received);
        regs.overrun = state.overrun;
        regs.changed = state.modem_changed;
        regs.thr_empty = state.thr_empty;
        Ok(regs)
    }
}
