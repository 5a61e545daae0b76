//! What a user gives: kernels, images, options, files of a seed.

use crate::input::Input;
use boot::{Bytes, Memory, Protocol, Request, Unpack};
use disk::Disk as _;
use disk_seed::{File, SeedDisk};
use std::io::Write;
use vm_spec::{
    Boot, Channel, Console, Disk, Display, EngineChoice, Firmware, GdbAddress, Net, Smbios,
    SpecError, Trace, VmSpec, Vsock,
};

const LOW_END: u64 = 32 << 20;

/// A kernel file, entered as the first byte says; the second says what goes with it.
pub(super) fn loaders(data: &[u8]) {
    let mut input = Input::new(data);
    let protocols = [Protocol::Auto, Protocol::Linux, Protocol::Pvh, Protocol::Multiboot];
    let protocol = input.pick(&protocols);
    let unpack = input.pick(&[Unpack::Auto, Unpack::Host, Unpack::Guest]);
    let initrd = match input.u8() {
        0..=0x7f => None,
        0x80..=0xf7 => Some(vec![1; 5000]),
        _ => Some(vec![1; 31 << 20]),
    };
    let command_line = "x".repeat(input.below(0x1000) as usize);
    let with_screen = input.flag();
    // Headers at the front, and what is behind them far away if that is asked for.
    let mut file = input.rest().to_vec();
    if file.first() == Some(&b'P') {
        file.remove(0);
        file.resize(0x1_0000, 0x90);
    }
    let request = Request {
        initrd: initrd.map(Bytes::from),
        command_line,
        protocol,
        unpack,
        rsdp: with_screen.then_some(0xe_0000),
        rsdp_copy: vec![7; 36],
        text_screen: with_screen,
        ..Request::new(file, Memory::low(LOW_END))
    };
    let loaded = match boot::load(&request) {
        Ok(loaded) => loaded,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    // Inside low RAM, outside of what firmware keeps, and none over another.
    let mut ranges: Vec<_> = loaded.segments.iter().map(|segment| segment.range()).collect();
    ranges.sort_by_key(|range| range.start);
    assert!(ranges.iter().all(|range| range.end <= LOW_END), "{ranges:x?}");
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "{ranges:x?}");
    let reserved = 0x9_fc00..0x10_0000;
    assert!(ranges.iter().all(|range| range.end <= reserved.start || range.start >= reserved.end));
}

/// The beginning of an image: what kind it is, and its header.
pub(super) fn images(data: &[u8]) {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(data).expect("a file");
    // As most images are, longer than their header, and with a hole.
    if data.len() & 1 == 0 {
        file.set_len(4 << 20).expect("a file");
    }
    match disk_image::Header::read(&file) {
        Ok(header) => assert!((9..=21).contains(&header.cluster_bits)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Files for cloud-init, with any names.
pub(super) fn seed(data: &[u8]) {
    let mut input = Input::new(data);
    let mut files = Vec::new();
    while !input.is_empty() && files.len() < 20 {
        let name = String::from_utf8_lossy(input.some(40)).into_owned();
        let len = input.number() as usize % 0x1_0000;
        files.push(File { name, bytes: vec![input.u8(); len] });
    }
    match SeedDisk::new(&files) {
        Ok(disk) => {
            let bytes = disk.shape().bytes;
            let mut last = [0; 512];
            disk.read(bytes - 512, &mut last).expect("it is there");
            assert!(disk.read(bytes, &mut last).is_err());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// What an option is refused with is one line.
fn told<T>(parsed: Result<T, SpecError>) -> Option<T> {
    match parsed {
        Ok(value) => Some(value),
        Err(error) => {
            let text = error.to_string();
            assert!(!text.is_empty() && text.lines().count() == 1, "{text:?}");
            None
        }
    }
}

/// The value of an option, which the first byte chooses; what is understood is put into a
/// description, which is then judged as a whole.
pub(super) fn options(data: &[u8]) {
    let mut spec = VmSpec::default();
    for line in data.split(|byte| *byte == b'\n').take(8) {
        let Some((which, text)) = line.split_first() else { continue };
        let text = String::from_utf8_lossy(text);
        option(&mut spec, which & 0x1f, &text);
    }
    let _ = told(spec.validate());
}

fn option(spec: &mut VmSpec, which: u8, text: &str) {
    match which {
        0 | 1 => spec.disks.extend(told(text.parse::<Disk>())),
        2 | 3 => spec.net = told(text.parse::<Net>()).unwrap_or(Net::None),
        4 => spec.display = told(text.parse::<Display>()).unwrap_or(Display::None),
        5 => spec.firmware = told(text.parse::<Firmware>()).unwrap_or_default(),
        6 => spec.boot = told(text.parse::<Boot>()).unwrap_or_default(),
        7 | 8 => drop(told({
            let mut smbios = std::mem::take(&mut spec.smbios);
            let added = Smbios::add(&mut smbios, text);
            spec.smbios = smbios;
            added
        })),
        9 => spec.channels.extend(told(text.parse::<Channel>())),
        10 => spec.console = told(text.parse::<Console>()).unwrap_or(Console::None),
        11 => drop(told(vm_spec::parse_console(text))),
        12 => spec.vsock = told(text.parse::<Vsock>()),
        13 => spec.gdb = told(text.parse::<GdbAddress>()),
        14 => spec.trace = told(text.parse::<Trace>()).unwrap_or_default(),
        15 => drop(told(text.parse::<EngineChoice>())),
        16 => {
            if let Some((memory, most)) = told(vm_spec::parse_memory_max(text)) {
                (spec.memory, spec.memory_max) = (memory, most);
            }
        }
        17 => drop(told(vm_spec::parse_memory(text))),
        18 => drop(told(vm_spec::parse_code_cache(text))),
        19 => spec.cpus = told(vm_spec::parse_cpus(text)).unwrap_or(1),
        20 => spec.ports = told(vm_spec::parse_ports(text)).unwrap_or(0),
        21 => spec.timeout_ms = told(vm_spec::parse_timeout(text)),
        22 => drop(display::parse_chord(text)),
        23 => drop(text.parse::<nic::Mac>()),
        24 => spec.append = text.to_owned(),
        _ => spec.cpu_model = Some(text.to_owned()),
    }
}
