//! The guest's files: where they come from, and the kernel's command line.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::Path,
};

use assets::{Cache, Fetcher};
use machine::{Image, Start};
use vm_spec::{ConsoleDevice, GuestKind, Kernel, VmSpec, format_memory};

use crate::{Failure, args::RunOptions, firmware, progress::Bar, report, terminal};

/// The name of the guest that is part of the program.
pub const BUILT_IN: &str = "microguest";

/// No kernel is larger; this bounds what a wrong file can take of the host's memory.
const KERNEL_MAX: u64 = 512 << 20;

/// With less the default guest runs out of memory before its shell, or soon after it.
const DEFAULT_GUEST_MEMORY_MIN: u64 = 96 << 20;

/// Where the setup header's signature is in a bzImage
/// (Linux, Documentation/arch/x86/boot.rst).
const SIGNATURE_AT: usize = 0x202;

/// What a machine boots.
#[derive(Debug)]
pub struct Files {
    pub start: Start,
    /// For the operator.
    pub title: String,
    /// What to call the kernel and the initrd when something is wrong with them.
    pub kernel_name: String,
    pub initrd_name: String,
}

/// Reads, and if need be fetches, what the VM boots.
pub fn load(options: &RunOptions, spec: &VmSpec) -> Result<Files, Failure> {
    if !spec.firmware.is_none() {
        return firmware(spec);
    }
    match &spec.kernel {
        Kernel::BuiltIn(_) => Ok(built_in(spec)),
        Kernel::File(path) => {
            let option = if options.is_image() { "IMAGE" } else { "--kernel" };
            from_files(option, path, spec)
        }
        Kernel::Default => default_guest(options, spec),
        Kernel::Disk => Ok(from_disk(spec)),
    }
}

/// What the first disk boots is found when that is opened.
fn from_disk(spec: &VmSpec) -> Files {
    let disk = spec.disks.first().map(|disk| disk.path.display().to_string());
    let disk = disk.unwrap_or_default();
    Files {
        start: Start::Disk {
            words: command_line(spec, ""),
            // This program, whatever has become of its file.
            reader: Some("/proc/self/exe".into()),
        },
        kernel_name: disk.clone(),
        initrd_name: disk.clone(),
        title: disk,
    }
}

fn firmware(spec: &VmSpec) -> Result<Files, Failure> {
    let part = firmware::open(spec)?;
    Ok(Files {
        title: part.name.clone(),
        kernel_name: format!("--firmware {}: {}", spec.firmware.kind.name(), part.name),
        initrd_name: "--initrd".into(),
        start: Start::Firmware(part),
    })
}

fn default_guest(options: &RunOptions, spec: &VmSpec) -> Result<Files, Failure> {
    if spec.memory < DEFAULT_GUEST_MEMORY_MIN {
        return Err(Failure::usage(format!(
            "--memory {}: this is too little for the default guest; give {} or more",
            format_memory(spec.memory),
            format_memory(DEFAULT_GUEST_MEMORY_MIN)
        )));
    }
    let cache = Cache::locate()?;
    let fetched = Fetcher { cache: &cache }.guest(options.kernel_package(), &mut Bar::new());
    let guest = match fetched {
        Ok(guest) => guest,
        // Without a network there is still something to see.
        Err(error @ assets::Error::Offline { .. }) if !options.names_package() => {
            report::notice(&format!("{error}; booting the built-in guest instead"));
            return Ok(built_in(spec));
        }
        Err(error) => return Err(error.into()),
    };
    Ok(Files {
        start: Start::Kernel {
            kernel: open("cache", &guest.kernel, KERNEL_MAX)?,
            initrd: Some(open("cache", &guest.initrd, spec.memory)?),
            command_line: command_line(spec, &terminal_words()),
        },
        title: format!("Debian kernel {}", guest.release),
        kernel_name: format!("cache {}", guest.kernel.display()),
        initrd_name: format!("cache {}", guest.initrd.display()),
    })
}

fn from_files(option: &str, kernel: &Path, spec: &VmSpec) -> Result<Files, Failure> {
    let image = open(option, kernel, KERNEL_MAX)?;
    if option == "IMAGE" && !is_kernel(&image) {
        return Err(Failure::usage(format!(
            "IMAGE {}: this is not a kernel; give a bzImage or ELF kernel, or, if it is a disk, \
             --firmware bios with it",
            kernel.display()
        )));
    }
    let initrd = match &spec.initrd {
        Some(path) => Some(read_initrd(path, spec.memory)?),
        None => None,
    };
    Ok(Files {
        start: Start::Kernel { kernel: image, initrd, command_line: command_line(spec, "") },
        title: kernel.display().to_string(),
        kernel_name: format!("{option} {}", kernel.display()),
        initrd_name: match &spec.initrd {
            Some(path) => format!("--initrd {}", path.display()),
            None => "--initrd".into(),
        },
    })
}

fn read_initrd(path: &Path, memory: u64) -> Result<Image, Failure> {
    let size = fs::metadata(path).map_or(0, |m| if m.is_file() { m.len() } else { 0 });
    if size >= memory {
        return Err(Failure::usage(format!(
            "--initrd {}: its {size} bytes do not fit into {} of guest memory; give more with \
             --memory",
            path.display(),
            format_memory(memory)
        )));
    }
    open("--initrd", path, memory)
}

/// Whether the beginning of the file is that of an ELF file or of a bzImage.
fn is_kernel(image: &Image) -> bool {
    let mut start = [0; SIGNATURE_AT + 4];
    let length = match image {
        Image::Memory(bytes) => bytes.as_slice().read(&mut start),
        Image::File(file) => file.read_at(&mut start, 0),
    };
    let start = &start[..length.unwrap_or(0)];
    start.starts_with(b"\x7fELF") || start.get(SIGNATURE_AT..) == Some(b"HdrS")
}

/// Opens a file of at most `limit` bytes. The machine reads it when it needs it; what is no
/// regular file, such as a pipe, is read here and now, because it can be read only once.
fn open(option: &str, path: &Path, limit: u64) -> Result<Image, Failure> {
    let fail = |why: &str, remedy: &str| {
        Err(Failure::host(format!("{option} {}: {why}; {remedy}", path.display())))
    };
    let remedy = "give the path of a file that can be read";
    let too_large =
        || fail(&format!("it has more than {limit} bytes"), "give the right file, or more memory");
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) => return fail(reason(&e), remedy),
    };
    match file.metadata() {
        Ok(m) if m.is_dir() => return fail("this is a directory", remedy),
        Ok(m) if m.is_file() && m.len() == 0 => {
            return fail("the file is empty", "fetch or build it again");
        }
        Ok(m) if m.is_file() && m.len() > limit => return too_large(),
        Ok(m) if m.is_file() => return Ok(file.into()),
        Ok(_) => {}
        Err(e) => return fail(reason(&e), remedy),
    }
    let mut bytes = Vec::new();
    match file.take(limit.saturating_add(1)).read_to_end(&mut bytes) {
        Ok(n) if n as u64 > limit => too_large(),
        Ok(_) => Ok(bytes.into()),
        Err(e) => fail(reason(&e), remedy),
    }
}

fn reason(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file",
        io::ErrorKind::PermissionDenied => "this user may not read it",
        io::ErrorKind::NotADirectory => "a part of the path is no directory",
        io::ErrorKind::OutOfMemory => "this host has not enough memory for it",
        _ => "it cannot be read",
    }
}

/// Every kernel is told of the console: the serial line, or the virtio console, before whose
/// driver is there the serial line shows what is said; before that of a screen, if there is one.
/// The last one is where its shell goes, and the operator's words come after all, and so win.
fn command_line(spec: &VmSpec, words: &str) -> String {
    let screen = if spec.display.is_there() { "console=tty0" } else { "" };
    let console = match spec.console_device {
        ConsoleDevice::Serial if spec.guest == GuestKind::XenPv => "console=hvc0",
        ConsoleDevice::Serial => "console=ttyS0",
        ConsoleDevice::Virtio => "earlyprintk=ttyS0 console=hvc0",
    };
    let parts = [screen, console, words, spec.append.trim()];
    let parts: Vec<&str> = parts.into_iter().filter(|p| !p.is_empty()).collect();
    parts.join(" ")
}

/// What the default guest is told of the operator's terminal.
fn terminal_words() -> String {
    let Some((rows, columns)) = terminal::size() else {
        // A program reads the output: nothing is to be wrapped or coloured for it.
        return "sarang.winsize=24x1000 sarang.term=dumb".into();
    };
    let mut words = format!("sarang.winsize={rows}x{columns}");
    if let Ok(term) = std::env::var("TERM")
        && (1..=32).contains(&term.len())
        && term.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-_.".contains(&b))
    {
        words.push_str(&format!(" sarang.term={term}"));
    }
    words
}

/// The guest that is part of the program; the operator's text is its commands.
fn built_in(spec: &VmSpec) -> Files {
    Files {
        start: Start::Kernel {
            kernel: microguest::GUEST.to_vec().into(),
            initrd: None,
            command_line: spec.append.trim().into(),
        },
        title: "the built-in guest".into(),
        kernel_name: "--built-in".into(),
        initrd_name: "--initrd".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operators_words_come_last() {
        let spec = VmSpec { append: " quiet ".into(), ..VmSpec::default() };
        assert_eq!(command_line(&spec, "a=b"), "console=ttyS0 a=b quiet");
        assert_eq!(command_line(&VmSpec::default(), ""), "console=ttyS0");
        let display = "vnc=127.0.0.1:0".parse().unwrap();
        let spec = VmSpec { display, ..VmSpec::default() };
        assert_eq!(command_line(&spec, ""), "console=tty0 console=ttyS0");
    }

    #[test]
    fn kernels_are_told_from_other_images() {
        let is_kernel = |bytes: &[u8]| is_kernel(&bytes.to_vec().into());
        let mut bzimage = vec![0; 0x300];
        bzimage[SIGNATURE_AT..SIGNATURE_AT + 4].copy_from_slice(b"HdrS");
        assert!(is_kernel(&bzimage) && is_kernel(b"\x7fELF\x02"));
        assert!(!is_kernel(b"QFI\xfb") && !is_kernel(b"") && !is_kernel(&[0; 0x204]));
    }

    #[test]
    fn unreadable_files_are_named() {
        for (path, why) in [
            ("/nonexistent/vmlinuz", "there is no such file"),
            ("/proc", "this is a directory"),
            ("/proc/version/x", "a part of the path is no directory"),
        ] {
            let failure = open("--kernel", Path::new(path), 10).unwrap_err();
            assert!(failure.line.starts_with(&format!("--kernel {path}: {why}; ")), "{failure:?}");
        }
        // A file without end is read no further than the limit.
        let failure = open("--kernel", Path::new("/dev/zero"), 100).unwrap_err();
        assert!(failure.line.contains("more than 100 bytes"), "{failure:?}");
    }
}
