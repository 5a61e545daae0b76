//! The registers (SDM, 13): which there are, and what reading and writing them does.

use crate::{
    eeprom::{Eeprom, Wires},
    phy::{self, Phy},
    state::E1000State,
    stats,
};
use nic::Mac;

/// Offsets.
pub(crate) mod reg {
    pub const CTRL: u32 = 0x0000;
    pub const STATUS: u32 = 0x0008;
    pub const EECD: u32 = 0x0010;
    pub const EERD: u32 = 0x0014;
    pub const CTRL_EXT: u32 = 0x0018;
    pub const MDIC: u32 = 0x0020;
    pub const FCAL: u32 = 0x0028;
    pub const FCAH: u32 = 0x002c;
    pub const FCT: u32 = 0x0030;
    pub const VET: u32 = 0x0038;
    pub const ICR: u32 = 0x00c0;
    pub const ITR: u32 = 0x00c4;
    pub const ICS: u32 = 0x00c8;
    pub const IMS: u32 = 0x00d0;
    pub const IMC: u32 = 0x00d8;
    pub const RCTL: u32 = 0x0100;
    pub const FCTTV: u32 = 0x0170;
    pub const TXCW: u32 = 0x0178;
    pub const RXCW: u32 = 0x0180;
    pub const TCTL: u32 = 0x0400;
    pub const TIPG: u32 = 0x0410;
    pub const AIT: u32 = 0x0458;
    pub const LEDCTL: u32 = 0x0e00;
    pub const PBA: u32 = 0x1000;
    pub const FCRTL: u32 = 0x2160;
    pub const FCRTH: u32 = 0x2168;
    pub const RDBAL: u32 = 0x2800;
    pub const RDBAH: u32 = 0x2804;
    pub const RDLEN: u32 = 0x2808;
    pub const RDH: u32 = 0x2810;
    pub const RDT: u32 = 0x2818;
    pub const RDTR: u32 = 0x2820;
    pub const RXDCTL: u32 = 0x2828;
    pub const RADV: u32 = 0x282c;
    pub const RSRPD: u32 = 0x2c00;
    pub const TXDMAC: u32 = 0x3000;
    pub const TDBAL: u32 = 0x3800;
    pub const TDBAH: u32 = 0x3804;
    pub const TDLEN: u32 = 0x3808;
    pub const TDH: u32 = 0x3810;
    pub const TDT: u32 = 0x3818;
    pub const TIDV: u32 = 0x3820;
    pub const TXDCTL: u32 = 0x3828;
    pub const TADV: u32 = 0x382c;
    pub const TSPMT: u32 = 0x3830;
    pub const RXCSUM: u32 = 0x5000;
    pub const MTA: u32 = 0x5200;
    pub const RA: u32 = 0x5400;
    pub const VFTA: u32 = 0x5600;
    pub const WUC: u32 = 0x5800;
    pub const WUFC: u32 = 0x5808;
    pub const WUS: u32 = 0x5810;
    pub const IPAV: u32 = 0x5838;
    pub const IP4AT: u32 = 0x5840;
    pub const MANC: u32 = 0x5820;
}

/// Bits of CTRL.
pub(crate) mod ctrl {
    pub const RESET: u32 = 1 << 26;
    /// VLAN mode: tags are inserted and taken off.
    pub const VLAN: u32 = 1 << 30;
    pub const PHY_RESET: u32 = 1 << 31;
}

/// Bits of STATUS: full duplex, link, 1000 Mbit/s.
const STATUS_FULL_DUPLEX: u32 = 1;
const STATUS_LINK: u32 = 1 << 1;
const STATUS_1000: u32 = 2 << 6;

/// Causes of interrupts, bits of ICR.
pub(crate) mod cause {
    pub const TX_WRITTEN_BACK: u32 = 1;
    pub const TX_EMPTY: u32 = 1 << 1;
    pub const LINK: u32 = 1 << 2;
    pub const RX_FEW: u32 = 1 << 4;
    pub const RX_TIMER: u32 = 1 << 7;
    pub const MANAGEMENT: u32 = 1 << 9;
    pub const ALL: u32 = 0x0001_ffff;
}

/// A register that holds what was written to it, as far as it has these bits.
struct Plain {
    first: u32,
    /// Of how many in a row.
    count: u32,
    writable: u32,
    reset: u32,
}

const fn plain(first: u32, writable: u32) -> Plain {
    Plain { first, count: 1, writable, reset: 0 }
}

const fn table(first: u32, count: u32, writable: u32) -> Plain {
    Plain { first, count, writable, reset: 0 }
}

const fn with(first: u32, writable: u32, reset: u32) -> Plain {
    Plain { first, count: 1, writable, reset }
}

const PLAIN: &[Plain] = &[
    with(reg::CTRL, 0x7fff_ffff & !ctrl::RESET, 0x0000_0241),
    plain(reg::EERD, u32::MAX),
    plain(reg::CTRL_EXT, u32::MAX),
    plain(reg::MDIC, u32::MAX),
    plain(reg::FCAL, u32::MAX),
    plain(reg::FCAH, 0xffff),
    plain(reg::FCT, 0xffff),
    with(reg::VET, 0xffff, 0x8100),
    plain(reg::ITR, 0xffff),
    plain(reg::RCTL, 0x07df_fffe),
    plain(reg::FCTTV, 0xffff),
    plain(reg::TXCW, u32::MAX),
    plain(reg::RXCW, 0),
    plain(reg::TCTL, 0x03ff_fffa),
    plain(reg::TIPG, 0x3fff_ffff),
    plain(reg::AIT, 0xffff),
    with(reg::LEDCTL, 0xcfcf_cfcf, 0x0706_8302),
    with(reg::PBA, 0xffff, 0x0010_0030),
    plain(reg::FCRTL, 0x8000_fff8),
    plain(reg::FCRTH, 0x8000_fff8),
    plain(reg::RDBAL, !0xf),
    plain(reg::RDBAH, u32::MAX),
    plain(reg::RDLEN, 0x000f_ff80),
    plain(reg::RDH, 0xffff),
    plain(reg::RDT, 0xffff),
    plain(reg::RDTR, 0xffff),
    plain(reg::RXDCTL, 0x013f_3f3f),
    plain(reg::RADV, 0xffff),
    plain(reg::RSRPD, 0xfff),
    plain(reg::TXDMAC, 1),
    plain(reg::TDBAL, !0xf),
    plain(reg::TDBAH, u32::MAX),
    plain(reg::TDLEN, 0x000f_ff80),
    plain(reg::TDH, 0xffff),
    plain(reg::TDT, 0xffff),
    plain(reg::TIDV, 0xffff),
    plain(reg::TXDCTL, 0xff3f_3f3f),
    plain(reg::TADV, 0xffff),
    plain(reg::TSPMT, u32::MAX),
    plain(reg::RXCSUM, 0x3ff),
    table(reg::MTA, 128, u32::MAX),
    table(reg::RA, 32, u32::MAX),
    table(reg::VFTA, 128, u32::MAX),
    plain(reg::WUC, 0xf),
    plain(reg::WUFC, 0xf_ffff),
    plain(reg::WUS, 0),
    plain(reg::MANC, u32::MAX),
    plain(reg::IPAV, 0x1_000f),
    table(reg::IP4AT, 8, u32::MAX),
];

/// Of the address that is filtered exactly: it is valid.
pub(crate) const ADDRESS_VALID: u32 = 1 << 31;
pub(crate) const ADDRESSES: u32 = 16;

/// Registers are kept up to here.
const END: u32 = 0x5a00;

/// Which bits of the register at this offset software can write; none if there is no such one.
fn writable(offset: u32) -> Option<u32> {
    let holds = |p: &&Plain| offset >= p.first && offset < p.first + 4 * p.count;
    PLAIN.iter().find(holds).map(|plain| plain.writable)
}

/// Who has to be told of a write, after the registers' lock is let go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    /// There may be frames to take, or room.
    pub(crate) wake: bool,
}

#[derive(Debug)]
pub(crate) struct Regs {
    words: Vec<u32>,
    eeprom: Eeprom,
    wires: Wires,
    phy: Phy,
    pub(crate) stats: stats::Stats,
    pub(crate) icr: u32,
    pub(crate) ims: u32,
    /// Causes that are told at the end of a batch.
    pub(crate) owed: u32,
    pub(crate) link: bool,
    /// Of the contexts that were loaded for transmission, for checksums and for segmentation.
    pub(crate) context: crate::tx::Context,
    /// The network was refused for want of room.
    pub(crate) starved: bool,
    mac: Mac,
    /// Which register the port for data stands for.
    pub(crate) io_address: u32,
    /// The interrupt is asserted, and from when on it may be again.
    pub(crate) asserted: bool,
    pub(crate) next_interrupt_ns: u64,
}

impl Regs {
    pub(crate) fn new(mac: Mac, subsystem_vendor: u16, subsystem: u16) -> Self {
        let mut regs = Self {
            words: vec![0; (END / 4) as usize],
            eeprom: Eeprom::new(mac, subsystem_vendor, subsystem),
            wires: Wires::default(),
            phy: Phy::default(),
            stats: stats::Stats::default(),
            icr: 0,
            ims: 0,
            owed: 0,
            link: true,
            context: Default::default(),
            starved: false,
            mac,
            io_address: 0,
            asserted: false,
            next_interrupt_ns: 0,
        };
        regs.reset();
        regs
    }

    /// As after power-on, when the EEPROM has been read; the link stays as it is, and the pin
    /// until it is driven.
    pub(crate) fn reset(&mut self) {
        self.words.fill(0);
        for plain in PLAIN {
            self.set(plain.first, plain.reset);
        }
        let [a, b, c, d, e, f] = self.mac.0;
        self.set(reg::RA, u32::from_le_bytes([a, b, c, d]));
        self.set(reg::RA + 4, u32::from_le_bytes([e, f, 0, 0]) | ADDRESS_VALID);
        (self.wires, self.phy) = (Wires::default(), Phy::default());
        self.stats = stats::Stats::default();
        (self.icr, self.ims, self.owed) = (0, 0, 0);
        self.context = Default::default();
        (self.starved, self.io_address) = (false, 0);
        self.next_interrupt_ns = 0;
    }

    pub(crate) fn get(&self, offset: u32) -> u32 {
        self.words.get((offset / 4) as usize).copied().unwrap_or(0)
    }

    pub(crate) fn set(&mut self, offset: u32, value: u32) {
        if let Some(word) = self.words.get_mut((offset / 4) as usize) {
            *word = value;
        }
    }

    /// A register whose upper half is the next one.
    pub(crate) fn wide(&self, offset: u32) -> u64 {
        u64::from(self.get(offset)) | u64::from(self.get(offset + 4)) << 32
    }

    /// The station's address: the first that is filtered exactly.
    pub(crate) fn mac(&self) -> Mac {
        let high = self.get(reg::RA + 4);
        if high & ADDRESS_VALID == 0 {
            return self.mac;
        }
        let [a, b, c, d] = self.get(reg::RA).to_le_bytes();
        let [e, f, ..] = high.to_le_bytes();
        let own = Mac([a, b, c, d, e, f]);
        if own.is_unicast() { own } else { self.mac }
    }

    pub(crate) fn read(&mut self, offset: u32) -> u32 {
        match offset {
            reg::STATUS => {
                let link = if self.link { STATUS_LINK } else { 0 };
                STATUS_FULL_DUPLEX | STATUS_1000 | link
            }
            reg::EECD => self.wires.read(),
            // Reading acknowledges.
            reg::ICR => std::mem::take(&mut self.icr),
            reg::IMS => self.ims,
            stats::FIRST..=stats::LAST => self.stats.read(offset),
            _ => self.get(offset),
        }
    }

    pub(crate) fn write(&mut self, offset: u32, value: u32) -> Effects {
        let mut effects = Effects::default();
        match offset {
            reg::CTRL if value & ctrl::RESET != 0 => {
                self.reset();
                return effects;
            }
            reg::CTRL if value & ctrl::PHY_RESET != 0 => self.phy = Phy::default(),
            reg::EECD => self.wires.write(value, &self.eeprom),
            reg::EERD => return self.keep(offset, self.eeprom.read_by_register(value)),
            reg::MDIC => {
                let done = self.phy.command(value, self.link);
                if value & phy::INTERRUPT != 0 {
                    self.icr |= cause::MANAGEMENT;
                }
                return self.keep(offset, done);
            }
            reg::ICR => self.icr &= !value,
            reg::ICS => self.icr |= value & cause::ALL,
            reg::IMS => self.ims |= value & cause::ALL,
            reg::IMC => self.ims &= !value,
            reg::RDT => effects.wake = std::mem::take(&mut self.starved),
            reg::TDT | reg::RCTL | reg::TCTL => effects.wake = true,
            _ => {}
        }
        if let Some(bits) = writable(offset) {
            self.set(offset, value & bits);
        }
        effects
    }

    fn keep(&mut self, offset: u32, value: u32) -> Effects {
        self.set(offset, value);
        Effects::default()
    }

    pub(crate) fn save(&self) -> E1000State {
        let words = (0u32..).step_by(4).zip(&self.words);
        E1000State {
            mac: self.mac,
            registers: words.filter(|(_, v)| **v != 0).map(|(at, v)| (at, *v)).collect(),
            statistics: self.stats.save(),
            wires: self.wires,
            phy: self.phy.save(),
            icr: self.icr,
            ims: self.ims,
            owed: self.owed,
            link: self.link,
            context: self.context,
            io_address: self.io_address,
            asserted: self.asserted,
            next_interrupt_ns: self.next_interrupt_ns,
        }
    }

    /// What was saved, as registers; why not if that cannot be.
    pub(crate) fn restored(&self, state: &E1000State) -> Result<Self, &'static str> {
        if state.mac != self.mac {
            return Err("the card has another address");
        }
        let mut regs = Self {
            words: vec![0; self.words.len()],
            eeprom: self.eeprom.clone(),
            wires: state.wires,
            phy: Phy::restore(&state.phy).ok_or("the PHY is another one")?,
            stats: stats::Stats::restore(&state.statistics).ok_or("there are other statistics")?,
            icr: state.icr,
            ims: state.ims,
            owed: state.owed,
            link: state.link,
            context: state.context,
            // To be asked again costs nothing.
            starved: true,
            mac: state.mac,
            io_address: state.io_address,
            asserted: state.asserted,
            next_interrupt_ns: state.next_interrupt_ns,
        };
        for (offset, value) in &state.registers {
            let reset = PLAIN.iter().find(|p| p.first == *offset).map_or(0, |p| p.reset);
            let known = writable(*offset).filter(|_| offset.is_multiple_of(4));
            let bits = known.ok_or("there is no such register")?;
            if value & !(bits | reset) != 0 {
                return Err("a register has bits that are not there");
            }
            regs.set(*offset, *value);
        }
        Ok(regs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

    fn regs() -> Regs {
        Regs::new(MAC, 0x8086, 0x1e)
    }

    #[test]
    fn the_table_has_each_register_once() {
        let mut all: Vec<u32> = PLAIN
            .iter()
            .flat_map(|p| (p.first..p.first + 4 * p.count).step_by(4))
            .inspect(|at| assert!(*at < END && at.is_multiple_of(4), "{at:#x}"))
            .collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn a_reset_loads_the_address() {
        let mut regs = regs();
        assert_eq!((regs.read(reg::RA), regs.read(reg::RA + 4)), (0x1200_5452, 0x8000_5634));
        assert_eq!(regs.read(reg::STATUS), 0x83);
        regs.write(reg::RA, 0x0403_0202);
        assert_eq!(regs.mac(), Mac([2, 2, 3, 4, 0x34, 0x56]));
        regs.write(reg::IMS, u32::MAX);
        regs.write(reg::CTRL, 1 << 26);
        assert_eq!((regs.mac(), regs.read(reg::IMS)), (MAC, 0));
    }

    #[test]
    fn interrupts_are_acknowledged_by_reading() {
        let mut regs = regs();
        regs.write(reg::ICS, u32::MAX);
        assert_eq!((regs.read(reg::ICR), regs.read(reg::ICR)), (cause::ALL, 0));
        regs.write(reg::ICS, 6);
        regs.write(reg::ICR, 2);
        assert_eq!(regs.read(reg::ICR), 4);
        regs.write(reg::IMS, 0x84);
        regs.write(reg::IMC, 0x80);
        assert_eq!(regs.read(reg::IMS), 4);
        // A register of the PHY, with an interrupt at its end.
        regs.write(reg::MDIC, 0x2822_0000 | 1 << 29);
        assert_eq!((regs.read(reg::MDIC), regs.read(reg::ICR)), (0x3822_0141, 0x200));
    }

    #[test]
    fn what_is_not_there_stays_zero() {
        let mut regs = regs();
        for offset in [0x4, 0x100c, 0x5a00, 0x1_fffc, 0xffff_fffc] {
            regs.write(offset, u32::MAX);
            assert_eq!(regs.read(offset), 0, "{offset:#x}");
        }
        regs.write(reg::RDLEN, u32::MAX);
        assert_eq!(regs.read(reg::RDLEN), 0x000f_ff80);
    }

    #[test]
    fn what_is_saved_is_checked() {
        let mut one = regs();
        one.write(reg::RDBAL, 0x1230);
        one.write(reg::MTA + 8, 77);
        let state = one.save();
        let mut other = regs().restored(&state).unwrap();
        assert_eq!((other.read(reg::RDBAL), other.read(reg::MTA + 8)), (0x1230, 77));
        assert_eq!(other.save(), state);
        for (offset, value) in [(reg::RDBAL, 1), (4, 1), (0x8000, 1), (2, 0), (reg::STATUS, 1)] {
            let mut broken = state.clone();
            broken.registers.push((offset, value));
            assert!(regs().restored(&broken).is_err(), "{offset:#x}");
        }
        assert!(Regs::new(Mac([2; 6]), 0, 0).restored(&state).is_err());
    }
}
