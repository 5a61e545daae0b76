//! A CPUID table, as the CPUID instruction answers from it.

/// One leaf, or one sub-leaf of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidEntry {
    pub leaf: u32,
    /// `None` where the leaf does not look at ECX.
    pub subleaf: Option<u32>,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// What CPUID returns, but for what depends on the vCPU's registers (OSXSAVE, the XSAVE
/// area's current size) and on its number (APIC IDs): engines fill these in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuidTable {
    pub entries: Vec<CpuidEntry>,
}

impl CpuidTable {
    pub fn get(&self, leaf: u32, subleaf: u32) -> Option<&CpuidEntry> {
        self.entries.iter().find(|e| e.leaf == leaf && e.subleaf.is_none_or(|s| s == subleaf))
    }

    pub fn get_mut(&mut self, leaf: u32, subleaf: u32) -> Option<&mut CpuidEntry> {
        self.entries.iter_mut().find(|e| e.leaf == leaf && e.subleaf.is_none_or(|s| s == subleaf))
    }

    /// EAX, EBX, ECX, EDX. Basic leaves beyond the highest answer as the highest basic leaf
    /// does, as Intel's processors do (SDM volume 2, CPUID); others that are absent are zero.
    pub fn lookup(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let found = self.get(leaf, subleaf).or_else(|| {
            let highest = self.get(leaf & 0xf000_0000, 0).map_or(0, |e| e.eax);
            let hypervisor = leaf >> 28 == 4;
            (leaf > highest && !hypervisor && leaf >> 28 == 0)
                .then(|| self.get(highest, subleaf))
                .flatten()
        });
        found.map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx])
    }

    /// Adds an entry, or replaces the one for the same leaf and sub-leaf.
    pub fn set(&mut self, entry: CpuidEntry) {
        let same = |e: &&mut CpuidEntry| e.leaf == entry.leaf && e.subleaf == entry.subleaf;
        match self.entries.iter_mut().find(same) {
            Some(old) => *old = entry,
            None => self.entries.push(entry),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_beyond_the_highest_answer_as_the_highest() {
        let mut table = CpuidTable::default();
        table.set(CpuidEntry { leaf: 0, eax: 1, ..Default::default() });
        table.set(CpuidEntry { leaf: 1, eax: 0x806f2, ..Default::default() });
        assert_eq!(table.lookup(1, 5), [0x806f2, 0, 0, 0]);
        assert_eq!(table.lookup(0x20, 0), table.lookup(1, 0));
        assert_eq!(table.lookup(0x4000_0000, 0), [0; 4]);
        table.set(CpuidEntry { leaf: 1, eax: 7, ..Default::default() });
        assert_eq!(table.entries.len(), 2);
    }
}
