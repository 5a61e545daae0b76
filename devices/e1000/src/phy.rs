//! The PHY behind MDIC: a Marvell 88E1011 at address 1 with a partner that speaks 1000BASE-T
//! (IEEE 802.3, clause 22 and 40.5; SDM, 11 and 13.4.10).

/// The address on the management bus.
const ADDRESS: u32 = 1;
pub(crate) const REGISTERS: usize = 32;

/// Registers.
mod reg {
    pub const CONTROL: usize = 0;
    pub const STATUS: usize = 1;
    pub const PARTNER: usize = 5;
    pub const GIGABIT_STATUS: usize = 10;
    pub const PHY_STATUS: usize = 17;
    pub const INTERRUPTS: usize = 19;
}

/// Bits of MDIC.
const WRITE: u32 = 1 << 26;
const READ: u32 = 2 << 26;
const OPERATION: u32 = 3 << 26;
const READY: u32 = 1 << 28;
pub(crate) const INTERRUPT: u32 = 1 << 29;
const ERROR: u32 = 1 << 30;

/// Self-clearing bits of the control register: reset, and autonegotiation anew.
const CONTROL_RESET: u16 = 1 << 15;
const CONTROL_RESTART: u16 = 1 << 9;

const LINK: u16 = 1 << 2;
const NEGOTIATED: u16 = 1 << 5;
/// What the partner says: it acknowledges, pauses, 10 and 100 Mbit/s.
const PARTNER: u16 = 0x45e1;
/// 1000BASE-T in full duplex, and both receivers are well.
const GIGABIT_PARTNER: u16 = 0x3800;
/// 1000 Mbit/s, full duplex, resolved, link.
const PHY_LINK: u16 = 0xac00;

/// After a reset; what depends on the link is added when it is read.
const RESET: [u16; REGISTERS] = {
    let mut all = [0; REGISTERS];
    // Autonegotiation, full duplex, 1000 Mbit/s.
    all[reg::CONTROL] = 0x1140;
    // 10 and 100 Mbit/s, extended status, autonegotiation, extended registers.
    all[reg::STATUS] = 0x7949;
    // The identifier; Linux and others know it.
    (all[2], all[3]) = (0x0141, 0x0c20);
    // Advertised: 10 and 100 Mbit/s, pauses; 1000 Mbit/s.
    (all[4], all[9]) = (0x0de1, 0x0300);
    // 1000BASE-T in both duplex modes.
    all[15] = 0x3000;
    // The 88E1011's own control.
    (all[16], all[20]) = (0x0360, 0x0d60);
    all
};

/// Registers that software cannot write, a bit for each.
const FIXED: u32 = 1 << reg::STATUS
    | 1 << 2
    | 1 << 3
    | 1 << reg::PARTNER
    | 1 << 6
    | 1 << 8
    | 1 << reg::GIGABIT_STATUS
    | 1 << 15
    | 1 << reg::PHY_STATUS
    | 1 << reg::INTERRUPTS
    | 1 << 21;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Phy([u16; REGISTERS]);

impl Default for Phy {
    fn default() -> Self {
        Self(RESET)
    }
}

impl Phy {
    fn read(&self, register: usize, link: bool) -> u16 {
        let value = self.0.get(register).copied().unwrap_or(0);
        let of_link = match register {
            reg::STATUS => LINK | NEGOTIATED,
            reg::PARTNER => PARTNER,
            reg::GIGABIT_STATUS => GIGABIT_PARTNER,
            reg::PHY_STATUS => PHY_LINK,
            _ => 0,
        };
        if link { value | of_link } else { value }
    }

    fn write(&mut self, register: usize, value: u16) {
        if register == reg::CONTROL && value & CONTROL_RESET != 0 {
            *self = Self::default();
        } else if FIXED >> register & 1 == 0
            && let Some(place) = self.0.get_mut(register)
        {
            // Negotiation has ended before anyone can look.
            let clears = if register == reg::CONTROL { CONTROL_RESTART } else { 0 };
            *place = value & !clears;
        }
    }

    /// What MDIC holds after this was written to it.
    pub(crate) fn command(&mut self, value: u32, link: bool) -> u32 {
        let value = value & !(READY | ERROR);
        let register = (value >> 16 & 0x1f) as usize;
        if value >> 21 & 0x1f != ADDRESS {
            return value | READY | ERROR;
        }
        match value & OPERATION {
            READ => value & !0xffff | u32::from(self.read(register, link)) | READY,
            WRITE => {
                self.write(register, value as u16);
                value | READY
            }
            _ => value | READY | ERROR,
        }
    }

    pub(crate) fn save(&self) -> Vec<u16> {
        self.0.to_vec()
    }

    /// `None` if no PHY of this kind can be so.
    pub(crate) fn restore(saved: &[u16]) -> Option<Self> {
        let registers = <[u16; REGISTERS]>::try_from(saved).ok()?;
        let same = |n: usize| FIXED >> n & 1 == 0 || registers.get(n) == RESET.get(n);
        (0..REGISTERS).all(same).then_some(Self(registers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(phy: &mut Phy, register: u32, link: bool) -> u32 {
        phy.command(READ | 1 << 21 | register << 16, link)
    }

    #[test]
    fn registers_go_by_the_management_bus() {
        let mut phy = Phy::default();
        assert_eq!(read(&mut phy, 2, true), 0x1822_0141);
        assert_eq!(read(&mut phy, 3, true) as u16, 0x0c20);
        assert_eq!(
            (read(&mut phy, 1, true) as u16, read(&mut phy, 1, false) as u16),
            (0x796d, 0x7949)
        );
        phy.command(WRITE | 1 << 21 | 4 << 16 | 0x1e1, true);
        phy.command(WRITE | 1 << 21 | 2 << 16 | 0x1e1, true);
        assert_eq!(
            (read(&mut phy, 4, true) as u16, read(&mut phy, 2, true) as u16),
            (0x1e1, 0x141)
        );
        phy.command(WRITE | 1 << 21 | 0x1200, true);
        assert_eq!(read(&mut phy, 0, true) as u16, 0x1000, "negotiation has ended");
        phy.command(WRITE | 1 << 21 | 0x8000, true);
        assert_eq!(phy, Phy::default());
        assert_eq!(phy.command(READ | 2 << 21, true) & ERROR, ERROR, "nobody is there");
        assert_eq!(phy.command(1 << 21, true) & ERROR, ERROR, "no operation");
    }

    #[test]
    fn what_is_saved_is_checked() {
        let mut phy = Phy::default();
        phy.command(WRITE | 1 << 21 | 4 << 16 | 0x1e1, true);
        assert_eq!(Phy::restore(&phy.save()), Some(phy.clone()));
        let mut other = phy.save();
        other[2] = 0;
        assert_eq!((Phy::restore(&other), Phy::restore(&other[1..])), (None, None));
    }
}
