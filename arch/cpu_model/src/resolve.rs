//! A model, on an engine, for a number of vCPUs: the table that its guest sees.

use crate::{
    CpuModel, CpuidEntry, CpuidTable, Feature, feature,
    model::{HIDDEN, Identity},
    timing::timing_leaves,
    topology,
};
use std::fmt;

/// What a table depends on besides the model and the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub vcpus: u32,
    pub tsc_khz: u32,
    /// What the local APIC's timer counts at; KVM's and ours count nanoseconds.
    pub apic_khz: u32,
    /// The hypervisor's leaves, from 0x4000_0000. Empty: the guest is told of none.
    pub hypervisor: Vec<CpuidEntry>,
}

/// The engine cannot give what the model needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub model: &'static str,
    pub missing: Vec<&'static str>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, missing } = self;
        write!(f, "CPU model {model} needs what this engine lacks here: {}", missing.join(", "))
    }
}

impl std::error::Error for Refusal {}

/// 46 bits of physical address and 48 of linear, which the saved state and every engine have.
const PHYSICAL_BITS: u32 = 46;
const LINEAR_BITS: u32 = 48;
/// No leaf with sub-leaves or state beyond these is offered.
const HIGHEST_BASIC: u32 = 0x1f;
const HIGHEST_EXTENDED: u32 = 0x8000_0008;

/// The best of the named models that needs no more than x86-64-v3 and that `supported` can
/// give.
pub fn best_model(supported: &CpuidTable) -> Option<CpuModel> {
    ["x86-64-v3", "x86-64-v2"]
        .iter()
        .filter_map(|name| CpuModel::named(name).ok())
        .find(|model| model.required().all(|name| supported.has_named(name)))
}

/// The table of a guest with this model on an engine that supports so much.
pub fn resolve(
    model: &CpuModel,
    supported: &CpuidTable,
    options: &Options,
) -> Result<CpuidTable, Refusal> {
    let missing: Vec<_> = model.required().filter(|n| !supported.has_named(n)).collect();
    if !missing.is_empty() {
        return Err(Refusal { model: model.name, missing });
    }
    let mut table = CpuidTable::default();
    match model.identity {
        Some(identity) => named_identity(&mut table, &identity),
        None => host_identity(&mut table, supported),
    }
    for feature in offered(model, supported) {
        table.set_feature(feature, true);
    }
    if !options.hypervisor.is_empty() {
        feature::set_named(&mut table, "hypervisor", supported.has_named("hypervisor"));
    } else {
        feature::set_named(&mut table, "hypervisor", false);
    }
    let amd = is_amd(&table);
    fixed_leaves(&mut table, supported, amd);
    topology::apply(&mut table, options.vcpus, amd);
    hypervisor_and_timing(&mut table, options, amd);
    table.entries.sort_by_key(|e| (e.leaf, e.subleaf));
    Ok(table)
}

fn offered<'a>(
    model: &'a CpuModel,
    supported: &'a CpuidTable,
) -> Box<dyn Iterator<Item = &'static Feature> + 'a> {
    if model.identity.is_none() {
        return Box::new(supported.features().filter(|f| !HIDDEN.contains(&f.name)));
    }
    let names = model.required().chain(model.wanted());
    Box::new(names.filter_map(Feature::named).filter(|f| supported.has(f)))
}

/// The processor is AMD's, or made after one.
pub fn is_amd(table: &CpuidTable) -> bool {
    let [_, b, c, d] = table.lookup(0, 0);
    let vendor = [b, d, c].map(u32::to_le_bytes).concat();
    vendor == b"AuthenticAMD" || vendor == b"HygonGenuine"
}

fn leaf(leaf: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry { leaf, subleaf: None, eax, ebx, ecx, edx }
}

fn sub(at: u32, subleaf: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry { leaf: at, subleaf: Some(subleaf), eax, ebx, ecx, edx }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let byte = |i: usize| u32::from(bytes.get(at + i).copied().unwrap_or(0)) << (8 * i);
    byte(0) | byte(1) | byte(2) | byte(3)
}

fn named_identity(table: &mut CpuidTable, identity: &Identity) {
    let vendor = b"GenuineIntel";
    let vendor = [HIGHEST_BASIC, word(vendor, 0), word(vendor, 8), word(vendor, 4)];
    table.set(leaf(0, vendor));
    table.set(leaf(1, [identity.signature, 0x0800, 0, 0])); // CLFLUSH line: 8 * 8 bytes
    for part in 0..3 {
        let text = identity.brand.as_bytes();
        let words = [0, 4, 8, 12].map(|at| word(text, 16 * part + at));
        table.set(leaf(0x8000_0002 + part as u32, words));
    }
    let caches = [
        // type, level, ways, sets: level 1 data and code, 32 KiB; level 2, 1 MiB; level 3, 16 MiB
        (1u32, 1u32, 8u32, 64u32),
        (2, 1, 8, 64),
        (3, 2, 16, 1024),
        (3, 3, 16, 16384),
        (0, 0, 1, 1),
    ];
    for (index, (kind, level, ways, sets)) in caches.into_iter().enumerate() {
        let geometry = match kind {
            0 => [0; 4],
            _ => [kind | level << 5 | 1 << 8, (ways - 1) << 22 | 63, sets - 1, 0],
        };
        table.set(sub(4, index as u32, geometry));
    }
}

fn host_identity(table: &mut CpuidTable, supported: &CpuidTable) {
    let [_, b, c, d] = supported.lookup(0, 0);
    table.set(leaf(0, [HIGHEST_BASIC, b, c, d]));
    table.set(leaf(1, [supported.lookup(1, 0)[0], 0x0800, 0, 0]));
    for at in 0x8000_0002..=0x8000_0006 {
        table.set(leaf(at, supported.lookup(at, 0)));
    }
    table.entries.extend(supported.entries.iter().filter(|e| matches!(e.leaf, 4 | 0x8000_001d)));
}

/// Leaves that follow from the features.
fn fixed_leaves(table: &mut CpuidTable, supported: &CpuidTable, amd: bool) {
    table.set(leaf(2, [0xff01, 0, 0, 0])); // caches: see leaf 4
    let mut seven = table.get(7, 0).copied().unwrap_or(sub(7, 0, [0; 4]));
    let highest = (1..=2).rev().find(|subleaf| table.get(7, *subleaf).is_some());
    seven.eax = highest.unwrap_or(0);
    table.set(seven);
    if highest == Some(2) && table.get(7, 1).is_none() {
        table.set(sub(7, 1, [0; 4]));
    }
    xsave_leaves(table, supported);
    let extended = if amd { 0x8000_001e } else { HIGHEST_EXTENDED };
    table.set(leaf(0x8000_0000, [extended, 0, 0, 0]));
    let mut one = table.get(0x8000_0001, 0).copied().unwrap_or(leaf(0x8000_0001, [0; 4]));
    one.eax = if amd { table.lookup(1, 0)[0] } else { 0 };
    if amd {
        // The legacy bits are repeated there (APM volume 3, E.4.2).
        one.edx |= table.lookup(1, 0)[3] & 0x0183_f3ff;
    }
    table.set(one);
    if table.get(0x8000_0006, 0).is_none() {
        table.set(leaf(0x8000_0006, [0, 0, 1024 << 16 | 8 << 12 | 64, 0]));
    }
    let host_bits = supported.lookup(0x8000_0008, 0)[0] & 0xff;
    let bits = if host_bits == 0 { PHYSICAL_BITS } else { host_bits.min(PHYSICAL_BITS) };
    let mut sizes = table.get(0x8000_0008, 0).copied().unwrap_or(leaf(0x8000_0008, [0; 4]));
    sizes.eax = bits | LINEAR_BITS << 8;
    table.set(sizes);
}

/// x87, SSE and AVX, and AVX-512's three components where the model has them (SDM volume 1,
/// 13.2 and 13.5; the offsets are those of every processor so far).
fn xsave_leaves(table: &mut CpuidTable, supported: &CpuidTable) {
    if !table.has_named("xsave") {
        ["xsaveopt", "xsavec", "xgetbv1"]
            .iter()
            .for_each(|name| feature::set_named(table, name, false));
        return;
    }
    let mut components = 3;
    let mut size = 576;
    if table.has_named("avx") {
        (components, size) = (7, 832);
        table.set(sub(0xd, 2, [256, 576, 0, 0]));
    }
    if table.has_named("avx512f") {
        for component in [5, 6, 7] {
            let [length, offset, flags, _] = supported.lookup(0xd, component);
            table.set(sub(0xd, component, [length, offset, flags, 0]));
            components |= 1 << component;
            size = size.max(length.saturating_add(offset));
        }
    }
    table.set(sub(0xd, 0, [components, size, size, 0]));
    let mut one = table.get(0xd, 1).copied().unwrap_or(sub(0xd, 1, [0; 4]));
    (one.ebx, one.ecx, one.edx) = (size, 0, 0);
    table.set(one);
}

fn hypervisor_and_timing(table: &mut CpuidTable, options: &Options, amd: bool) {
    for entry in &options.hypervisor {
        table.set(*entry);
    }
    let [crystal, base, timing] = timing_leaves(options.tsc_khz, options.apic_khz);
    if !amd && options.tsc_khz != 0 {
        table.set(crystal);
        table.set(base);
    }
    if let Some(first) = table.get_mut(0x4000_0000, 0)
        && options.tsc_khz != 0
    {
        first.eax = first.eax.max(timing.leaf);
        table.set(timing);
    }
}
