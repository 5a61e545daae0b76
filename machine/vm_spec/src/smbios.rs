//! What SMBIOS tells the guest of its machine, as `--smbios` says it.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{SpecError, VmSpec};

const OPTION: &str = "--smbios";
const ADVICE: &str = "give type=0 with vendor, version, date or release=MAJOR.MINOR; type=1 with \
                      manufacturer, product, version, serial, uuid, sku or family; type=2 with \
                      manufacturer, product, version, serial, asset or location; type=3 with \
                      manufacturer, version, serial, asset or sku; or type=11 with value; a comma \
                      in a text is ',,'";
/// Bytes of a text, and texts of type 11.
const TEXT_MAX: usize = 255;
const OEM_MAX: usize = 16;

/// What the operator gave; what is absent has a default, or is not told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Smbios {
    pub bios: SmbiosBios,
    pub system: SmbiosSystem,
    pub board: SmbiosBoard,
    pub chassis: SmbiosChassis,
    /// Type 11, at most 16.
    pub oem: Vec<String>,
}

/// Type 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SmbiosBios {
    pub vendor: Option<String>,
    pub version: Option<String>,
    pub date: Option<String>,
    pub release: Option<(u8, u8)>,
}

/// Type 1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SmbiosSystem {
    pub manufacturer: Option<String>,
    pub product: Option<String>,
    pub version: Option<String>,
    pub serial: Option<String>,
    pub uuid: Option<Uuid>,
    pub sku: Option<String>,
    pub family: Option<String>,
}

/// Type 2.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SmbiosBoard {
    pub manufacturer: Option<String>,
    pub product: Option<String>,
    pub version: Option<String>,
    pub serial: Option<String>,
    pub asset: Option<String>,
    pub location: Option<String>,
}

/// Type 3.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SmbiosChassis {
    pub manufacturer: Option<String>,
    pub version: Option<String>,
    pub serial: Option<String>,
    pub asset: Option<String>,
    pub sku: Option<String>,
}

impl Smbios {
    /// Where a text of this type and name goes.
    fn text(&mut self, kind: &str, name: &str) -> Option<&mut Option<String>> {
        let Self { bios, system, board, chassis, .. } = self;
        Some(match (kind, name) {
            ("0", "vendor") => &mut bios.vendor,
            ("0", "version") => &mut bios.version,
            ("0", "date") => &mut bios.date,
            ("1", "manufacturer") => &mut system.manufacturer,
            ("1", "product") => &mut system.product,
            ("1", "version") => &mut system.version,
            ("1", "serial") => &mut system.serial,
            ("1", "sku") => &mut system.sku,
            ("1", "family") => &mut system.family,
            ("2", "manufacturer") => &mut board.manufacturer,
            ("2", "product") => &mut board.product,
            ("2", "version") => &mut board.version,
            ("2", "serial") => &mut board.serial,
            ("2", "asset") => &mut board.asset,
            ("2", "location") => &mut board.location,
            ("3", "manufacturer") => &mut chassis.manufacturer,
            ("3", "version") => &mut chassis.version,
            ("3", "serial") => &mut chassis.serial,
            ("3", "asset") => &mut chassis.asset,
            ("3", "sku") => &mut chassis.sku,
            _ => return None,
        })
    }

    fn texts(&self) -> impl Iterator<Item = &String> {
        let Self { bios, system: s, board: b, chassis: c, oem } = self;
        [&bios.vendor, &bios.version, &bios.date]
            .into_iter()
            .chain([&s.manufacturer, &s.product, &s.version, &s.serial, &s.sku, &s.family])
            .chain([&b.manufacturer, &b.product, &b.version, &b.serial, &b.asset, &b.location])
            .chain([&c.manufacturer, &c.version, &c.serial, &c.asset, &c.sku])
            .flatten()
            .chain(oem)
    }

    /// Takes in one option; a later one replaces what an earlier one said of the same thing.
    pub fn add(&mut self, option: &str) -> Result<(), SpecError> {
        let refuse = |reason: &str| SpecError::new(OPTION, option, reason, ADVICE);
        let parts = crate::disk::parts(option);
        let mut parts = parts.iter().map(|part| part.split_once('=').unwrap_or((part, "")));
        let Some(("type", kind)) = parts.next() else {
            return Err(refuse("it does not begin with a type"));
        };
        if !["0", "1", "2", "3", "11"].contains(&kind) {
            return Err(refuse("structures of that type cannot be given"));
        }
        for (name, value) in parts {
            match (kind, name) {
                ("0", "release") => {
                    let numbers = value.split_once('.');
                    let numbers =
                        numbers.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
                    let wrong = || refuse("a release is two numbers up to 255 with a dot between");
                    self.bios.release = Some(numbers.ok_or_else(wrong)?);
                }
                ("1", "uuid") => {
                    let wrong = |_| refuse("that is no UUID");
                    self.system.uuid = Some(value.parse().map_err(wrong)?);
                }
                ("11", "value") => self.oem.push(value.into()),
                _ => {
                    let place = self.text(kind, name);
                    let unknown = || refuse(&format!("type {kind} has no {name:?}"));
                    *place.ok_or_else(unknown)? = Some(value.into());
                }
            }
        }
        self.validate_as(option)
    }

    pub(crate) fn validate(&self) -> Result<(), SpecError> {
        self.validate_as("")
    }

    fn validate_as(&self, shown: &str) -> Result<(), SpecError> {
        let refuse = |reason: &str| Err(SpecError::new(OPTION, shown, reason, ADVICE));
        let fits = |text: &String| {
            (1..=TEXT_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
        };
        if !self.texts().all(fits) {
            return refuse("a text has 1 to 255 bytes and no control characters");
        }
        if self.oem.len() > OEM_MAX {
            return refuse(&format!("there are more than {OEM_MAX} texts of type 11"));
        }
        Ok(())
    }
}

impl VmSpec {
    /// The machine's UUID: the one that was given, or one that follows from the files that it is
    /// started with and stays while these do (RFC 9562, 5.8).
    pub fn uuid(&self) -> Uuid {
        self.smbios.system.uuid.unwrap_or_else(|| {
            let mut identity = b"sarang".to_vec();
            for path in self.disks.iter().map(|disk| &disk.path).chain(&self.cloud_init) {
                identity.push(0);
                identity.extend(path.as_os_str().as_encoded_bytes());
            }
            // FNV-1a with 128 bits: it is to be spread, not to be secret.
            let step = |hash: u128, byte: &u8| {
                (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
            };
            let hash = identity.iter().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, step);
            Uuid::new_v8(hash.to_be_bytes())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(options: &[&str]) -> Result<Smbios, SpecError> {
        let mut smbios = Smbios::default();
        options.iter().try_for_each(|option| smbios.add(option)).map(|()| smbios)
    }

    #[test]
    fn options_add_up() {
        let smbios = parsed(&[
            "type=1,manufacturer=A,,B Ltd,serial=1",
            "type=1,serial=2,uuid=00112233-4455-6677-8899-aabbccddeeff",
            "type=0,release=1.20,vendor=V",
            "type=11,value=x=y,value=z",
            "type=3,asset=T",
            "type=2,location=L",
        ])
        .unwrap();
        assert_eq!(smbios.system.manufacturer.as_deref(), Some("A,B Ltd"));
        assert_eq!(smbios.system.serial.as_deref(), Some("2"));
        assert_eq!((smbios.bios.release, smbios.oem.len()), (Some((1, 20)), 2));
        assert_eq!(smbios.oem[0], "x=y");
        let data = serde_json::to_string(&smbios).unwrap();
        assert_eq!(serde_json::from_str::<Smbios>(&data).unwrap(), smbios);
        let spec = VmSpec { smbios, ..VmSpec::default() };
        assert_eq!(spec.uuid().to_string(), "00112233-4455-6677-8899-aabbccddeeff");
    }

    #[test]
    fn nonsense_is_refused() {
        let long = format!("type=1,serial={}", "x".repeat(256));
        let many = format!("type=11{}", ",value=x".repeat(17));
        for option in [
            "",
            "serial=1",
            "type=4,version=1",
            "type=1,asset=1",
            "type=1,uuid=1",
            "type=1,serial=",
            "type=1,serial=a\nb",
            "type=0,release=1",
            "type=0,release=1.256",
            &long,
            &many,
        ] {
            let error = parsed(&[option]).expect_err(option);
            assert_eq!(error.option(), OPTION);
            assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn a_uuid_follows_from_the_disks() {
        let spec = |disks: &[&str]| VmSpec {
            disks: disks.iter().map(|disk| disk.parse().unwrap()).collect(),
            ..VmSpec::default()
        };
        assert_eq!(spec(&["a"]).uuid(), spec(&["a"]).uuid());
        assert_ne!(spec(&["a"]).uuid(), spec(&["b"]).uuid());
        assert_ne!(spec(&["a", "b"]).uuid(), spec(&["ab"]).uuid());
        assert_eq!(spec(&[]).uuid().get_version_num(), 8);
    }
}
