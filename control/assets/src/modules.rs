//! The kernel's own modules: which to take along, and the tables that `modprobe` reads.
//!
//! A Debian kernel package holds modules but no `modules.dep`: that is made where it is
//! installed, by `depmod`. Here it is made from what each module says of itself in its
//! `.modinfo` section (Linux, include/linux/module.h).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

/// What the default guest may come to need: its board's devices, virtio in all its forms, and a
/// Xen domain's disks and networks.
pub const WANTED: &[&str] = &[
    "ahci",
    "button",
    "e1000",
    "evdev",
    "pvpanic_mmio",
    "pvpanic_pci",
    "sd_mod",
    "sr_mod",
    "virtio_balloon",
    "virtio_blk",
    "virtio_console",
    "virtio_input",
    "virtio_mem",
    "virtio_mmio",
    "virtio_net",
    "virtio_pci",
    "virtio_rng",
    "virtio_scsi",
    "vmw_vsock_virtio_transport",
    "xen_blkfront",
    "xen_netfront",
];

/// All modules of a kernel package, by name.
#[derive(Debug, Default)]
pub struct Modules {
    by_name: BTreeMap<String, Module>,
}

#[derive(Debug)]
struct Module {
    /// Relative to `lib/modules/RELEASE`, without a compression's suffix.
    path: String,
    packed_name: String,
    packed: Vec<u8>,
}

/// The modules that a guest takes along.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Paths relative to `lib/modules/RELEASE`, with the uncompressed module.
    pub files: Vec<(String, Vec<u8>)>,
    /// The text of `modules.dep`.
    pub dependencies: String,
    /// The text of `modules.alias`.
    pub aliases: String,
}

impl Modules {
    /// Takes in one file of the package; `path` is relative to `lib/modules/RELEASE`.
    pub fn add(&mut self, path: &str, packed: Vec<u8>) {
        let Some((name, plain)) = name_of(path) else { return };
        let module = Module { path: plain.into(), packed_name: path.into(), packed };
        self.by_name.insert(name, module);
    }

    /// The wanted modules with all that they depend on, sorted; what the kernel has built in
    /// or has not at all is passed over.
    pub fn select(&self, wanted: &[&str]) -> std::io::Result<Selection> {
        let mut loaded = BTreeMap::new();
        let mut queue: Vec<String> = wanted.iter().map(|name| (*name).to_string()).collect();
        while let Some(name) = queue.pop() {
            if loaded.contains_key(&name) {
                continue;
            }
            let Some(module) = self.by_name.get(&name) else { continue };
            let bytes = crate::deb::decompress_by_name(&module.packed_name, module.packed.clone())?;
            let info = Info::of(&bytes);
            queue.extend(info.depends.iter().cloned());
            loaded.insert(name, (module.path.clone(), bytes, info));
        }

        let mut selection = Selection::default();
        for (name, (path, _, info)) in &loaded {
            let mut line = format!("{path}:");
            for needed in closure(name, &loaded) {
                let _ = write!(line, " {needed}");
            }
            selection.dependencies.push_str(&line);
            selection.dependencies.push('\n');
            for alias in &info.aliases {
                let _ = writeln!(selection.aliases, "alias {alias} {name}");
            }
        }
        selection.files = loaded.into_values().map(|(path, bytes, _)| (path, bytes)).collect();
        Ok(selection)
    }
}

/// Paths of all that a module needs, each before what it needs itself, as `depmod` has it.
fn closure(name: &str, loaded: &BTreeMap<String, (String, Vec<u8>, Info)>) -> Vec<String> {
    // Depth first, after which the reverse of completion is the order; a cycle, which no
    // sound kernel has, ends at what was already seen.
    fn visit(
        name: &str,
        loaded: &BTreeMap<String, (String, Vec<u8>, Info)>,
        seen: &mut BTreeSet<String>,
        done: &mut Vec<String>,
    ) {
        let Some((path, _, info)) = loaded.get(name) else { return };
        if !seen.insert(name.to_string()) {
            return;
        }
        for needed in &info.depends {
            visit(needed, loaded, seen, done);
        }
        done.push(path.clone());
    }
    let mut done = Vec::new();
    visit(name, loaded, &mut BTreeSet::new(), &mut done);
    done.pop();
    done.reverse();
    done
}

/// `kernel/drivers/virtio-rng.ko.xz` as `virtio_rng` and `kernel/drivers/virtio-rng.ko`.
fn name_of(path: &str) -> Option<(String, &str)> {
    let plain = [".xz", ".zst", ".gz"].iter().find_map(|s| path.strip_suffix(s)).unwrap_or(path);
    let stem = plain.strip_suffix(".ko")?;
    let name = stem.rsplit('/').next()?;
    Some((name.replace('-', "_"), plain))
}

/// What a module says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
struct Info {
    depends: Vec<String>,
    aliases: Vec<String>,
}

impl Info {
    /// A module without a readable `.modinfo` says nothing.
    fn of(elf: &[u8]) -> Self {
        let mut info = Self::default();
        for field in modinfo(elf).unwrap_or_default().split(|b| *b == 0) {
            let Ok(field) = std::str::from_utf8(field) else { continue };
            if let Some(names) = field.strip_prefix("depends=") {
                let names = names.split(',').filter(|n| !n.is_empty());
                info.depends.extend(names.map(|n| n.replace('-', "_")));
            } else if let Some(alias) = field.strip_prefix("alias=")
                && alias.bytes().all(|b| b.is_ascii_graphic())
            {
                info.aliases.push(alias.into());
            }
        }
        info
    }
}

/// The `.modinfo` section of a 64-bit little-endian ELF file (System V ABI, chapter 4).
fn modinfo(elf: &[u8]) -> Option<&[u8]> {
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let headers = usize::try_from(word(elf, 0x28)?).ok()?;
    let size = usize::from(half(elf, 0x3a)?);
    let count = usize::from(half(elf, 0x3c)?);
    let section = |n: usize| {
        let start = headers.checked_add(n.checked_mul(size)?)?;
        elf.get(start..start.checked_add(64)?)
    };
    let contents = |header: &[u8]| {
        let start = usize::try_from(word(header, 0x18)?).ok()?;
        let length = usize::try_from(word(header, 0x20)?).ok()?;
        elf.get(start..start.checked_add(length)?)
    };
    let names = contents(section(usize::from(half(elf, 0x3e)?))?)?;
    (0..count).find_map(|n| {
        let header = section(n)?;
        let name = names.get(usize::try_from(u32_at(header, 0)?).ok()?..)?;
        if name.starts_with(b".modinfo\0") { contents(header) } else { None }
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An ELF file with a `.modinfo` section and nothing else.
    pub(crate) fn module(info: &str) -> Vec<u8> {
        let names = b"\0.modinfo\0";
        let mut elf = vec![0; 64 + 2 * 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[0x28..0x30].copy_from_slice(&64u64.to_le_bytes());
        elf[0x3a..0x3c].copy_from_slice(&64u16.to_le_bytes());
        elf[0x3c..0x3e].copy_from_slice(&2u16.to_le_bytes());
        elf[0x3e..0x40].copy_from_slice(&1u16.to_le_bytes());
        let mut section = |n: usize, name: u32, contents: &[u8]| {
            let at = 64 + 64 * n;
            let start = elf.len() as u64;
            elf[at..at + 4].copy_from_slice(&name.to_le_bytes());
            elf[at + 0x18..at + 0x20].copy_from_slice(&start.to_le_bytes());
            elf[at + 0x20..at + 0x28].copy_from_slice(&(contents.len() as u64).to_le_bytes());
            elf.extend_from_slice(contents);
        };
        section(0, 1, info.as_bytes());
        section(1, 0, names);
        elf
    }

    fn modules() -> Modules {
        let mut modules = Modules::default();
        modules.add("kernel/virtio/virtio.ko", module("depends=\0license=GPL"));
        modules.add("kernel/virtio/virtio_ring.ko", module("depends=virtio"));
        modules.add(
            "kernel/hw/virtio-rng.ko",
            module("alias=virtio:d00000004v*\0depends=virtio,virtio_ring\0"),
        );
        modules.add("kernel/other.ko", module("depends="));
        modules.add("modules.order", b"not a module".to_vec());
        modules
    }

    #[test]
    fn takes_what_is_wanted_and_what_that_needs() {
        let selection = modules().select(&["virtio_rng", "built_in"]).unwrap();
        let paths: Vec<_> = selection.files.iter().map(|(p, _)| p.as_str()).collect();
        assert_eq!(
            paths,
            ["kernel/virtio/virtio.ko", "kernel/virtio/virtio_ring.ko", "kernel/hw/virtio-rng.ko"]
        );
        assert_eq!(selection.aliases, "alias virtio:d00000004v* virtio_rng\n");
        assert_eq!(
            selection.dependencies,
            "kernel/virtio/virtio.ko:\n\
             kernel/virtio/virtio_ring.ko: kernel/virtio/virtio.ko\n\
             kernel/hw/virtio-rng.ko: kernel/virtio/virtio_ring.ko kernel/virtio/virtio.ko\n"
        );
    }

    #[test]
    fn a_cycle_ends() {
        let mut modules = Modules::default();
        modules.add("a.ko", module("depends=b"));
        modules.add("b.ko", module("depends=a"));
        assert_eq!(modules.select(&["a"]).unwrap().files.len(), 2);
    }

    #[test]
    fn a_damaged_module_says_nothing() {
        let good = module("depends=virtio");
        assert_eq!(Info::of(&good).depends, ["virtio"]);
        for cut in 0..good.len() {
            let _ = Info::of(&good[..cut]);
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] = 0xff;
            let _ = Info::of(&bad);
        }
        assert_eq!(Info::of(b"\x7fELF"), Info::default());
    }

    #[test]
    fn compressed_modules_keep_their_plain_name() {
        assert_eq!(name_of("kernel/a-b.ko.xz"), Some(("a_b".into(), "kernel/a-b.ko")));
        assert_eq!(name_of("kernel/a.ko"), Some(("a".into(), "kernel/a.ko")));
        assert_eq!(name_of("modules.builtin"), None);
    }
}
