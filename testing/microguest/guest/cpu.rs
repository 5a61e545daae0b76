//! What CPUID says.

use core::arch::x86_64::__cpuid_count;

/// Text of up to 48 characters from CPUID's registers.
pub struct Text {
    bytes: [u8; 48],
}

impl Text {
    fn from(words: &[u32]) -> Self {
        let byte = |at: usize| words.get(at / 4).map_or(0, |word| word.to_le_bytes()[at % 4]);
        Self { bytes: core::array::from_fn(byte) }
    }

    pub fn as_str(&self) -> &str {
        let end = self.bytes.iter().position(|b| *b == 0).unwrap_or(self.bytes.len());
        core::str::from_utf8(&self.bytes[..end]).unwrap_or("?").trim()
    }
}

pub fn vendor() -> Text {
    let r = __cpuid_count(0, 0);
    Text::from(&[r.ebx, r.edx, r.ecx])
}

pub fn brand() -> Text {
    let words = core::array::from_fn::<u32, 12, _>(|i| {
        let r = __cpuid_count(0x8000_0002 + i as u32 / 4, 0);
        [r.eax, r.ebx, r.ecx, r.edx][i % 4]
    });
    Text::from(&words)
}

/// The hypervisor's signature, if CPUID tells of one.
pub fn hypervisor() -> Option<Text> {
    let told = __cpuid_count(1, 0).ecx >> 31 != 0;
    let r = __cpuid_count(0x4000_0000, 0);
    told.then(|| Text::from(&[r.ebx, r.ecx, r.edx]))
}

/// Logical processors, from the topology leaf.
pub fn processors() -> u32 {
    let levels = (0..4).map(|level| __cpuid_count(0xb, level));
    let count = levels.filter(|r| r.ecx & 0xff00 != 0).map(|r| r.ebx & 0xffff).max();
    count.unwrap_or(1).max(1)
}

/// From the timing leaf of hypervisors, or leaf 0x15; 0 if neither tells.
pub fn tsc_khz() -> u32 {
    if __cpuid_count(0x4000_0000, 0).eax >= 0x4000_0010 && hypervisor().is_some() {
        return __cpuid_count(0x4000_0010, 0).eax;
    }
    let r = __cpuid_count(0x15, 0);
    match r.eax {
        0 => 0,
        denominator => {
            let khz = u64::from(r.ecx) / 1000 * u64::from(r.ebx) / u64::from(denominator);
            khz as u32
        }
    }
}

pub fn has_x2apic() -> bool {
    __cpuid_count(1, 0).ecx >> 21 & 1 != 0
}
