//! The tier table: which crate may depend on which.
//!
//! ```text
//! arch <- core <- engines | personalities | devices | storage | network | firmware
//!      <- machine <- control
//! ```
//!
//! A crate depends only on tiers to its left. Depending sideways, within a tier or between the
//! tiers of one column, needs an arrow in [`ARROWS`]. `testing` stands right of everything.

use crate::tree;
use serde_json::Value;

/// Folders that are tiers, with their column.
const TIERS: &[(&str, u32)] = &[
    ("arch", 0),
    ("core", 1),
    ("engines", 2),
    ("personalities", 2),
    ("devices", 2),
    ("storage", 2),
    ("network", 2),
    ("firmware", 2),
    ("machine", 3),
    ("control", 4),
    ("testing", 5),
];

/// Dependencies within a column, or to the right: (from, to, why).
const ARROWS: &[(&str, &str, &str)] = &[
    ("cpu_model", "x86_defs", "a model is written in the names of registers and leaves"),
    ("vcpu_state", "saved_state", "a vCPU saves itself"),
    ("engine", "vcpu_state", "the seam speaks neutral state"),
    ("engine", "guest_mem", "an engine is given the guest's memory"),
    ("device", "saved_state", "a device saves itself"),
    ("device", "guest_mem", "a device reads and writes the guest's memory"),
    ("xen_front", "device", "a back end is a device"),
    ("xen_front", "guest_mem", "what a domain grants is its memory"),
    ("semantics", "soft_mmu", "instructions access memory through the page walk"),
    ("semantics", "emit", "vector and floating-point instructions run on the host's units"),
    ("translator", "semantics", "what is not translated runs by its handler"),
    ("translator", "emit", "translated code lives in its code memory"),
    ("interp", "translator", "hot blocks leave the interpreter"),
    ("interp", "semantics", "the interpreter runs what the semantics say"),
    ("interp", "soft_mmu", "the interpreter fetches through the page walk"),
    ("interp", "emit", "decoding makes the stubs of the host's units"),
    ("engine_kvm", "soft_mmu", "what a guest without a ring 0 hands over is found by its tables"),
    ("engine_translate", "interp", "what has no translation is interpreted"),
    ("engine_translate", "translator", "the engine gives each vCPU one"),
    ("engine_translate", "semantics", "the translator shares the semantics"),
    ("engine_translate", "emit", "the engine owns the code cache"),
    ("xen_pv", "pv_kvm", "Xen's clock counts as KVM's does"),
    ("vga", "pci", "a VGA is a function of the PCI bus"),
    ("q35", "pci", "the host bridge and the LPC bridge are functions of the PCI bus"),
    ("ahci", "pci", "a SATA adapter is a function of the PCI bus"),
    ("e1000", "pci", "a network card is a function of the PCI bus"),
    ("virtio", "pci", "a virtio device is a function of the PCI bus"),
    ("ahci", "scsi", "a CD drive takes SCSI commands in packets"),
    ("virtio_scsi", "scsi", "an adapter passes SCSI commands on"),
    ("virtio_scsi", "virtio", "a type of virtio device"),
    ("virtio_blk", "virtio", "a type of virtio device"),
    ("virtio_rng", "virtio", "a type of virtio device"),
    ("virtio_net", "virtio", "a type of virtio device"),
    ("disk_image", "disk_raw", "the files of images are opened and locked as raw ones are"),
    ("disk_boot", "disk_raw", "its tests open disks that mke2fs makes"),
    ("virtio_balloon", "virtio", "a type of virtio device"),
    ("virtio_console", "virtio", "a type of virtio device"),
    ("virtio_input", "virtio", "a type of virtio device"),
    ("xen_bus", "xen_store", "back ends and drivers meet in xenstore"),
    ("virtio_mem", "virtio", "a type of virtio device"),
    ("virtio_vsock", "virtio", "a type of virtio device"),
    ("machine", "vm_spec", "a machine is built from its spec"),
    ("cli", "assets", "the command fetches the default guest"),
    ("cli", "gdb_server", "the command starts the stub"),
    ("cli", "vnc_server", "the command shows the screen"),
    ("cli", "microguest", "the built-in guest for hosts without packages or network"),
];

/// Between crates of `testing`, and from unit tests to them, arrows are free; everywhere else a
/// development dependency obeys the table, except on these, which are made for tests.
const TEST_AIDS: &[&str] = &["microguest", "testkit"];

/// Checks the table against the manifests.
pub fn check() -> Result<(), String> {
    let metadata = tree::metadata(false)?;
    let members = members(&metadata)?;
    let mut faults = Vec::new();
    let mut used = vec![false; ARROWS.len()];
    let mut checked = 0;
    for member in &members {
        check_manifest(member, &mut faults)?;
        for dep in &member.dependencies {
            let Some(target) = members.iter().find(|m| m.name == dep.name) else { continue };
            checked += 1;
            if let Some(index) = arrow(&member.name, &target.name) {
                used[index] = true;
            } else if let Some(fault) = judge(member, target, dep.for_tests) {
                faults.push(fault);
            }
        }
    }
    for (_, (from, to, _)) in used.iter().zip(ARROWS).filter(|(used, _)| !**used) {
        println!("deps: note: the arrow {from} -> {to} is not used");
    }
    tree::verdict("deps", checked, faults)
}

struct Member {
    name: String,
    /// Relative to the root of the workspace: `core/engine`.
    folder: String,
    dependencies: Vec<Dependency>,
}

struct Dependency {
    name: String,
    for_tests: bool,
}

impl Member {
    fn tier(&self) -> &str {
        self.folder.split('/').next().unwrap_or_default()
    }
}

fn members(metadata: &Value) -> Result<Vec<Member>, String> {
    let root = tree::root();
    let packages = metadata["packages"].as_array().ok_or("cargo metadata lists no packages")?;
    let mut members = Vec::new();
    for package in packages {
        let manifest = package["manifest_path"].as_str().unwrap_or_default();
        let folder = manifest
            .strip_prefix(&*root.to_string_lossy())
            .and_then(|path| path.strip_suffix("/Cargo.toml"))
            .unwrap_or_default();
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        members.push(Member {
            name: package["name"].as_str().unwrap_or_default().to_owned(),
            folder: folder.trim_start_matches('/').to_owned(),
            dependencies: dependencies
                .map(|dep| Dependency {
                    name: dep["name"].as_str().unwrap_or_default().to_owned(),
                    for_tests: dep["kind"].as_str() == Some("dev"),
                })
                .collect(),
        });
    }
    Ok(members)
}

fn arrow(from: &str, to: &str) -> Option<usize> {
    ARROWS.iter().position(|(f, t, _)| *f == from && *t == to)
}

fn column(tier: &str) -> Option<u32> {
    TIERS.iter().find(|(name, _)| *name == tier).map(|(_, column)| *column)
}

/// What is wrong with `from` depending on `to`, or `None`.
fn judge(from: &Member, to: &Member, for_tests: bool) -> Option<String> {
    if from.tier() == "xtask" {
        return Some(format!("xtask depends on {}; it stands alone", to.name));
    }
    let (Some(left), Some(right)) = (column(to.tier()), column(from.tier())) else {
        return Some(format!("{} or {} is in no tier", from.folder, to.folder));
    };
    let free = from.tier() == "testing" && to.tier() == "testing";
    let aid = for_tests && TEST_AIDS.contains(&to.name.as_str());
    if left < right || free || aid {
        return None;
    }
    Some(format!("{} depends on {}: not to its left, and no arrow says so", from.folder, to.folder))
}

/// Each crate takes the workspace's lints; otherwise `unsafe_code` would not be denied in it.
fn check_manifest(member: &Member, faults: &mut Vec<String>) -> Result<(), String> {
    let text = tree::read(&std::path::Path::new(&member.folder).join("Cargo.toml"))?;
    if !text.contains("[lints]\nworkspace = true") {
        faults.push(format!("{}/Cargo.toml does not take the workspace's lints", member.folder));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(folder: &str) -> Member {
        let name = folder.rsplit('/').next().unwrap_or_default().to_owned();
        Member { name, folder: folder.to_owned(), dependencies: Vec::new() }
    }

    #[test]
    fn left_is_allowed() {
        assert_eq!(judge(&member("devices/uart"), &member("core/device"), false), None);
        assert_eq!(judge(&member("control/cli"), &member("machine/machine"), false), None);
    }

    #[test]
    fn right_and_sideways_are_refused() {
        assert!(judge(&member("core/device"), &member("devices/uart"), false).is_some());
        assert!(judge(&member("devices/uart"), &member("devices/chipset"), false).is_some());
        assert!(judge(&member("devices/uart"), &member("engines/interp"), false).is_some());
    }

    #[test]
    fn test_aids_serve_tests_only() {
        let (engine, guest) = (member("engines/engine_kvm"), member("testing/microguest"));
        assert_eq!(judge(&engine, &guest, true), None);
        assert!(judge(&engine, &guest, false).is_some());
    }

    #[test]
    fn unknown_tiers_are_refused() {
        assert!(judge(&member("misc/thing"), &member("core/device"), false).is_some());
    }

    #[test]
    fn the_tree_obeys() {
        check().unwrap();
    }
}
