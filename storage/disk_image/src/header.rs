//! The header of a qcow2 image (QEMU, docs/interop/qcow2.rst), checked before anything believes
//! it.
//!
//! imago reads the header again, but leaves some of it unchecked: tables of any size, encryption,
//! extensions that are cut off. What passes here has tables of bounded size, and nothing that
//! this crate does not do.

use std::{fs::File, io, os::unix::fs::FileExt};

const MAGIC: &[u8; 4] = b"QFI\xfb";
/// Bytes of the header of version 2, and at least of version 3.
const V2: usize = 72;
const V3: usize = 104;
/// 512 bytes to 2 MiB, as in QEMU.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// QEMU's limits, in bytes.
const L1_MAX: u64 = 32 << 20;
const REFCOUNT_TABLE_MAX: u64 = 8 << 20;
/// No offset in an image is larger.
const OFFSET_MAX: u64 = 1 << 56;
const BACKING_NAME_MAX: u32 = 1023;

/// Header extensions that matter here.
mod extension {
    pub const END: u32 = 0;
    pub const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub const FEATURE_NAMES: u32 = 0x6803_f857;
    pub const BITMAPS: u32 = 0x2385_2875;
    /// Bytes of a name in the table of features.
    pub const FEATURE_NAME: usize = 48;
}

/// Bit 0 of the incompatible features: the reference counts may be wrong.
const DIRTY: u64 = 1;
/// The other ones, from bit 1 on.
const FEATURES: [&str; 4] = [
    "is marked as corrupt",
    "has its data in another file",
    "is compressed by zstd",
    "has extended L2 entries",
];
/// Where the byte is that has [`DIRTY`].
const DIRTY_AT: u64 = 79;
/// Where the offset and the clusters of the table of reference counts are.
const COUNTS_AT: u64 = 48;

#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    #[error("it is no qcow2 image")]
    Magic,
    #[error("it is qcow2 of version {0}")]
    Version(u32),
    #[error("it is encrypted")]
    Encrypted,
    #[error("it {0}")]
    Feature(&'static str),
    #[error("it has incompatible features {0:#x}")]
    Features(u64),
    #[error("its header makes no sense: {0}")]
    Invalid(&'static str),
    #[error("reading its header failed")]
    Io(#[from] io::Error),
}

impl HeaderError {
    /// Whether `qemu-img check -r all` may help.
    pub fn repairable(&self) -> bool {
        matches!(self, Self::Feature(what) if *what == FEATURES[0])
    }
}

/// What an image says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    /// Capacity of the disk in bytes.
    pub size: u64,
    /// The name of the backing file, as it stands there, and its format.
    pub backing: Option<Backing>,
    /// Its last user has not closed it, so that its reference counts may be wrong.
    pub dirty: bool,
    /// It has internal snapshots, or bitmaps of what has changed.
    pub extras: bool,
    /// A reference count has two to this power bits.
    pub refcount_order: u32,
    /// Where the L1 table is, and its entries.
    pub l1: (u64, usize),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    pub name: String,
    pub format: Option<String>,
}

/// Big-endian fields.
struct Fields(Vec<u8>);

impl Fields {
    fn get<const N: usize>(&self, at: usize) -> Result<[u8; N], HeaderError> {
        let bytes = at.checked_add(N).and_then(|end| self.0.get(at..end));
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.ok_or(HeaderError::Invalid("it is cut off"))
    }

    fn word(&self, at: usize) -> Result<u32, HeaderError> {
        self.get(at).map(u32::from_be_bytes)
    }

    fn long(&self, at: usize) -> Result<u64, HeaderError> {
        self.get(at).map(u64::from_be_bytes)
    }
}

/// Whether a file begins as a qcow2 image does.
pub(crate) fn is_qcow2(start: &[u8]) -> bool {
    start.starts_with(MAGIC)
}

impl Header {
    /// Reads and checks the header.
    ///
    /// # Errors
    /// If the file is no qcow2 image, or one that cannot be used.
    pub fn read(file: &File) -> Result<Self, HeaderError> {
        let mut start = vec![0; V3];
        let length = read_at(file, &mut start, 0)?;
        start.truncate(length);
        let magic = is_qcow2(&start);
        let start = Fields(start);
        if !magic {
            return Err(HeaderError::Magic);
        }
        // All of the header and its extensions are inside the first cluster.
        let bits = start.word(20)?;
        if !CLUSTER_BITS.contains(&bits) {
            return Err(HeaderError::Invalid("the size of its clusters"));
        }
        let mut cluster = vec![0; 1 << bits];
        let length = read_at(file, &mut cluster, 0)?;
        cluster.truncate(length);
        Self::parse(&Fields(cluster))
    }

    fn parse(fields: &Fields) -> Result<Self, HeaderError> {
        let version = fields.word(4)?;
        let cluster_bits = fields.word(20)?;
        let length = match version {
            2 => V2,
            3 => check_version_3(fields, cluster_bits)?,
            other => return Err(HeaderError::Version(other)),
        };
        if fields.word(32)? != 0 {
            return Err(HeaderError::Encrypted);
        }
        let size = fields.long(24)?;
        check_tables(fields, cluster_bits, size)?;
        let Extensions { format, bitmaps } = extensions(fields, version, length)?;
        let backing = match fields.long(8)? {
            0 => None,
            at => Some(Backing { name: backing_name(fields, at)?, format }),
        };
        Ok(Self {
            version,
            cluster_bits,
            size,
            backing,
            dirty: version > 2 && fields.long(72)? & DIRTY != 0,
            extras: bitmaps || fields.word(60)? != 0,
            refcount_order: if version > 2 { fields.word(96)? } else { 4 },
            l1: (fields.long(40)?, fields.word(36)? as usize),
        })
    }
}

/// Says in the image whether its reference counts may be wrong.
pub(crate) fn set_dirty(file: &File, dirty: bool) -> io::Result<()> {
    // The other features of this byte are none that are opened.
    file.write_all_at(&[u8::from(dirty)], DIRTY_AT)
}

/// Says where the table of reference counts is.
pub(crate) fn set_counts(file: &File, offset: u64, clusters: u32) -> io::Result<()> {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&offset.to_be_bytes());
    bytes[8..].copy_from_slice(&clusters.to_be_bytes());
    file.write_all_at(&bytes, COUNTS_AT)
}

/// As much as there is, up to the end of `bytes`.
pub(crate) fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], at + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// The fields that version 3 added; the header's length.
fn check_version_3(fields: &Fields, cluster_bits: u32) -> Result<usize, HeaderError> {
    let features = fields.long(72)? & !DIRTY;
    if let Some(what) = FEATURES.iter().enumerate().find(|(bit, _)| features & (2 << bit) != 0) {
        return Err(HeaderError::Feature(what.1));
    }
    if features != 0 {
        return Err(HeaderError::Features(features));
    }
    if fields.word(96)? > 6 {
        return Err(HeaderError::Invalid("the width of its reference counts"));
    }
    let length = usize::try_from(fields.word(100)?).unwrap_or(usize::MAX);
    if !(V3..=1 << cluster_bits).contains(&length) || !length.is_multiple_of(8) {
        return Err(HeaderError::Invalid("its length"));
    }
    Ok(length)
}

/// Where the L1 table and the table of reference counts are, and how large.
fn check_tables(fields: &Fields, cluster_bits: u32, size: u64) -> Result<(), HeaderError> {
    let invalid = |what| Err(HeaderError::Invalid(what));
    if size == 0 || !size.is_multiple_of(512) {
        return invalid("the size of the disk");
    }
    let cluster = 1_u64 << cluster_bits;
    let l1_entries = u64::from(fields.word(36)?);
    // One entry stands for a cluster of eight-byte entries for clusters.
    let covers = u128::from(l1_entries) << (2 * cluster_bits - 3);
    if l1_entries * 8 > L1_MAX || covers < u128::from(size) {
        return invalid("the size of its L1 table");
    }
    let counts = u64::from(fields.word(56)?) << cluster_bits;
    if counts == 0 || counts > REFCOUNT_TABLE_MAX.max(cluster) {
        return invalid("the size of its table of reference counts");
    }
    for at in [40, 48] {
        let offset = fields.long(at)?;
        if offset < cluster || !offset.is_multiple_of(cluster) || offset >= OFFSET_MAX {
            return invalid("where its tables are");
        }
    }
    Ok(())
}

#[derive(Default)]
struct Extensions {
    /// The format of the backing file, if one says it.
    format: Option<String>,
    bitmaps: bool,
}

fn extensions(fields: &Fields, version: u32, from: usize) -> Result<Extensions, HeaderError> {
    let mut found = Extensions::default();
    let mut at = from;
    // Version 2 has them too, but imago does not look there, and QEMU makes version 3.
    if version < 3 {
        return Ok(found);
    }
    loop {
        let (kind, length) = (fields.word(at)?, fields.word(at + 4)?);
        if kind == extension::END {
            return Ok(found);
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let data = (at + 8).checked_add(length).and_then(|end| fields.0.get(at + 8..end));
        let data = data.ok_or(HeaderError::Invalid("an extension is cut off"))?;
        match kind {
            extension::BACKING_FORMAT => {
                let text = std::str::from_utf8(data);
                let text = text.map_err(|_| HeaderError::Invalid("the format's name"))?;
                if found.format.replace(text.to_owned()).is_some() {
                    return Err(HeaderError::Invalid("two formats of the backing file"));
                }
            }
            extension::FEATURE_NAMES if !length.is_multiple_of(extension::FEATURE_NAME) => {
                return Err(HeaderError::Invalid("the names of its features"));
            }
            extension::BITMAPS => found.bitmaps = true,
            _ => {}
        }
        at = at + 8 + length.next_multiple_of(8);
    }
}

fn backing_name(fields: &Fields, at: u64) -> Result<String, HeaderError> {
    let invalid = || HeaderError::Invalid("the backing file's name");
    let length = fields.word(16)?;
    if length == 0 || length > BACKING_NAME_MAX {
        return Err(invalid());
    }
    let at = usize::try_from(at).map_err(|_| invalid())?;
    let end = at.checked_add(length as usize).ok_or_else(invalid)?;
    let name = fields.0.get(at..end).ok_or_else(invalid)?;
    let name = std::str::from_utf8(name).map_err(|_| invalid())?;
    // An image that is padded says so by zeroes.
    if name.contains('\0') { Err(invalid()) } else { Ok(name.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    const CLUSTER: u32 = 16;

    /// A good header: 1 GiB, clusters of 64 KiB, a raw backing file.
    fn good() -> Vec<u8> {
        let mut bytes = vec![0; 1 << CLUSTER];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, MAGIC);
        put(4, &3_u32.to_be_bytes());
        put(8, &0x200_u64.to_be_bytes());
        put(16, &8_u32.to_be_bytes());
        put(20, &CLUSTER.to_be_bytes());
        put(24, &(1_u64 << 30).to_be_bytes());
        put(36, &2_u32.to_be_bytes());
        put(40, &(3_u64 << CLUSTER).to_be_bytes());
        put(48, &(1_u64 << CLUSTER).to_be_bytes());
        put(56, &1_u32.to_be_bytes());
        put(96, &4_u32.to_be_bytes());
        put(100, &104_u32.to_be_bytes());
        put(104, &extension::BACKING_FORMAT.to_be_bytes());
        put(108, &3_u32.to_be_bytes());
        put(112, b"raw");
        put(0x200, b"base.img");
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Header, HeaderError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Header::read(&file)
    }

    fn with(at: usize, value: &[u8]) -> HeaderError {
        let mut bytes = good();
        bytes[at..at + value.len()].copy_from_slice(value);
        parse(&bytes).unwrap_err()
    }

    #[test]
    fn what_it_says() {
        let header = parse(&good()).unwrap();
        assert_eq!((header.version, header.cluster_bits, header.size), (3, CLUSTER, 1 << 30));
        assert!(!header.dirty && !header.extras && header.refcount_order == 4);
        assert_eq!(header.l1, (3 << CLUSTER, 2));
        let backing = header.backing.unwrap();
        assert_eq!((&*backing.name, backing.format.as_deref()), ("base.img", Some("raw")));
    }

    #[test]
    fn what_is_refused() {
        assert!(matches!(with(0, b"KDMV"), HeaderError::Magic));
        assert!(matches!(with(4, &4_u32.to_be_bytes()), HeaderError::Version(4)));
        assert!(matches!(with(32, &2_u32.to_be_bytes()), HeaderError::Encrypted));
        for bit in 1..5 {
            let error = with(72, &(1_u64 << bit).to_be_bytes());
            assert!(matches!(error, HeaderError::Feature(_)), "{error}");
            assert_eq!(error.repairable(), bit == 1);
        }
        assert!(matches!(with(72, &(1_u64 << 40).to_be_bytes()), HeaderError::Features(_)));
        for (at, value) in [
            (20, &22_u32.to_be_bytes()[..]),
            (20, &8_u32.to_be_bytes()),
            (24, &0_u64.to_be_bytes()),
            (24, &1000_u64.to_be_bytes()),
            // More than two entries reach.
            (24, &((1_u64 << 30) + 512).to_be_bytes()),
            (36, &u32::MAX.to_be_bytes()),
            (40, &0_u64.to_be_bytes()),
            (40, &1000_u64.to_be_bytes()),
            (48, &u64::MAX.to_be_bytes()),
            (56, &0_u32.to_be_bytes()),
            (56, &u32::MAX.to_be_bytes()),
            (96, &7_u32.to_be_bytes()),
            (100, &72_u32.to_be_bytes()),
            (100, &(1_u32 << 17).to_be_bytes()),
            (108, &(1_u32 << 16).to_be_bytes()),
            (104, &extension::FEATURE_NAMES.to_be_bytes()),
            (16, &1024_u32.to_be_bytes()),
            (8, &u64::MAX.to_be_bytes()),
            (0x200, b"\xff\xfe"),
            (0x200, b"a\0"),
        ] {
            let error = with(at, value);
            assert!(matches!(error, HeaderError::Invalid(_)), "{at} {value:?}: {error}");
        }
    }

    #[test]
    fn what_is_said_in_an_image() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&good()).unwrap();
        set_dirty(&file, true).unwrap();
        assert!(Header::read(&file).unwrap().dirty);
        set_dirty(&file, false).unwrap();
        set_counts(&file, 7 << CLUSTER, 2).unwrap();
        let header = Header::read(&file).unwrap();
        assert!(!header.dirty);
        let mut bytes = [0; 12];
        file.read_at(&mut bytes, 48).unwrap();
        assert_eq!(bytes, [0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 2]);
    }

    #[test]
    fn what_is_cut_off() {
        for length in [0, 3, 4, 71, 103, 110, 0x203] {
            assert!(parse(&good()[..length]).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn noise_is_only_refused(changes in prop::collection::vec((0_usize..0x210, any::<u8>()), 1..12)) {
            let mut bytes = good();
            changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
            if let Ok(header) = parse(&bytes) {
                prop_assert!(CLUSTER_BITS.contains(&header.cluster_bits));
                prop_assert!(header.size != 0 && header.size.is_multiple_of(512));
            }
        }
    }
}
