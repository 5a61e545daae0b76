use super::*;
use proptest::prelude::*;

/// A structure as software reads it: type, handle, fields with the header, texts.
struct Read {
    kind: u8,
    handle: u16,
    fields: Vec<u8>,
    texts: Vec<String>,
}

impl Read {
    /// The text whose number is at this offset.
    fn text(&self, at: usize) -> &str {
        usize::from(self.fields[at]).checked_sub(1).map_or("", |index| &self.texts[index])
    }
}

fn read(mut bytes: &[u8]) -> Vec<Read> {
    let mut all = Vec::new();
    while let [kind, length, low, high, ..] = *bytes {
        let (fields, rest) = bytes.split_at(length.into());
        let end = rest.windows(2).position(|pair| pair == [0, 0]).unwrap();
        let texts = rest[..end].split(|byte| *byte == 0).filter(|text| !text.is_empty());
        let texts = texts.map(|text| String::from_utf8_lossy(text).into_owned()).collect();
        let handle = u16::from_le_bytes([low, high]);
        all.push(Read { kind, handle, fields: fields.to_vec(), texts });
        bytes = &rest[end + 2..];
    }
    assert!(bytes.is_empty());
    all
}

fn description() -> Description {
    Description {
        system: System {
            manufacturer: "Maker".into(),
            product: "Product".into(),
            serial: "S-1".into(),
            uuid: *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff",
            ..System::default()
        },
        board: Some(Board::default()),
        oem: vec!["one".into(), "two".into()],
        memory: vec![0..0xb000_0000, 1 << 32..(1 << 32) + (40 << 30)],
        processor: Processor { cores: 300, ..Processor::default() },
        ..Description::default()
    }
}

#[test]
fn structures_have_the_lengths_of_the_specification() {
    let all = read(&build(&description()).structures);
    let kinds: Vec<_> = all.iter().map(|s| (s.kind, s.fields.len())).collect();
    assert_eq!(
        kinds,
        [
            (0, 0x18),
            (1, 0x1b),
            (2, 0x0f),
            (3, 0x16),
            (4, 0x30),
            (11, 5),
            (16, 0x17),
            (17, 0x28),
            (17, 0x28),
            (17, 0x28),
            (19, 0x1f),
            (19, 0x1f),
            (32, 0x0b),
            (127, 4),
        ]
    );
    let mut handles: Vec<_> = all.iter().map(|s| s.handle).collect();
    handles.dedup();
    assert!(handles.is_sorted() && handles.len() == all.len());
}

#[test]
fn a_system_is_who_it_is_told_to_be() {
    let all = read(&build(&description()).structures);
    let system = &all[1];
    let texts = [4, 5, 6, 7, 0x19, 0x1a].map(|at| system.text(at));
    assert_eq!(texts, ["Maker", "Product", "", "S-1", "", ""]);
    assert_eq!(
        system.fields[8..24],
        *b"\x33\x22\x11\x00\x55\x44\x77\x66\x88\x99\xaa\xbb\xcc\xdd\xee\xff"
    );
    assert_eq!(all[5].texts, ["one", "two"]);
    let processor = &all[4].fields;
    assert_eq!((processor[0x23], &processor[0x2a..0x2c]), (0xff, &[0x2c, 1][..]));
}

#[test]
fn memory_is_all_there() {
    let all = read(&build(&description()).structures);
    let sizes: Vec<u32> = all
        .iter()
        .filter(|s| s.kind == 17)
        .map(|s| match u16::from_le_bytes([s.fields[12], s.fields[13]]) {
            0x7fff => u32::from_le_bytes(s.fields[28..32].try_into().unwrap()),
            mib => mib.into(),
        })
        .collect();
    assert_eq!(sizes, [16 << 10, 16 << 10, (40 << 10) + 2816 - (32 << 10)]);
    let last = &all[11].fields;
    assert_eq!(last[4..12], [0, 0, 0x40, 0, 0xff, 0xff, 0xbf, 2]);
}

#[test]
fn the_entry_point_sums_to_zero_and_leads_there() {
    let tables = build(&description());
    let entry = tables.entry(0xf_0020);
    assert_eq!((&entry[..5], entry[6]), (&b"_SM3_"[..], 24));
    assert_eq!(entry.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    assert_eq!(entry[16..], 0xf_0020u64.to_le_bytes());
    assert_eq!(entry[12..16], (tables.structures.len() as u32).to_le_bytes());
}

proptest! {
    #[test]
    fn any_text_is_read_back(texts in prop::collection::vec(".{0,300}", 0..300), size: u64) {
        let description = Description {
            oem: texts.clone(),
            memory: vec![0..size, 0..0],
            ..Description::default()
        };
        let all = read(&build(&description).structures);
        prop_assert_eq!(all.last().map(|s| s.kind), Some(127));
        let oem = all.iter().find(|s| s.kind == 11).map_or(0, |s| s.texts.len());
        prop_assert_eq!(oem, texts.len().min(255));
    }
}
