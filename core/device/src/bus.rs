//! Which device answers at which address.

use std::{fmt, ops::RangeInclusive, sync::Arc};

/// Port I/O. An access is 1, 2 or 4 bytes wide, aligned or not.
pub trait PioDevice: Send + Sync {
    /// `data` arrives filled with ones, which is what an absent device answers.
    fn read(&self, port: u16, data: &mut [u8]);
    fn write(&self, port: u16, data: &[u8]);
}

/// Memory-mapped I/O at an offset into the claimed range. An access is 1 to 8 bytes wide and
/// never crosses a page.
pub trait MmioDevice: Send + Sync {
    /// `data` arrives filled with ones.
    fn read(&self, offset: u64, data: &mut [u8]);
    fn write(&self, offset: u64, data: &[u8]);
}

/// Somebody's range of a bus.
pub struct Claim<D: ?Sized> {
    pub name: &'static str,
    pub range: RangeInclusive<u64>,
    pub device: Arc<D>,
}

impl<D: ?Sized> Clone for Claim<D> {
    fn clone(&self) -> Self {
        Self { name: self.name, range: self.range.clone(), device: self.device.clone() }
    }
}

impl<D: ?Sized> fmt::Debug for Claim<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:#x}-{:#x}", self.name, self.range.start(), self.range.end())
    }
}

/// A bus: claims, sorted, that never overlap. Built once, then only read.
pub struct Bus<D: ?Sized> {
    claims: Vec<Claim<D>>,
}

pub type PioBus = Bus<dyn PioDevice>;
pub type MmioBus = Bus<dyn MmioDevice>;

impl<D: ?Sized> fmt::Debug for Bus<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.claims).finish()
    }
}

impl<D: ?Sized> Default for Bus<D> {
    fn default() -> Self {
        Self { claims: Vec::new() }
    }
}

impl<D: ?Sized> Bus<D> {
    /// Adds a claim; the other's name if it overlaps one.
    pub fn claim(&mut self, claim: Claim<D>) -> Result<(), &'static str> {
        let at = self.claims.partition_point(|c| c.range.start() < claim.range.start());
        let before = at.checked_sub(1).and_then(|i| self.claims.get(i));
        let clash = before
            .filter(|c| c.range.end() >= claim.range.start())
            .or_else(|| self.claims.get(at).filter(|c| c.range.start() <= claim.range.end()));
        if let Some(other) = clash {
            return Err(other.name);
        }
        self.claims.insert(at, claim);
        Ok(())
    }

    pub fn find(&self, address: u64) -> Option<&Claim<D>> {
        let after = self.claims.partition_point(|c| *c.range.start() <= address);
        let claim = self.claims.get(after.checked_sub(1)?)?;
        (address <= *claim.range.end()).then_some(claim)
    }

    pub fn claims(&self) -> &[Claim<D>] {
        &self.claims
    }
}

impl Bus<dyn PioDevice> {
    /// Absent devices read as ones.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(claim) = self.find(port.into()) {
            claim.device.read(port, data);
        }
    }

    pub fn write(&self, port: u16, data: &[u8]) {
        if let Some(claim) = self.find(port.into()) {
            claim.device.write(port, data);
        }
    }
}

impl Bus<dyn MmioDevice> {
    /// Absent devices read as ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(claim) = self.find(address) {
            claim.device.read(address - claim.range.start(), data);
        }
    }

    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some(claim) = self.find(address) {
            claim.device.write(address - claim.range.start(), data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;
    impl PioDevice for Echo {
        fn read(&self, port: u16, data: &mut [u8]) {
            data[0] = port as u8;
        }
        fn write(&self, _: u16, _: &[u8]) {}
    }

    #[test]
    fn claims_do_not_overlap_and_gaps_read_as_ones() {
        let mut bus = PioBus::default();
        let claim =
            |name, range| Claim { name, range, device: Arc::new(Echo) as Arc<dyn PioDevice> };
        bus.claim(claim("b", 0x20..=0x21)).unwrap();
        bus.claim(claim("a", 0x10..=0x1f)).unwrap();
        assert_eq!(bus.claim(claim("c", 0x21..=0x30)), Err("b"));
        assert_eq!(bus.claim(claim("c", 0x0..=0x10)), Err("a"));
        assert_eq!(bus.claim(claim("c", 0x0..=0x40)), Err("a"));
        let mut data = [0; 2];
        bus.read(0x21, &mut data);
        assert_eq!(data, [0x21, 0xff]);
        bus.read(0x22, &mut data);
        assert_eq!(data, [0xff; 2]);
    }
}
