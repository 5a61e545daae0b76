//! CPUs that come and go: what the DSDT says of them, for the registers that QEMU publishes
//! (`docs/specs/acpi_cpu_hotplug.rst`).
//!
//! ```text
//! event -> SCAN: as long as one has an event -> Notify (C001, 1 or 3), and the event is cleared
//! C001._STA, _EJ0, _OST -> STAT, EJCT, TOLD: select it, then ask, let go, or tell
//! ```

use crate::{Cpu, HotCpus, bytes, dsdt, madt};
use acpi_tables::Aml;
use acpi_tables::aml::{
    Acquire, Arg, BufferData, Device, EISAName, Else, Equal, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, IO, If, Local, Method, MethodCall, Mutex, Name, Notify,
    OpRegion, OpRegionSpace, Path, Release, ResourceTemplate, Return, Scope, Store, While,
};

/// Bytes of registers.
const LENGTH: u8 = 12;
/// Notifications (ACPI 6.5, tables 5.164 and 5.166): look at it; let go of it.
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;
/// The commands: find one with an event; what comes next is a code of `_OST`, and its status.
const FIND: u8 = 0;
const OST_EVENT: u8 = 1;
const OST_STATUS: u8 = 2;
/// Without a limit of time.
const FOREVER: u16 = 0xffff;

fn path(name: &str) -> Path {
    Path::new(name)
}

fn store(to: &str, value: &dyn Aml) -> Vec<u8> {
    bytes(&Store::new(&path(to), value))
}

/// A method; `locked` if others may not use the registers meanwhile.
fn method(name: &str, args: u8, locked: bool, body: &[Vec<u8>], answer: Option<&dyn Aml>) -> Raw {
    let mut all = Vec::new();
    if locked {
        all.extend(bytes(&Acquire::new(path("LOCK"), FOREVER)));
    }
    all.extend(body.concat());
    if locked {
        all.extend(bytes(&Release::new(path("LOCK"))));
    }
    if let Some(answer) = answer {
        all.extend(bytes(&Return::new(answer)));
    }
    Raw(bytes(&Method::new(path(name), args, locked, vec![&Raw(all)])))
}

/// `\_SB.CPUS`: the container of all that can be there, and how the registers are used.
pub(crate) fn container(cpus: &[Cpu], hot: &HotCpus) -> Vec<u8> {
    let hid = Name::new(path("_HID"), &"ACPI0010");
    let cid = Name::new(path("_CID"), &EISAName::new("PNP0A05"));
    let ports = IO::new(hot.port, hot.port, 1, LENGTH);
    let current = Name::new(path("_CRS"), &ResourceTemplate::new(vec![&ports]));
    let registers = registers(hot);
    let methods = [status(), eject(), told(), notify(cpus.len()), scan()];
    let devices: Vec<Raw> = (0..).zip(cpus).map(|(index, cpu)| device(index, cpu)).collect();
    let mut children: Vec<&dyn Aml> = vec![&hid, &cid, &current, &registers];
    children.extend(methods.iter().chain(&devices).map(|raw| raw as &dyn Aml));
    bytes(&Device::new(path("CPUS"), children))
}

/// The handler of the event: told once for each change of its status (ACPI 6.5, 5.6.4.1).
pub(crate) fn event(hot: &HotCpus) -> Vec<u8> {
    let scan = MethodCall::new(path("\\_SB_.CPUS.SCAN"), Vec::new());
    let name = format!("_E{:02X}", hot.event);
    let handler = bytes(&Method::new(path(&name), 0, false, vec![&scan]));
    Scope::raw(path("\\_GPE"), handler)
}

fn registers(hot: &HotCpus) -> Raw {
    let region = OpRegion::new(path("REGS"), OpRegionSpace::SystemIO, &hot.port, &LENGTH);
    let field = |access, update, entries| {
        bytes(&Field::new(path("REGS"), access, FieldLockRule::NoLock, update, entries))
    };
    // In the byte at 4: is it there; it came; it is to go; eject it. Writing a zero changes
    // nothing.
    let states = field(
        FieldAccessType::Byte,
        FieldUpdateRule::WriteAsZeroes,
        vec![
            FieldEntry::Reserved(4 * 8),
            FieldEntry::Named(*b"HERE", 1),
            FieldEntry::Named(*b"CAME", 1),
            FieldEntry::Named(*b"GOES", 1),
            FieldEntry::Named(*b"EJEC", 1),
            FieldEntry::Reserved(4),
            FieldEntry::Named(*b"CMND", 8),
        ],
    );
    let numbers = field(
        FieldAccessType::DWord,
        FieldUpdateRule::Preserve,
        vec![
            FieldEntry::Named(*b"SLCT", 32),
            FieldEntry::Reserved(32),
            FieldEntry::Named(*b"DATA", 32),
        ],
    );
    let lock = bytes(&Mutex::new(path("LOCK"), 0));
    Raw([bytes(&region), states, numbers, lock].concat())
}

/// `STAT (number)`: what `_STA` answers.
fn status() -> Raw {
    let here = path("HERE");
    let here = Equal::new(&here, &1u8);
    let working = Store::new(&Local(0), &dsdt::WORKING);
    let body = [
        store("SLCT", &Arg(0)),
        bytes(&Store::new(&Local(0), &0u8)),
        bytes(&If::new(&here, vec![&working])),
    ];
    method("STAT", 1, true, &body, Some(&Local(0)))
}

/// `EJCT (number)`.
fn eject() -> Raw {
    method("EJCT", 1, true, &[store("SLCT", &Arg(0)), store("EJEC", &1u8)], None)
}

/// `TOLD (number, event, status)`: what the system says of a notification.
fn told() -> Raw {
    let body = [
        store("SLCT", &Arg(0)),
        store("CMND", &OST_EVENT),
        store("DATA", &Arg(1)),
        store("CMND", &OST_STATUS),
        store("DATA", &Arg(2)),
    ];
    method("TOLD", 3, true, &body, None)
}

/// `NTFY (number, what)`.
fn notify(count: usize) -> Raw {
    let one = |index: usize| {
        let number = index as u32;
        let is = Equal::new(&Arg(0), &number);
        let device = path(&dsdt::processor_name(index));
        bytes(&If::new(&is, vec![&Notify::new(&device, &Arg(1))]))
    };
    method("NTFY", 2, false, &(0..count).map(one).collect::<Vec<_>>(), None)
}

/// `SCAN`: each CPU with an event is told, and the event is over.
fn scan() -> Raw {
    let data = path("DATA");
    let tell = |what: u8, over: &str| {
        let call = MethodCall::new(path("NTFY"), vec![&data, &what]);
        let again = Store::new(&Local(0), &1u8);
        [bytes(&call), store(over, &1u8), bytes(&again)].concat()
    };
    let (came, goes) = (Raw(tell(DEVICE_CHECK, "CAME")), Raw(tell(EJECT_REQUEST, "GOES")));
    let is = |name: &str| bytes(&Equal::new(&path(name), &1u8));
    let (is_there, is_to_go) = (Raw(is("CAME")), Raw(is("GOES")));
    let leaves = If::new(&is_to_go, vec![&goes]);
    let otherwise = Else::new(vec![&leaves]);
    let arrives = If::new(&is_there, vec![&came]);
    let none = Store::new(&Local(0), &0u8);
    let find = Raw(store("CMND", &FIND));
    let more = Equal::new(&Local(0), &1u8);
    let each = While::new(&more, vec![&none, &find, &arrives, &otherwise]);
    let begin = Store::new(&Local(0), &1u8);
    let body = [store("SLCT", &0u8), bytes(&begin), bytes(&each)];
    method("SCAN", 0, true, &body, None)
}

/// One CPU. The first one stays.
fn device(index: usize, cpu: &Cpu) -> Raw {
    let number = index as u32;
    let hid = Name::new(path("_HID"), &"ACPI0007");
    let uid = Name::new(path("_UID"), &cpu.uid);
    let call = |name: &str, args: &[&dyn Aml]| {
        let mut all: Vec<&dyn Aml> = vec![&number];
        all.extend(args);
        bytes(&MethodCall::new(path(name), all))
    };
    let present = Raw(call("STAT", &[]));
    let status = method("_STA", 0, false, &[], Some(&present));
    let entry = Name::new(path("_MAT"), &BufferData::new(madt::present(cpu)));
    let eject = method("_EJ0", 1, false, &[call("EJCT", &[])], None);
    let told = method("_OST", 3, false, &[call("TOLD", &[&Arg(0), &Arg(1)])], None);
    let mut children: Vec<&dyn Aml> = vec![&hid, &uid, &status, &entry, &told];
    if index > 0 {
        children.push(&eject);
    }
    Raw(bytes(&Device::new(path(&dsdt::processor_name(index)), children)))
}

/// AML that is made already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOT: HotCpus =
        HotCpus { present: 1, port: 0xcd8, events: 0x620, events_length: 4, event: 2 };

    fn contains(table: &[u8], part: &[u8]) -> bool {
        table.windows(part.len()).any(|window| window == part)
    }

    fn cpus(count: u32) -> Vec<Cpu> {
        (0..count).map(|id| Cpu { uid: id, apic_id: 2 * id }).collect()
    }

    /// Encodings are those of ACPI 6.5, 20.2.
    #[test]
    fn the_registers_are_where_they_are_published() {
        let aml = container(&cpus(3), &HOT);
        assert!(contains(&aml, b"\x5b\x80REGS\x01\x0b\xd8\x0c\x0a\x0c"), "{aml:02x?}");
        // Byte access, writing zeroes to the other bits: reserved 32 bits, four of one, four
        // reserved, and eight.
        let states = b"REGS\x41\x00\x20HERE\x01CAME\x01GOES\x01EJEC\x01\x00\x04CMND\x08";
        assert!(contains(&aml, states), "{aml:02x?}");
        // 32 bits each at 0 and 8.
        assert!(contains(&aml, b"REGS\x03SLCT\x20\x00\x20DATA\x20"), "{aml:02x?}");
        // _CRS: twelve ports from 0xcd8 on.
        assert!(contains(&aml, &[0x47, 1, 0xd8, 0xc, 0xd8, 0xc, 1, 12]));
    }

    #[test]
    fn each_has_its_number_and_its_structure() {
        let aml = container(&cpus(3), &HOT);
        for name in [b"C000", b"C001", b"C002"] {
            assert!(contains(&aml, name));
        }
        assert!(!contains(&aml, b"C003"));
        assert!(contains(&aml, b"_STA\x00\xa4STAT\x0a\x02"), "{aml:02x?}");
        // Buffer (8) with a local APIC of ID 4 that is enabled.
        assert!(contains(
            &aml,
            &[b'_', b'M', b'A', b'T', 0x11, 0xb, 0xa, 8, 0, 8, 2, 4, 1, 0, 0, 0]
        ));
        // If (Arg0 == 2) { Notify (C002, Arg1) }.
        assert!(contains(&aml, b"\xa0\x0b\x93\x68\x0a\x02\x86C002\x69"), "{aml:02x?}");
        let ejects = aml.windows(4).filter(|window| window == b"_EJ0").count();
        assert_eq!(ejects, 2, "the first one stays");
    }

    #[test]
    fn the_event_scans() {
        let aml = event(&HOT);
        assert!(contains(&aml, b"\\_GPE\x14\x15_E02\x00\\\x2f\x03_SB_CPUSSCAN"), "{aml:02x?}");
    }
}
