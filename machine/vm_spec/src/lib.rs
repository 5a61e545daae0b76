//! What a VM is: versioned data.
//!
//! A [`VmSpec`] says everything about a VM that its operator decides, and nothing about how
//! it is carried out. It is plain data: the command line builds one, later an API stores
//! one. The types admit what can be written down; [`VmSpec::validate`] says whether it can
//! be run, and every refusal is one line that names the option, the fault and the remedy.

mod boot;
mod channel;
mod console;
mod disk;
mod display;
mod error;
mod firmware;
mod gdb;
mod guest;
mod limits;
mod net;
mod places;
mod smbios;
mod trace;
mod units;
mod virtio;
mod vsock;

use std::{path::PathBuf, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

pub use boot::{Boot, BootKind};
pub use channel::{CHANNELS_MAX, Channel};
pub use console::{Console, ConsoleDevice, parse_console};
pub use disk::{Disk, DiskBus, DiskCache, DiskFormat};
pub use display::{Display, Vnc};
pub use error::SpecError;
pub use firmware::{Firmware, FirmwareKind};
pub use gdb::GdbAddress;
pub use guest::GuestKind;
pub use limits::{
    CODE_CACHE_MAX, CODE_CACHE_MIN, COMMAND_LINE_MAX, CPUS_MAX, CPUS_MIN, DISKS_MAX,
    MEMORY_DEFAULT, MEMORY_GRANULE, MEMORY_MAX, MEMORY_MIN, MEMORY_STEP, PORTS_MAX, SATA_MAX,
};
pub use net::{Forward, Net, NetModel, Transport, UserNet};
pub use places::PCI_MAX;
pub use smbios::{Smbios, SmbiosBios, SmbiosBoard, SmbiosChassis, SmbiosSystem};
pub use trace::{Trace, TraceKind};
pub use units::{
    format_memory, parse_code_cache, parse_cpus, parse_cpus_max, parse_memory, parse_memory_max,
    parse_ports, parse_timeout,
};
pub use virtio::VirtioTransport;
pub use vsock::Vsock;

/// The version of [`VmSpec`]'s shape that this build writes and reads.
pub const VERSION: u32 = 1;

/// Which engine executes the guest's code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// The best that this host offers.
    #[default]
    Auto,
    /// The processor, through `/dev/kvm`.
    Kvm,
    /// Software: works on any x86-64 Linux.
    Translate,
}

impl EngineChoice {
    /// The word for it on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Translate => "translate",
        }
    }
}

impl FromStr for EngineChoice {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "translate" => Ok(Self::Translate),
            _ => Err(SpecError::new(
                "--engine",
                text,
                "there is no such engine",
                "give auto, kvm or translate",
            )),
        }
    }
}

/// What is started when the VM starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Kernel {
    /// Debian's stock kernel with a small root, fetched and cached.
    #[default]
    Default,
    /// One of the guests that are part of the program.
    BuiltIn(String),
    /// A kernel image (bzImage or ELF) from a file.
    File(PathBuf),
    /// What the first disk has in its own file system; of a Xen PV guest.
    Disk,
}

/// A virtual machine, as its operator describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// The shape of this data: [`VERSION`].
    pub version: u32,
    pub guest: GuestKind,
    pub engine: EngineChoice,
    /// Virtual CPUs, [`CPUS_MIN`] to [`CPUS_MAX`].
    pub cpus: u32,
    /// Virtual CPUs that there can be while the VM runs; more than `cpus`.
    #[serde(default)]
    pub cpus_max: Option<u32>,
    /// A name that the `cpu_model` crate knows: `x86-64-v2`, `x86-64-v3`, `host`, ...
    /// `None` lets the machine choose the best portable one.
    pub cpu_model: Option<String>,
    /// Guest RAM in bytes, a multiple of [`MEMORY_GRANULE`].
    pub memory: u64,
    /// Guest RAM that there can be while the VM runs, in bytes; more than `memory` by a multiple of
    /// [`MEMORY_STEP`].
    #[serde(default)]
    pub memory_max: Option<u64>,
    /// Bytes of memory for translated code under engine `translate`, in equal parts for each vCPU
    /// from the start; one that comes later has as much as one of them. 0 interprets everything.
    pub code_cache: u64,
    /// Tell `perf report` which guest code translated code is, in `/tmp/perf-PID.map`.
    pub perf_map: bool,
    /// Let the host's MMU translate addresses of programs that run for some milliseconds, under
    /// engine `translate`.
    pub windows: bool,
    /// With it, `kernel` says nothing.
    #[serde(default)]
    pub firmware: Firmware,
    /// What firmware tries first.
    #[serde(default)]
    pub boot: Boot,
    /// The image of a floppy, of which a BIOS has a copy.
    #[serde(default)]
    pub floppy: Option<PathBuf>,
    pub kernel: Kernel,
    pub initrd: Option<PathBuf>,
    /// Text for the end of the kernel's command line.
    pub append: String,
    pub console: Console,
    /// The device that the console is.
    #[serde(default)]
    pub console_device: ConsoleDevice,
    /// Ports with names, at most [`CHANNELS_MAX`].
    #[serde(default)]
    pub channels: Vec<Channel>,
    /// In the order in which the guest finds them, at most [`DISKS_MAX`].
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// A folder whose files cloud-init finds on one more disk.
    #[serde(default)]
    pub cloud_init: Option<PathBuf>,
    /// An entropy device.
    #[serde(default)]
    pub rng: bool,
    /// A virtio keyboard and a virtio tablet.
    #[serde(default)]
    pub input: bool,
    /// Where the virtio devices are.
    #[serde(default)]
    pub virtio: VirtioTransport,
    /// PCI Express ports for devices that come while the machine runs, at most [`PORTS_MAX`].
    #[serde(default)]
    pub ports: u32,
    /// A balloon, by which the guest's memory is taken and given back while it runs.
    #[serde(default)]
    pub balloon: bool,
    /// The network card.
    #[serde(default)]
    pub net: Net,
    /// Streams between programs of the guest and Unix sockets of the host.
    #[serde(default)]
    pub vsock: Option<Vsock>,
    /// A screen, a keyboard and a mouse.
    #[serde(default)]
    pub display: Display,
    /// Who made the machine, as the guest is told.
    #[serde(default)]
    pub smbios: Smbios,
    /// Milliseconds of wall-clock time after which the VM is ended.
    pub timeout_ms: Option<u64>,
    pub trace: Trace,
    /// Where a debugger may connect; the VM then starts stopped.
    pub gdb: Option<GdbAddress>,
}

impl Default for VmSpec {
    fn default() -> Self {
        Self {
            version: VERSION,
            guest: GuestKind::Pc,
            engine: EngineChoice::Auto,
            cpus: CPUS_MIN,
            cpus_max: None,
            cpu_model: None,
            memory: MEMORY_DEFAULT,
            memory_max: None,
            code_cache: limits::CODE_CACHE_DEFAULT,
            perf_map: false,
            windows: true,
            firmware: Firmware::default(),
            boot: Boot::default(),
            floppy: None,
            kernel: Kernel::Default,
            initrd: None,
            append: String::new(),
            console: Console::Stdio,
            console_device: ConsoleDevice::Serial,
            channels: Vec::new(),
            disks: Vec::new(),
            cloud_init: None,
            rng: false,
            balloon: false,
            input: false,
            virtio: VirtioTransport::Pci,
            ports: 0,
            net: Net::None,
            vsock: None,
            display: Display::None,
            smbios: Smbios::default(),
            timeout_ms: None,
            trace: Trace::default(),
            gdb: None,
        }
    }
}

impl VmSpec {
    /// The wall-clock limit of the run.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout_ms.map(Duration::from_millis)
    }

    /// Bytes of memory that can come while it runs.
    pub fn memory_room(&self) -> u64 {
        self.memory_max.map_or(0, |most| most.saturating_sub(self.memory))
    }

    /// The engine, as far as the kind of guest leaves a choice.
    pub fn engine_of_guest(&self) -> EngineChoice {
        match (self.guest, self.engine) {
            (GuestKind::XenPv, EngineChoice::Auto) => EngineChoice::Translate,
            (_, engine) => engine,
        }
    }

    /// Virtual CPUs that there can ever be.
    pub fn cpus_most(&self) -> u32 {
        self.cpus_max.unwrap_or(self.cpus)
    }

    /// Checks what the types alone do not: ranges, and options that exclude each other.
    ///
    /// Data from a file or from the network passes through here before anything is built
    /// of it. Whether the named files exist and fit is known only when they are read.
    pub fn validate(&self) -> Result<(), SpecError> {
        if self.version != VERSION {
            return Err(SpecError::new(
                "version",
                &self.version.to_string(),
                "this build does not know that version of a VM's description",
                &format!("describe the VM in version {VERSION}"),
            ));
        }
        limits::check_cpus(self.cpus)?;
        limits::check_cpus_max(self.cpus, self.cpus_max)?;
        limits::check_memory(self.memory)?;
        limits::check_memory_max(self.memory, self.memory_max)?;
        limits::check_code_cache(self.code_cache, &format_memory(self.code_cache))?;
        limits::check_timeout(self.timeout_ms)?;
        self.check_kernel()?;
        self.check_cpu_model()?;
        self.console.validate()?;
        Channel::validate_all(&self.channels)?;
        limits::check_ports(self.ports)?;
        self.net.validate()?;
        self.vsock.as_ref().map_or(Ok(()), Vsock::validate)?;
        self.display.validate()?;
        self.smbios.validate()?;
        self.boot.validate(self)?;
        self.check_floppy()?;
        self.check_disks()?;
        self.virtio.validate(self)?;
        self.guest.validate(self)?;
        places::check(self)?;
        self.trace.validate()
    }

    fn check_disks(&self) -> Result<(), SpecError> {
        let most = DISKS_MAX - usize::from(self.cloud_init.is_some());
        if let Some(one_more) = self.disks.get(most) {
            return Err(SpecError::new(
                "--disk",
                &one_more.path.display().to_string(),
                "the board has no place for so many disks",
                &format!("give at most {most}"),
            ));
        }
        let sata = self.disks.iter().filter(|disk| disk.bus.is_sata());
        if let Some(one_more) = sata.clone().nth(SATA_MAX) {
            return Err(SpecError::new(
                "--disk",
                &one_more.path.display().to_string(),
                "the SATA adapter has no port for so many disks and CD drives",
                &format!("give at most {SATA_MAX} of them"),
            ));
        }
        self.disks.iter().try_for_each(Disk::validate)
    }

    fn check_kernel(&self) -> Result<(), SpecError> {
        if matches!(self.kernel, Kernel::BuiltIn(_))
            && let Some(initrd) = &self.initrd
        {
            return Err(SpecError::new(
                "--initrd",
                &initrd.display().to_string(),
                "a built-in guest has no use for an initrd",
                "give --kernel FILE with it",
            ));
        }
        if self.append.len() > COMMAND_LINE_MAX {
            return Err(SpecError::new(
                "--append",
                &format!("{}...", self.append.chars().take(20).collect::<String>()),
                &format!("{} bytes are more than a kernel's command line holds", self.append.len()),
                &format!("give at most {COMMAND_LINE_MAX} bytes"),
            ));
        }
        if self.append.bytes().any(|b| b.is_ascii_control()) {
            return Err(SpecError::new(
                "--append",
                &self.append.escape_debug().to_string(),
                "a kernel's command line is one line of text",
                "leave out control characters",
            ));
        }
        Ok(())
    }

    fn check_cpu_model(&self) -> Result<(), SpecError> {
        let Some(name) = &self.cpu_model else { return Ok(()) };
        let known_shape = !name.is_empty()
            && name.len() <= 64
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if known_shape {
            return Ok(());
        }
        Err(SpecError::new(
            "--cpu-model",
            name,
            "this cannot be the name of a CPU model",
            "give x86-64-v2, x86-64-v3, x86-64-v4 or host",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid() {
        assert_eq!(VmSpec::default().validate(), Ok(()));
    }

    #[test]
    fn survives_being_written_and_read() {
        let spec = VmSpec {
            engine: EngineChoice::Translate,
            cpus: 4,
            cpus_max: Some(8),
            cpu_model: Some("x86-64-v3".into()),
            memory: 1 << 30,
            memory_max: Some(4 << 30),
            code_cache: 32 << 20,
            perf_map: true,
            windows: false,
            firmware: "bios,log=/tmp/log".parse().unwrap(),
            kernel: Kernel::File("/boot/vmlinuz".into()),
            initrd: Some("/boot/initrd".into()),
            append: "panic=-1".into(),
            console: "unix:/tmp/console".parse().unwrap(),
            disks: vec!["disk.img,readonly".parse().unwrap()],
            cloud_init: Some("/seed".into()),
            rng: true,
            balloon: true,
            ports: 3,
            virtio: VirtioTransport::Mmio,
            console_device: ConsoleDevice::Virtio,
            channels: vec!["agent=unix:/tmp/agent".parse().unwrap()],
            net: "user,loopback".parse().unwrap(),
            vsock: Some("/run/vsock,cid=7".parse().unwrap()),
            display: "vnc=127.0.0.1:7".parse().unwrap(),
            timeout_ms: Some(30_000),
            trace: "exits,interrupts:/tmp/trace".parse().unwrap(),
            gdb: Some("tcp:127.0.0.1:1234".parse().unwrap()),
            ..VmSpec::default()
        };
        assert_eq!(spec.validate(), Ok(()));
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<VmSpec>(&text).unwrap(), spec);
    }

    #[test]
    fn unknown_fields_and_versions_are_refused() {
        let mut value = serde_json::to_value(VmSpec::default()).unwrap();
        value["colour"] = "red".into();
        let error = serde_json::from_value::<VmSpec>(value).unwrap_err().to_string();
        assert!(error.contains("colour"), "{error}");
        let spec = VmSpec { version: 2, ..VmSpec::default() };
        assert!(spec.validate().unwrap_err().to_string().contains("version"));
    }

    #[test]
    fn out_of_range_values_from_data_are_refused() {
        for (spec, option) in [
            (VmSpec { cpus: 0, ..VmSpec::default() }, "--cpus"),
            (VmSpec { cpus: 4096, ..VmSpec::default() }, "--cpus"),
            (VmSpec { cpus_max: Some(1), ..VmSpec::default() }, "--cpus"),
            (VmSpec { cpus_max: Some(256), ..VmSpec::default() }, "--cpus"),
            (VmSpec { memory: 1 << 20, ..VmSpec::default() }, "--memory"),
            (VmSpec { memory: u64::MAX, ..VmSpec::default() }, "--memory"),
            (VmSpec { memory_max: Some(1 << 29), ..VmSpec::default() }, "--memory"),
            (VmSpec { memory_max: Some(600 << 20), ..VmSpec::default() }, "--memory"),
            (VmSpec { memory_max: Some(u64::MAX), ..VmSpec::default() }, "--memory"),
            (VmSpec { ports: 9, ..VmSpec::default() }, "--ports"),
            (VmSpec { timeout_ms: Some(0), ..VmSpec::default() }, "--timeout"),
            (VmSpec { append: "x".repeat(4096), ..VmSpec::default() }, "--append"),
            (VmSpec { append: "a\nb".into(), ..VmSpec::default() }, "--append"),
            (VmSpec { cpu_model: Some("a b".into()), ..VmSpec::default() }, "--cpu-model"),
            (VmSpec { disks: vec![Disk::default()], ..VmSpec::default() }, "--disk"),
            (
                VmSpec { disks: vec!["a,bus=sata".parse().unwrap(); 7], ..VmSpec::default() },
                "--disk",
            ),
            (VmSpec { disks: vec!["a".parse().unwrap(); 25], ..VmSpec::default() }, "--disk"),
        ] {
            let error = spec.validate().unwrap_err();
            assert_eq!(error.option(), option);
            let line = error.to_string();
            assert!(!line.contains('\n'), "{line:?} is one line");
        }
    }

    #[test]
    fn engine_names_go_both_ways() {
        for engine in [EngineChoice::Auto, EngineChoice::Kvm, EngineChoice::Translate] {
            assert_eq!(engine.name().parse(), Ok(engine));
        }
        assert!("tcg".parse::<EngineChoice>().is_err());
    }
}
