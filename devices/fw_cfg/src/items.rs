//! The items: numbers, names, bytes.

use std::{collections::BTreeMap, sync::Arc};

/// Numbers of items. Numbers are little-endian in them, but in the directory.
pub mod key {
    /// "QEMU".
    pub const SIGNATURE: u16 = 0x00;
    /// Four bytes of flags: bit 0 the ports, bit 1 DMA.
    pub const ID: u16 = 0x01;
    /// 16 bytes.
    pub const UUID: u16 = 0x02;
    /// Eight bytes: bytes of RAM.
    pub const RAM_SIZE: u16 = 0x03;
    /// Two bytes: 1 if there is no display.
    pub const NOGRAPHIC: u16 = 0x04;
    /// Two bytes: processors that there are.
    pub const CPUS: u16 = 0x05;
    /// Two bytes: whether firmware offers a menu of what to boot.
    pub const BOOT_MENU: u16 = 0x0e;
    /// Two bytes: APIC IDs are below this.
    pub const MAX_CPUS: u16 = 0x0f;
    /// The directory of files: their number, and for each its size, its item's number, two unused
    /// bytes and its name; numbers have their most significant byte first.
    pub const FILE_DIR: u16 = 0x19;
    /// The first of the files.
    pub const FILES: u16 = 0x20;
    /// Four bytes: 1 if the timer of interrupt 0 is at pin 2 of the IOAPIC.
    pub const IRQ0_OVERRIDE: u16 = 0x8002;
}

/// Bytes of a name, without the zero at its end.
pub const NAME_MAX: usize = 55;
/// More than anybody has; below [`MEANING`].
const FILES_MAX: usize = 1024;
/// Bits of a number that say what is done with an item, or whose it is.
const MEANING: u16 = 0x4000;

const SIGNATURE: &[u8] = b"QEMU";
const TRADITIONAL: u32 = 1;
const DMA: u32 = 2;

/// Why something is no item.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{0:?} is no name of a file for firmware: it has 1 to {NAME_MAX} ASCII characters")]
    Name(String),
    #[error("there are two files {0:?} for firmware")]
    Twice(String),
    #[error("firmware cannot be given more than {FILES_MAX} files")]
    TooMany,
    #[error("{0:?} has 4 GiB or more, and a file for firmware has less")]
    Size(String),
}

/// What firmware can read.
#[derive(Clone)]
pub struct Items {
    items: BTreeMap<u16, Arc<[u8]>>,
    names: Vec<String>,
}

impl std::fmt::Debug for Items {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Items").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Default for Items {
    fn default() -> Self {
        let mut items = Self { items: BTreeMap::new(), names: Vec::new() };
        items.set(key::SIGNATURE, SIGNATURE);
        items.set(key::ID, &(TRADITIONAL | DMA).to_le_bytes());
        items.list();
        items
    }
}

impl Items {
    /// Sets an item without a name.
    pub fn set(&mut self, key: u16, bytes: &[u8]) {
        self.items.insert(key, bytes.into());
    }

    /// Adds an item with a name, such as `etc/e820`.
    ///
    /// # Errors
    /// If the name is none or is taken, or there are too many files.
    pub fn file(&mut self, name: &str, bytes: impl Into<Arc<[u8]>>) -> Result<(), Error> {
        let bytes = bytes.into();
        let good =
            (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
        if !good {
            return Err(Error::Name(name.into()));
        }
        if self.names.iter().any(|other| other == name) {
            return Err(Error::Twice(name.into()));
        }
        if self.names.len() >= FILES_MAX {
            return Err(Error::TooMany);
        }
        if u32::try_from(bytes.len()).is_err() {
            return Err(Error::Size(name.into()));
        }
        self.items.insert(key::FILES + self.names.len() as u16, bytes);
        self.names.push(name.into());
        self.list();
        Ok(())
    }

    /// Makes the directory.
    fn list(&mut self) {
        let mut directory = (self.names.len() as u32).to_be_bytes().to_vec();
        for (key, name) in (key::FILES..).zip(&self.names) {
            let size = self.items.get(&key).map_or(0, |bytes| bytes.len() as u32);
            directory.extend(size.to_be_bytes());
            directory.extend(key.to_be_bytes());
            directory.extend([0; 2]);
            let mut field = [0; NAME_MAX + 1];
            field.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
            directory.extend(field);
        }
        self.set(key::FILE_DIR, &directory);
    }

    pub(crate) fn get(&self, key: u16) -> Option<&[u8]> {
        // The bit asks for writing, which no item allows, and reading goes on.
        self.items.get(&(key & !MEANING)).map(|bytes| &**bytes)
    }
}
