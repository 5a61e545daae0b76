//! Addressing modes: how an operand's address comes about.

/// Registers of one attempt, by encoding number; RAX is the operand's.
pub type Gprs = [u64; 16];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    None,
    Fs,
    Gs,
}

/// What FS and GS begin at.
pub const FS_BASE: u64 = 0x1000_0000_0123;
pub const GS_BASE: u64 = 0xffff_f000_0000_0008;

/// An addressing mode with a ModRM byte.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    pub base: Option<u8>,
    /// With its shift count.
    pub index: Option<(u8, u8)>,
    pub disp: i32,
    /// Under the 67 prefix.
    pub short: bool,
    pub segment: Segment,
    /// Relative to RIP: the displacement makes the address.
    pub rip: bool,
}

pub const PLAIN: Mode =
    Mode { base: Some(1), index: None, disp: 0, short: false, segment: Segment::None, rip: false };

/// Each register as base and index in some mode, all shifts, all sizes of displacement.
pub fn all() -> Vec<Mode> {
    let mut modes = Vec::new();
    for base in [1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15] {
        let disp = [0, 0x11, -0x80, 0x1234_5678, i32::MIN][usize::from(base) % 5];
        modes.push(Mode { base: Some(base), disp, ..PLAIN });
    }
    let pairs = [(1, 3, 0), (4, 1, 3), (5, 12, 1), (9, 10, 2), (13, 13, 0), (14, 15, 3), (3, 9, 1)];
    for (base, index, shift) in pairs {
        let disp = [0, -1, 0x7fff_ffff][usize::from(index) % 3];
        modes.push(Mode { base: Some(base), index: Some((index, shift)), disp, ..PLAIN });
    }
    modes.push(Mode { base: None, index: Some((11, 3)), disp: -0x1000, ..PLAIN });
    for base in [1, 9, 15] {
        modes.push(Mode { base: Some(base), disp: -7, short: true, ..PLAIN });
    }
    modes.push(Mode { base: Some(10), index: Some((1, 2)), disp: i32::MAX, short: true, ..PLAIN });
    for segment in [Segment::Fs, Segment::Gs] {
        modes.push(Mode { base: Some(3), segment, ..PLAIN });
        modes.push(Mode { base: Some(14), segment, short: true, ..PLAIN });
        modes.push(Mode { base: None, segment, ..PLAIN });
    }
    modes.push(Mode { base: None, ..PLAIN });
    modes.push(Mode { base: None, short: true, ..PLAIN });
    modes.push(Mode { rip: true, base: None, ..PLAIN });
    modes.push(Mode { rip: true, base: None, short: true, ..PLAIN });
    modes
}

impl Mode {
    /// Whether faults of addresses that are not canonical are those of the stack segment.
    pub fn stack(&self) -> bool {
        self.segment == Segment::None && matches!(self.base, Some(4 | 5))
    }

    fn segment_base(&self) -> u64 {
        match self.segment {
            Segment::None => 0,
            Segment::Fs => FS_BASE,
            Segment::Gs => GS_BASE,
        }
    }

    /// Sets registers so that the operand is at `linear`, or nearly; returns where it is, and
    /// the displacement. `next` is the address of the next instruction.
    pub fn aim(&self, linear: u64, gprs: &mut Gprs, next: u64) -> (u64, i32) {
        let offset = linear.wrapping_sub(self.segment_base());
        let mask = if self.short { 0xffff_ffff } else { !0 };
        let mut disp = self.disp;
        let effective = if self.rip {
            disp = offset.wrapping_sub(next) as i32;
            next.wrapping_add(disp as u64)
        } else if self.base.is_none() && self.index.is_none() {
            disp = offset as i32;
            disp as u64
        } else {
            let rest = offset.wrapping_sub(disp as u64);
            match (self.base, self.index) {
                (Some(base), Some((index, 0))) if base == index => {
                    gprs[usize::from(base)] = rest >> 1;
                    (rest >> 1 << 1).wrapping_add(disp as u64)
                }
                (base, Some((index, shift))) => {
                    // What a shift loses is the base's.
                    let part = 0x0300_0000_0000_0123;
                    let value = if base.is_some() { part } else { rest >> shift };
                    gprs[usize::from(index)] = value;
                    let scaled = value << shift;
                    let rest = match base {
                        Some(base) => {
                            gprs[usize::from(base)] = rest.wrapping_sub(scaled);
                            rest
                        }
                        None => scaled,
                    };
                    rest.wrapping_add(disp as u64)
                }
                (Some(base), None) => {
                    gprs[usize::from(base)] = rest;
                    offset
                }
                (None, None) => offset,
            }
        };
        if self.short {
            // Upper halves must not count.
            for register in [self.base, self.index.map(|i| i.0)].into_iter().flatten() {
                gprs[usize::from(register)] |= 0xa5a5_a5a5 << 32;
            }
        }
        ((effective & mask).wrapping_add(self.segment_base()), disp)
    }

    /// Prefixes before REX.
    pub fn prefixes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self.segment {
            Segment::None => {}
            Segment::Fs => out.push(0x64),
            Segment::Gs => out.push(0x65),
        }
        if self.short {
            out.push(0x67);
        }
        out
    }

    /// REX.X and REX.B.
    pub fn rex(&self) -> u8 {
        let high = |register: Option<u8>| register.is_some_and(|r| r >= 8);
        u8::from(high(self.index.map(|i| i.0))) << 1 | u8::from(high(self.base))
    }

    /// ModRM, SIB and displacement.
    pub fn modrm(&self, reg: u8, disp: i32) -> Vec<u8> {
        let reg = (reg & 7) << 3;
        let wide = disp.to_le_bytes();
        if self.rip {
            return [&[reg | 5][..], &wide].concat();
        }
        match (self.base, self.index) {
            (None, index) => {
                let (index, shift) = index.unwrap_or((4, 0));
                [&[reg | 4, shift << 6 | (index & 7) << 3 | 5][..], &wide].concat()
            }
            (Some(base), index) => {
                let sib = index.is_some() || base & 7 == 4;
                let short = i8::try_from(disp).is_ok();
                let kind = match disp {
                    0 if base & 7 != 5 => 0,
                    _ if short => 0x40,
                    _ => 0x80,
                };
                let mut out = vec![kind | reg | if sib { 4 } else { base & 7 }];
                if sib {
                    let (index, shift) = index.unwrap_or((4, 0));
                    out.push(shift << 6 | (index & 7) << 3 | base & 7);
                }
                match kind {
                    0 => {}
                    0x40 => out.push(disp as u8),
                    _ => out.extend(wide),
                }
                out
            }
        }
    }
}
