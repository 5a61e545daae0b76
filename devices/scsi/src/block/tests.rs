use super::*;
use crate::Change;
use disk::Memory;
use proptest::prelude::*;

const BLOCKS: u64 = 64;

fn unit_of(shape: Shape) -> DiskUnit {
    let identity = Identity { serial: "S-1".into(), place: "0:0".into() };
    let unit = DiskUnit::new(Arc::new(Memory::new(shape)), identity);
    assert_eq!(unit.command(&cdb(&[0])), Outcome::Failed(Sense::POWER_ON));
    unit
}

fn shape() -> Shape {
    Shape { discard: true, physical_block: 4096, ..Shape::of_bytes(BLOCKS * 512) }
}

fn unit() -> DiskUnit {
    unit_of(shape())
}

fn cdb(bytes: &[u8]) -> [u8; CDB] {
    let mut cdb = [0; CDB];
    cdb[..bytes.len()].copy_from_slice(bytes);
    cdb
}

fn ask(unit: &DiskUnit, bytes: &[u8]) -> Outcome {
    unit.command(&cdb(bytes))
}

fn data(unit: &DiskUnit, bytes: &[u8]) -> Vec<u8> {
    match ask(unit, bytes) {
        Outcome::Data(data) => data,
        other => panic!("{other:?}"),
    }
}

#[test]
fn reads_and_writes_of_every_length() {
    let unit = unit();
    let read = |blocks: u64| Outcome::Read { at: 512, len: blocks * 512 };
    assert_eq!(ask(&unit, &[0x08, 0, 0, 1, 2]), read(2));
    assert_eq!(ask(&unit, &[0x28, 0, 0, 0, 0, 1, 0, 0, 2]), read(2));
    assert_eq!(ask(&unit, &[0xa8, 0, 0, 0, 0, 1, 0, 0, 0, 2]), read(2));
    assert_eq!(ask(&unit, &[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2]), read(2));
    assert_eq!(ask(&unit, &[0x28, 0, 0, 0, 0, 64, 0, 0, 0]), Outcome::Read { at: 1 << 15, len: 0 });
    assert_eq!(ask(&unit, &[0x08, 0, 0, 0, 0]), Outcome::Failed(Sense::NO_SUCH_ADDRESS), "256");
    let write = |sync| Outcome::Write { at: 512, len: 512, sync };
    assert_eq!(ask(&unit, &[0x0a, 0, 0, 1, 1]), write(false));
    assert_eq!(ask(&unit, &[0x2a, 8, 0, 0, 0, 1, 0, 0, 1]), write(true), "FUA");
    assert_eq!(ask(&unit, &[0xaa, 0, 0, 0, 0, 1, 0, 0, 0, 1]), write(false));
    assert_eq!(ask(&unit, &[0x8a, 8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]), write(true));
    for bad in [
        &[0x28, 0, 0, 0, 0, 63, 0, 0, 2][..],
        &[0x2a, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 1],
        &[0x88, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[0x91, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    ] {
        assert_eq!(ask(&unit, bad), Outcome::Failed(Sense::NO_SUCH_ADDRESS), "{bad:?}");
    }
    assert_eq!(ask(&unit, &[0x28, 0x20]), Outcome::Failed(Sense::BAD_FIELD), "protection");
    assert_eq!(ask(&unit, &[0x35]), Outcome::Flush);
    assert_eq!(ask(&unit, &[0x2f, 0, 0, 0, 0, 0, 0, 0, 64]), Outcome::Good);
    assert_eq!(ask(&unit, &[0x2f, 2]), Outcome::Failed(Sense::BAD_FIELD));
    assert_eq!(ask(&unit, &[0xf0]), Outcome::Failed(Sense::NO_SUCH_COMMAND));
}

#[test]
fn capacities() {
    assert_eq!(data(&unit(), &[0x25]), [0, 0, 0, 63, 0, 0, 2, 0]);
    let long = data(&unit(), &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32]);
    assert_eq!(long[..16], [0, 0, 0, 0, 0, 0, 0, 63, 0, 0, 2, 0, 0, 3, 0x80, 0]);
    assert_eq!(long.len(), 32);
    assert_eq!(data(&unit(), &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12]).len(), 12);
    struct Huge;
    impl Disk for Huge {
        fn shape(&self) -> Shape {
            Shape::of_bytes(3 << 41)
        }
        fn read(&self, _: u64, _: &mut [u8]) -> Result<(), Error> {
            Ok(())
        }
        fn write(&self, _: u64, _: &[u8]) -> Result<(), Error> {
            Ok(())
        }
        fn flush(&self) -> Result<(), Error> {
            Ok(())
        }
        fn write_zeroes(&self, _: u64, _: u64, _: bool) -> Result<(), Error> {
            Ok(())
        }
    }
    let huge = DiskUnit::new(Arc::new(Huge), Identity::default());
    huge.take_sense();
    ask(&huge, &[0]);
    assert_eq!(data(&huge, &[0x25])[..4], [0xff; 4]);
    let long = data(&huge, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32]);
    assert_eq!(long[..8], ((3u64 << 32) - 1).to_be_bytes());
    let read = [0x88, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1];
    assert_eq!(ask(&huge, &read), Outcome::Read { at: 2 << 41, len: 512 });
}

#[test]
fn vital_product_data() {
    let unit = unit();
    let page = |code: u8| data(&unit, &[0x12, 1, code, 1, 0]);
    assert_eq!(page(0), [0, 0, 0, 6, 0, 0x80, 0x83, 0xb0, 0xb1, 0xb2]);
    assert_eq!(page(0x80), [&[0, 0x80, 0, 3][..], b"S-1"].concat());
    let id = page(0x83);
    assert_eq!((usize::from(id[3]) + 4, usize::from(id[7]) + 8), (id.len(), id.len()));
    assert_eq!(&id[8..], b"SARANG  HARDDISK        S-1");
    let limits = page(0xb0);
    assert_eq!((limits.len(), limits[4], limits[7]), (64, 1, 8), "WSNZ, grain");
    assert_eq!(limits[20..24], (2u32 << 20).to_be_bytes(), "UNMAP: a GiB");
    assert_eq!(limits[24..28], 256u32.to_be_bytes());
    assert_eq!(limits[36..44], (2u64 << 20).to_be_bytes(), "WRITE SAME");
    assert_eq!((page(0xb1).len(), page(0xb1)[5]), (64, 1));
    assert_eq!(page(0xb2), [0, 0xb2, 0, 4, 0, 0xe0, 2, 0]);
    assert_eq!(ask(&unit, &[0x12, 1, 0xc7, 0, 9]), Outcome::Failed(Sense::BAD_FIELD));
    assert_eq!(ask(&unit, &[0x12, 0, 0x80, 0, 9]), Outcome::Failed(Sense::BAD_FIELD));
    let standard = data(&unit, &[0x12, 0, 0, 1, 0]);
    assert_eq!((standard.len(), usize::from(standard[4]) + 5), (36, 36));
    let plain = unit_of(Shape { discard: false, ..shape() });
    assert_eq!(data(&plain, &[0x12, 1, 0xb2, 1, 0]), [0, 0xb2, 0, 4, 0, 0, 0, 0]);
    assert_eq!(data(&plain, &[0x12, 1, 0xb0, 1, 0])[20..28], [0; 8]);
    assert_eq!(
        ask(&plain, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24]),
        Outcome::Failed(Sense::NO_SUCH_COMMAND)
    );
}

#[test]
fn the_write_cache_can_be_switched_off() {
    let unit = unit();
    let cache = |control: u8| data(&unit, &[0x1a, 8, control | 8, 0, 255])[4 + 2];
    assert_eq!((cache(0), cache(0x40), cache(0x80)), (4, 4, 4));
    let select = [0x15, 0x10, 0, 0, 24];
    assert_eq!(ask(&unit, &select), Outcome::Parameters(24));
    let mut list = data(&unit, &[0x1a, 8, 8, 0, 255]);
    list[0] = 0;
    list[6] = 0;
    assert_eq!(unit.parameters(&cdb(&select), &list), Outcome::Flush);
    assert_eq!((cache(0), cache(0x80)), (0, 4));
    let write = Outcome::Write { at: 0, len: 512, sync: true };
    assert_eq!(ask(&unit, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1]), write);
    list[7] ^= 1;
    assert_eq!(unit.parameters(&cdb(&select), &list), Outcome::Failed(Sense::BAD_PARAMETER));
    assert_eq!(
        unit.parameters(&cdb(&select), &list[..20]),
        Outcome::Failed(Sense::PARAMETER_LENGTH)
    );
    assert_eq!(ask(&unit, &[0x15, 0x11, 0, 0, 24]), Outcome::Failed(Sense::BAD_FIELD), "SP");
    assert_eq!(ask(&unit, &[0x1a, 0, 0xc8, 0, 255]), Outcome::Failed(Sense::NOT_SAVED));
    let all = data(&unit, &[0x5a, 0, 0x3f, 0xff, 0, 0, 0, 1, 0]);
    assert_eq!((usize::from(all[1]) + 2, all[3]), (all.len(), 0x10));
    unit.reset(Sense::UNIT_RESET);
    assert_eq!(ask(&unit, &[0]), Outcome::Failed(Sense::UNIT_RESET));
    assert_eq!(cache(0), 4);
}

#[test]
fn unmap_and_write_same() {
    let unit = unit();
    let command = [0x42, 0, 0, 0, 0, 0, 0, 0, 40];
    assert_eq!(ask(&unit, &command), Outcome::Parameters(40));
    let mut list = vec![0, 38, 0, 32, 0, 0, 0, 0];
    for (lba, count) in [(8u64, 8u32), (60, 4)] {
        list.extend(lba.to_be_bytes());
        list.extend(count.to_be_bytes());
        list.extend([0; 4]);
    }
    let changes = [(4096, 4096), (60 * 512, 2048)].map(|(at, len)| Change::Discard { at, len });
    let done = Outcome::Change { changes: changes.to_vec(), sync: false };
    assert_eq!(unit.parameters(&cdb(&command), &list), done);
    list[15 + 16] = 61;
    assert_eq!(unit.parameters(&cdb(&command), &list), Outcome::Failed(Sense::NO_SUCH_ADDRESS));
    assert_eq!(
        unit.parameters(&cdb(&command), &list[..7]),
        Outcome::Failed(Sense::PARAMETER_LENGTH)
    );
    let many = [vec![0x10, 0x18, 0x10, 0x10, 0, 0, 0, 0], vec![0; 257 * 16]].concat();
    assert_eq!(unit.parameters(&cdb(&command), &many), Outcome::Failed(Sense::BAD_PARAMETER));
    let zero = |unmap| Outcome::Change {
        changes: vec![Change::Zero { at: 512, len: 1024, unmap }],
        sync: false,
    };
    let same = |flags: u8| [0x93, flags, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2];
    assert_eq!(ask(&unit, &same(9)), zero(true));
    assert_eq!(ask(&unit, &same(8)), Outcome::Parameters(512));
    assert_eq!(unit.parameters(&cdb(&same(8)), &[0; 512]), zero(true));
    let fill = Change::Fill { at: 512, len: 1024, pattern: vec![7; 1024] };
    let done = Outcome::Change { changes: vec![fill], sync: false };
    assert_eq!(unit.parameters(&cdb(&same(0)), &[7; 512]), done);
    assert_eq!(
        unit.parameters(&cdb(&same(0)), &[7; 511]),
        Outcome::Failed(Sense::PARAMETER_LENGTH)
    );
    assert_eq!(ask(&unit, &[0x41, 0, 0, 0, 0, 1, 0, 0, 0]), Outcome::Failed(Sense::BAD_FIELD));
}

#[test]
fn what_is_read_only_or_stopped() {
    let unit = unit_of(Shape { read_only: true, ..shape() });
    for write in [
        &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1][..],
        &[0x42],
        &[0x93, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    ] {
        assert_eq!(ask(&unit, write), Outcome::Failed(Sense::WRITE_PROTECTED), "{write:?}");
    }
    assert_eq!(data(&unit, &[0x1a, 8, 8, 0, 255])[2], 0x90);
    assert_eq!(ask(&unit, &[0x1b, 0, 0, 0, 0]), Outcome::Flush);
    for medium in [&[0][..], &[0x28], &[0x25]] {
        assert_eq!(ask(&unit, medium), Outcome::Failed(Sense::STOPPED));
    }
    assert_eq!(data(&unit, &[3, 0, 0, 0, 18])[2], 2);
    assert_eq!(data(&unit, &[3, 0, 0, 0, 18])[2], 0, "told once");
    assert_eq!(ask(&unit, &[0x1b, 0, 0, 0, 1]), Outcome::Good);
    assert_eq!(ask(&unit, &[0]), Outcome::Good);
}

#[test]
fn errors_of_the_storage_are_sense() {
    struct Broken;
    impl Disk for Broken {
        fn shape(&self) -> Shape {
            shape()
        }
        fn read(&self, _: u64, _: &mut [u8]) -> Result<(), Error> {
            Err(Error::Io { call: "read", source: std::io::ErrorKind::Other.into() })
        }
        fn write(&self, _: u64, _: &[u8]) -> Result<(), Error> {
            Err(Error::Io { call: "write", source: std::io::ErrorKind::Other.into() })
        }
        fn flush(&self) -> Result<(), Error> {
            Err(Error::Io { call: "flush", source: std::io::ErrorKind::Other.into() })
        }
        fn write_zeroes(&self, _: u64, _: u64, _: bool) -> Result<(), Error> {
            Err(Error::Unsupported("do that"))
        }
    }
    let unit = DiskUnit::new(Arc::new(Broken), Identity::default());
    assert_eq!(unit.read(0, &mut [0; 8]), Err(Sense::READ_ERROR));
    assert_eq!(unit.write(0, &[0; 8]), Err(Sense::WRITE_ERROR));
    assert_eq!(unit.flush(), Err(Sense::WRITE_ERROR));
    assert_eq!(unit.take_sense(), Sense::WRITE_ERROR);
    assert_eq!(unit.zero(0, 8, false), Err(Sense::NO_SUCH_COMMAND));
}

fn inside(at: u64, len: u64) -> bool {
    at.checked_add(len).is_some_and(|end| end <= BLOCKS * 512)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a host asks for is inside the disk.
    #[test]
    fn any_command(
        bytes: [u8; CDB],
        code in prop::sample::select(vec![
            0x00u8, 0x03, 0x08, 0x0a, 0x12, 0x15, 0x1a, 0x1b, 0x25, 0x28, 0x2a, 0x2f, 0x35, 0x41, 0x42,
            0x55, 0x5a, 0x88, 0x8a, 0x8f, 0x91, 0x93, 0x9e, 0xa8, 0xaa, 0xaf, 0xff,
        ]),
        small: bool,
        list in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let unit = unit();
        let mut bytes = bytes;
        bytes[0] = code;
        if small {
            // Addresses that are there, without flags.
            bytes[1] &= 8;
            bytes[2..8].fill(0);
            bytes[8] &= 7;
            bytes[10..13].fill(0);
        }
        let mut outcome = unit.command(&bytes);
        if let Outcome::Parameters(len) = outcome {
            prop_assert!(len <= 0xffff);
            outcome = unit.parameters(&bytes, &list);
        }
        match outcome {
            Outcome::Read { at, len } | Outcome::Write { at, len, .. } => {
                prop_assert!(inside(at, len));
            }
            Outcome::Change { changes, .. } => {
                for change in changes {
                    let (Change::Discard { at, len }
                    | Change::Zero { at, len, .. }
                    | Change::Fill { at, len, .. }) = change;
                    prop_assert!(len > 0 && inside(at, len));
                }
            }
            Outcome::Data(data) => prop_assert!(data.len() < 300),
            Outcome::Failed(sense) => prop_assert!(sense != Sense::NONE),
            Outcome::Good | Outcome::Flush => {}
            Outcome::Parameters(_) => prop_assert!(false, "parameters twice"),
        }
    }
}
