//! What a guest of each model sees.

use cpu_model::*;

fn options(vcpus: u32) -> Options {
    let signature = CpuidEntry { leaf: 0x4000_0000, eax: 0x4000_0001, ..Default::default() };
    Options { vcpus, tsc_khz: 2_100_000, apic_khz: 1_000_000, hypervisor: vec![signature] }
}

/// An engine that has every feature with a name.
fn everything() -> CpuidTable {
    let mut table = CpuidTable::default();
    all_features().for_each(|f| table.set_feature(f, true));
    table
}

fn resolved(name: &str, vcpus: u32) -> CpuidTable {
    resolve(&CpuModel::named(name).unwrap(), &everything(), &options(vcpus)).unwrap()
}

#[test]
fn a_named_model_is_the_same_processor_everywhere() {
    let v3 = resolved("x86-64-v3", 2);
    let [highest, b, c, d] = v3.lookup(0, 0);
    assert_eq!(highest, 0x1f);
    assert_eq!([b, d, c].map(u32::to_le_bytes).concat(), b"GenuineIntel");
    assert_eq!(v3.lookup(1, 0)[0], 0x506e3);
    for name in ["avx2", "fma", "smap", "x2apic", "invtsc", "hypervisor", "arch_capabilities"] {
        assert!(v3.has_named(name), "{name}");
    }
    for name in HIDDEN.iter().filter(|n| **n != "ht") {
        assert!(!v3.has_named(name), "{name}");
    }
    assert!(!v3.has_named("avx512f") && !resolved("x86-64-v2", 1).has_named("avx"));
    assert!(resolved("x86-64-v4", 1).has_named("avx512vl"));
}

#[test]
fn a_refusal_names_what_is_missing() {
    let less = mask(&everything(), &["avx2", "fma"]);
    let v3 = CpuModel::named("x86-64-v3").unwrap();
    let refusal = resolve(&v3, &less, &options(1)).unwrap_err();
    assert_eq!(refusal.missing, ["avx2", "fma"]);
    let text = refusal.to_string();
    assert_eq!(text, "CPU model x86-64-v3 needs what this engine lacks here: avx2, fma");
    assert_eq!(best_model(&less).unwrap().name(), "x86-64-v2");
    assert_eq!(best_model(&everything()).unwrap().name(), "x86-64-v3");
    assert!(best_model(&CpuidTable::default()).is_none());
}

#[test]
fn translate_offers_no_avx_512() {
    let translate = translate_features(&host_table());
    let v4 = CpuModel::named("x86-64-v4").unwrap();
    let refusal = resolve(&v4, &translate, &options(1)).unwrap_err();
    assert!(refusal.missing.contains(&"avx512f"));
    let host = resolve(&CpuModel::named("host").unwrap(), &translate, &options(1)).unwrap();
    assert!(host.has_named("sse2") && !host.has_named("avx512f"));
    assert_eq!(host.lookup(0, 0)[1..], host_table().lookup(0, 0)[1..], "the host's vendor");
}

#[test]
fn the_xsave_area_is_consistent() {
    let v3 = resolved("x86-64-v3", 1);
    assert_eq!(v3.lookup(0xd, 0), [7, 832, 832, 0]);
    assert_eq!(v3.lookup(0xd, 1), [7, 832, 0, 0]);
    assert_eq!(v3.lookup(0xd, 2), [256, 576, 0, 0]);
    assert_eq!(v3.lookup(0xd, 3), [0; 4]);
    assert_eq!(resolved("x86-64-v2", 1).lookup(0xd, 0), [0; 4]);
}

#[test]
fn each_vcpu_is_a_core_of_one_package() {
    for (vcpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (255, 8)] {
        let table = resolved("x86-64-v3", vcpus);
        for id in [0, vcpus - 1] {
            let mine = table.for_vcpu(id);
            assert_eq!(mine.lookup(1, 0)[1] >> 24, id);
            assert_eq!(mine.lookup(1, 0)[1] >> 16 & 0xff, vcpus);
            assert_eq!(mine.has_named("ht"), vcpus > 1);
            for leaf in [0xb, 0x1f] {
                assert_eq!(mine.lookup(leaf, 0), [0, 1, 0x100, id]);
                assert_eq!(mine.lookup(leaf, 1), [bits, vcpus, 0x201, id]);
                assert_eq!(mine.lookup(leaf, 2), [0, 0, 2, id]);
            }
            let cores = (mine.lookup(4, 0)[0] >> 26) + 1;
            assert!(cores.is_power_of_two() && (cores >= vcpus || cores == 64));
        }
    }
}

#[test]
fn what_is_absent_is_zero() {
    let v3 = resolved("x86-64-v3", 1);
    for leaf in [3, 5, 9, 0xa, 0xc, 0x10, 0x12, 0x14, 0x8000_0005] {
        assert_eq!(v3.lookup(leaf, 0), [0; 4], "{leaf:#x}");
    }
    assert_eq!(v3.lookup(0x8000_0008, 0)[0], 0x302e);
    assert_eq!(v3.lookup(0x4000_0000, 0)[0], 0x4000_0010);
    assert_eq!(v3.lookup(0x4000_0010, 0), [2_100_000, 1_000_000, 0, 0]);
    let alone = Options { hypervisor: vec![], ..options(1) };
    let v2 = resolve(&CpuModel::named("x86-64-v2").unwrap(), &everything(), &alone).unwrap();
    assert!(!v2.has_named("hypervisor"));
    assert_eq!(v2.lookup(0x4000_0000, 0), [0; 4]);
}

#[test]
fn translate_offers_the_control_that_kernels_prefer_to_a_loop() {
    let table = resolved_from(&translate_features(&host_table()));
    assert!(table.has_named("bhi_ctrl") && table.lookup(7, 0)[0] == 2);
    assert_eq!(table.lookup(7, 1), [0; 4]);
    // IA32_ARCH_CAPABILITIES says that nothing of it would be needed.
    assert_ne!(TRANSLATE_ARCH_CAPABILITIES & 1 << 20, 0);
}

fn resolved_from(supported: &CpuidTable) -> CpuidTable {
    resolve(&CpuModel::named("host").unwrap(), supported, &options(1)).unwrap()
}
