//! Whatever the files hold, planning ends in a plan inside the guest's memory or an error.

use boot::{Bytes, Loaded, Memory, Protocol, Request, Unpack};
use proptest::prelude::*;

const LOW_END: u64 = 32 << 20;

/// A plan keeps its promises: inside low RAM, and no two segments overlap.
fn check(loaded: &Loaded) {
    let mut ranges: Vec<_> = loaded.segments.iter().map(|segment| segment.range()).collect();
    ranges.sort_by_key(|range| range.start);
    assert!(ranges.iter().all(|range| range.end <= LOW_END));
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "{ranges:x?}");
    let reserved = 0x9_fc00..0x10_0000;
    assert!(ranges.iter().all(|range| range.end <= reserved.start || range.start >= reserved.end));
}

fn plan(kernel: Vec<u8>, protocol: Protocol, unpack: Unpack) {
    let request = Request {
        initrd: Some(Bytes::from(vec![1; 5000])),
        protocol,
        unpack,
        ..Request::new(kernel, Memory::low(LOW_END))
    };
    match boot::load(&request) {
        Ok(loaded) => check(&loaded),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn protocols() -> impl Strategy<Value = Protocol> {
    prop_oneof![
        Just(Protocol::Auto),
        Just(Protocol::Linux),
        Just(Protocol::Pvh),
        Just(Protocol::Multiboot),
    ]
}

fn unpacks() -> impl Strategy<Value = Unpack> {
    prop_oneof![Just(Unpack::Auto), Just(Unpack::Host), Just(Unpack::Guest)]
}

/// A 64-bit ELF file with a loadable segment at 16 MiB and a PVH note.
fn elf() -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for value in [0x100_0000u64, 64, 0] {
        file.extend(value.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for value in [64u16, 56, 2, 0, 0, 0] {
        file.extend(value.to_le_bytes());
    }
    let mut header = |kind: u32, values: [u64; 6]| {
        file.extend(kind.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    };
    header(1, [200, 0xffff_ffff_8100_0000, 0x100_0000, 100, 0x1000, 4096]);
    header(4, [176, 0, 0, 24, 24, 4]);
    for value in [4u32, 8, 18] {
        file.extend(value.to_le_bytes());
    }
    file.extend(b"Xen\0");
    file.extend(0x100_0010u64.to_le_bytes());
    file.resize(300, 0x90);
    file
}

/// A bzImage with that ELF file, uncompressed or with another payload in its place.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 1024];
    let mut set = |at: usize, value: &[u8]| file[at..at + value.len()].copy_from_slice(value);
    let kernel_length = (0x200 + payload.len()).next_multiple_of(16);
    set(0x1f1, &[1]);
    set(0x1f4, &((kernel_length / 16) as u32).to_le_bytes());
    set(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    set(0x202, b"HdrS\x0f\x02");
    set(0x211, &[1]);
    set(0x22c, &0x7fff_ffffu32.to_le_bytes());
    set(0x236, &[1, 0]);
    set(0x238, &2047u32.to_le_bytes());
    set(0x248, &0x200u32.to_le_bytes());
    set(0x24c, &(payload.len() as u32).to_le_bytes());
    set(0x258, &0x100_0000u64.to_le_bytes());
    set(0x260, &0x20_0000u32.to_le_bytes());
    file.resize(1024 + 0x200, 0x90);
    file.extend(payload);
    file.resize(1024 + kernel_length, 0);
    file
}

/// A header of either version of Multiboot, with addresses, and code.
fn multiboot(two: bool) -> Vec<u8> {
    let addresses = [0x10_0000u32, 0x10_0000, 0x10_0080, 0x10_1000];
    let magic = if two { 0xe852_50d6u32 } else { 0x1bad_b002 };
    let mut words = if two { vec![magic, 0, 64, 0] } else { vec![magic, 0x1_0003, 0] };
    let last = words.len() - 1;
    words[last] = 0u32.wrapping_sub(words.iter().fold(0, |sum, word| sum.wrapping_add(*word)));
    if two {
        words.extend([2, 24]);
        words.extend(addresses);
        words.extend([3, 12, 0x10_0060, 0, 0, 8]);
    } else {
        words.extend(addresses);
        words.push(0x10_0060);
    }
    let mut file: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    file.resize(0x100, 0x90);
    file
}

#[test]
fn the_unmutated_files_are_accepted() {
    for kernel in [elf(), bzimage(&elf()), multiboot(false), multiboot(true)] {
        let request = Request::new(kernel, Memory::low(LOW_END));
        check(&boot::load(&request).unwrap());
    }
}

/// Replacements, most of them of bytes in headers, with values that are often at an edge.
fn mutations() -> impl Strategy<Value = Vec<(usize, u64, usize)>> {
    let value = prop_oneof![
        any::<u64>(),
        Just(0),
        Just(u64::MAX),
        (0u32..64).prop_map(|bit| 1 << bit),
        (0u32..64).prop_map(|bit| (1u64 << bit).wrapping_sub(1)),
    ];
    proptest::collection::vec((0usize..2048, value, 1usize..=8), 0..6)
}

fn mutate(mut file: Vec<u8>, mutations: &[(usize, u64, usize)], length: Option<usize>) -> Vec<u8> {
    for &(at, value, width) in mutations {
        let at = at % file.len();
        for (to, from) in file[at..].iter_mut().zip(value.to_le_bytes()).take(width) {
            *to = from;
        }
    }
    file.truncate(length.unwrap_or(usize::MAX));
    file
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_bytes(
        kernel in proptest::collection::vec(any::<u8>(), 0..2000),
        protocol in protocols(),
        unpack in unpacks(),
    ) {
        plan(kernel, protocol, unpack);
    }

    #[test]
    fn mutated_elf(
        changes in mutations(),
        length in proptest::option::of(0usize..300),
        protocol in protocols(),
    ) {
        plan(mutate(elf(), &changes, length), protocol, Unpack::Auto);
    }

    #[test]
    fn mutated_multiboot_header(
        changes in proptest::collection::vec((0usize..80, any::<u64>(), 1usize..=4), 0..3),
        two in any::<bool>(),
        fix in any::<bool>(),
        length in proptest::option::of(0usize..0x100),
    ) {
        let mut file = mutate(multiboot(two), &changes, length);
        // A header whose checksum is wrong is none.
        let count = if two { 4 } else { 3 };
        if fix && file.len() >= 16 {
            let at = (count - 1) * 4;
            file[at..at + 4].fill(0);
            let words = file.chunks_exact(4).take(count);
            let sum = words.fold(0u32, |sum, w| {
                sum.wrapping_add(u32::from_le_bytes([w[0], w[1], w[2], w[3]]))
            });
            file[at..at + 4].copy_from_slice(&0u32.wrapping_sub(sum).to_le_bytes());
        }
        plan(file, Protocol::Multiboot, Unpack::Auto);
    }

    #[test]
    fn mutated_setup_header(
        changes in mutations(),
        length in proptest::option::of(0usize..2000),
        protocol in protocols(),
        unpack in unpacks(),
    ) {
        plan(mutate(bzimage(&elf()), &changes, length), protocol, unpack);
    }

    #[test]
    fn random_payload_behind_each_magic(
        magic in prop_oneof![
            Just(&b"\x1f\x8b\x08"[..]),
            Just(&b"\xfd7zXZ\0\0\x01"[..]),
            Just(&b"\x5d\0\0\x80\0"[..]),
            Just(&b"BZh9"[..]),
            Just(&b"\x02\x21\x4c\x18"[..]),
            Just(&b"\x28\xb5\x2f\xfd"[..]),
        ],
        body in proptest::collection::vec(any::<u8>(), 0..600),
        size in 0u32..100_000,
    ) {
        let payload = [magic, &body, &size.to_le_bytes()].concat();
        plan(bzimage(&payload), Protocol::Auto, Unpack::Host);
    }
}
