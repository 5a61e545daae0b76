//! The command line: what can be said, and what it means as a VM's description.

use std::{ffi::OsString, path::PathBuf};

use clap::{ArgAction, CommandFactory, Parser, Subcommand, error::ErrorKind};
use vm_spec::{
    Boot, Disk, DiskBus, DiskFormat, Firmware, FirmwareKind, GuestKind, Kernel, Smbios, SpecError,
    Trace, VmSpec, parse_code_cache, parse_console, parse_cpus_max, parse_memory_max, parse_ports,
    parse_timeout,
};

use crate::{Failure, status};

const ABOUT: &str = "Runs virtual machines on any x86-64 Linux host";

const EXAMPLES: &str = "\
Examples:
  sarang run                               boot the default guest to a shell
  sarang run --cpus 4 --memory 2G          the same with more of everything
  sarang run --kernel bzImage --initrd rootfs.cpio --append 'quiet'
  sarang run --ephemeral disk.qcow2        boot from a disk, and keep nothing of what is written
  sarang run --kernel vmlinuz --initrd initrd.img --append 'root=/dev/vda1' disk.qcow2
  sarang run --console unix:/tmp/vm.sock --timeout 5m
  sarang engines                           what this host can run guests with";

const KEYS: &str = "\
Keys, on a terminal:
  Ctrl-A x       quit at once
  Ctrl-A c       monitor prompt: info, stats, pause, resume, reset, powerdown, nmi, quit; again: back
  Ctrl-A h       help
  Ctrl-A Ctrl-A  send Ctrl-A to the guest (Ctrl-A a does too)

Everything else goes to the guest, Ctrl-C included. SIGTERM and SIGHUP press the guest's power
button; a second one quits, and after SIGHUP so do 30 seconds. A serial line has no window size: the default guest is told the
terminal's at start; in another guest use `stty rows R columns C`.";

#[derive(Debug, Parser)]
#[command(name = "sarang", version, about = ABOUT, disable_help_subcommand = true,
    after_help = EXAMPLES, after_long_help = after_help(), max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

fn after_help() -> String {
    format!("{EXAMPLES}\n\n{}", status::HELP)
}

fn run_help() -> String {
    format!("{KEYS}\n\n{EXAMPLES}\n\n{}", status::HELP)
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a guest on this terminal until it powers off
    #[command(after_help = "--help says more: keys, examples, exit statuses.",
        after_long_help = run_help())]
    Run(Box<RunOptions>),
    /// Tell which engines this host offers, and why one is not usable
    Engines,
    /// Print a shell's completion script
    Completion {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Look at or change the cache of fetched guests
    Cache {
        #[command(subcommand)]
        action: CacheAction,
    },
}

#[derive(Debug, Subcommand)]
pub enum CacheAction {
    /// List the guests in the cache
    Show,
    /// Remove everything from the cache
    Clear,
    /// Fetch a guest now, again if it is there, and print where its kernel and initrd are
    Fetch {
        /// The kernel's Debian package; * stands for any text, ? for one character
        #[arg(default_value = assets::DEFAULT_KERNEL, value_name = "PACKAGE")]
        package: String,
    },
}

// Values are taken as text and read by `vm_spec`, whose refusals say what to do.
#[derive(Debug, clap::Args)]
pub struct RunOptions {
    /// What executes the guest: auto, kvm (the processor) or translate (software, anywhere)
    #[arg(long, value_name = "ENGINE", default_value = "auto")]
    engine: String,

    /// What the guest takes its machine for: pc; pvh, the same, entered as Xen enters its PVH guests;
    /// or xen-pv, for a kernel that knows Xen's paravirtual interface
    #[arg(long, value_name = "pc|pvh|xen-pv", default_value = "pc")]
    guest: String,

    /// Kernel to boot: a bzImage or ELF file of Linux, or any kernel with a PVH note or a Multiboot
    /// header
    #[arg(long, value_name = "FILE", conflicts_with = "package")]
    kernel: Option<PathBuf>,

    /// Initial RAM file system for the kernel; the module of a Multiboot kernel
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,

    /// Text to add to the kernel's command line
    #[arg(long, value_name = "TEXT", default_value = "", allow_hyphen_values = true)]
    append: String,

    /// Debian kernel for the default guest, as a package's name; * stands for any text, ? for one character
    #[arg(long, value_name = "PACKAGE", conflicts_with = "image")]
    package: Option<String>,

    /// What the guest starts with: none (a kernel is loaded), bios (SeaBIOS) or uefi (OVMF), which
    /// boot from a disk, with [,file=PATH][,log=PATH], and uefi[,vars=PATH] to keep its variables
    /// [default: bios with a disk or CD and without a kernel, else none]
    #[arg(long, value_name = "FIRMWARE")]
    firmware: Option<String>,

    /// What firmware tries first: floppy, disk, cd and net, such as cd,disk; what is not named
    /// follows in the order of the options. menu shows a menu of them
    #[arg(long, value_name = "ORDER")]
    boot: Option<String>,

    /// Image of a floppy, from 160 KiB to 2.88 MB, for a BIOS: its copy in memory is what the guest
    /// reads and writes
    #[arg(long, value_name = "FILE")]
    floppy: Option<PathBuf>,

    /// Run the guest that is part of the program, which needs no files and no network; it
    /// executes the commands after run= in --append, such as 'run=info;smp'
    #[arg(long, conflicts_with_all = ["kernel", "package", "image", "initrd"])]
    built_in: bool,

    /// Guest memory: 512M, 2G, 1GiB; with ,max=SIZE the monitor can give the guest up to so much
    /// while it runs
    #[arg(long, value_name = "SIZE", default_value = "512M", allow_hyphen_values = true)]
    memory: String,

    /// Memory for translated code under engine translate, shared equally by the CPUs
    /// that there are from the start; 0 interprets everything
    #[arg(long, value_name = "SIZE", default_value = "128M", allow_hyphen_values = true)]
    code_cache: String,

    /// Number of virtual CPUs; with ,max=M the monitor can give the guest up to M while it runs
    #[arg(long, value_name = "N", default_value = "1", allow_hyphen_values = true)]
    cpus: String,

    /// CPU that the guest sees: x86-64-v2, x86-64-v3, x86-64-v4 or host
    #[arg(long, value_name = "NAME")]
    cpu_model: Option<String>,

    /// Guest console: stdio, none, pty, unix:PATH or file:PATH, on a serial port; with virtio: in
    /// front, such as virtio:stdio, or virtio alone, on a virtio console
    #[arg(long, value_name = "CONSOLE", default_value = "stdio")]
    console: String,

    /// Disk of the guest: FILE[,format=raw|qcow2][,bus=virtio|scsi|sata|cd|scsi-cd][,readonly]
    /// [,ephemeral][,cache=writeback|none|unsafe][,backing=FILE][,serial=TEXT]; a comma in a name
    /// is ',,'. Give it once for each disk
    #[arg(long = "disk", value_name = "DISK")]
    disks: Vec<String>,

    /// Drop what the guest writes to its disks when it ends; the files are only read
    #[arg(long)]
    ephemeral: bool,

    /// Port of a virtio console with a name, /dev/virtio-ports/NAME in Linux, and what is at its
    /// other end: NAME=unix:PATH, NAME=pty or NAME=file:PATH. Give it once for each
    #[arg(long = "channel", value_name = "CHANNEL")]
    channels: Vec<String>,

    /// Give the guest a virtio keyboard and a virtio tablet
    #[arg(long)]
    input: bool,

    /// Where the virtio devices are: pci, or mmio, registers in memory of which ACPI tells; UEFI finds
    /// no disks there, SeaBIOS does
    #[arg(long, value_name = "pci|mmio", default_value = "pci")]
    virtio: String,

    /// PCI Express ports for devices that the monitor adds while the guest runs: 0 to 8
    #[arg(long, value_name = "N", default_value = "0", allow_hyphen_values = true)]
    ports: String,

    /// Give the guest a balloon, by which the monitor takes its memory and gives it back, and free
    /// memory returns to the host by itself
    #[arg(long)]
    balloon: bool,

    /// Give the guest a read-only disk with these files of a folder, by which cloud-init sets it up:
    /// user-data, and if they are there meta-data, network-config and vendor-data
    #[arg(long, value_name = "FOLDER")]
    cloud_init: Option<PathBuf>,

    /// CD in a drive of the guest, such as an installer: an ISO image. Give it once for each
    #[arg(long = "cdrom", value_name = "FILE")]
    cdroms: Vec<PathBuf>,

    /// Give the guest random bytes of the host's
    #[arg(long)]
    rng: bool,

    /// Network card of the guest: none, or user[,model=virtio|e1000]
    /// [,forward=tcp:127.0.0.1:2222-:22][,mac=..][,mtu=..][,loopback][,tftp=PATH][,boot=FILE];
    /// a comma in a name is ',,'
    #[arg(long, value_name = "NET", default_value = "none")]
    net: String,

    /// Who made the machine, as SMBIOS tells the guest: type=1[,manufacturer=..][,product=..]
    /// [,version=..][,serial=..][,uuid=..][,sku=..][,family=..]; type=0, 2 and 3 have texts of
    /// their own, type=11 has value=TEXT. Give it once for each type
    #[arg(long, value_name = "TEXTS")]
    smbios: Vec<String>,

    /// Sockets between programs of the guest and of this host: PATH[,cid=N]. Who connects to PATH and
    /// says CONNECT and a port is connected to the guest's; a guest's that connects to port N of
    /// CID 2, to the socket PATH_N
    #[arg(long, value_name = "VSOCK")]
    vsock: Option<String>,

    /// Screen of the guest, with a keyboard and a mouse: none, or
    /// vnc=127.0.0.1:N[,password-file=FILE]; N is a display's number, or auto
    #[arg(long, value_name = "DISPLAY", default_value = "none")]
    display: String,

    /// End the run after this time: 30s, 500ms, 5m, 2h
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    timeout: Option<String>,

    /// Wait for a debugger at this address, such as tcp:127.0.0.1:1234
    #[arg(long, value_name = "ADDRESS")]
    gdb: Option<String>,

    /// Write down events: exits,interrupts,exceptions, to standard error or to :FILE
    #[arg(long, value_name = "EVENTS[:FILE]")]
    trace: Option<String>,

    /// Print what was counted when the run ends: exits, translated code, callouts, for each CPU
    #[arg(long)]
    pub stats: bool,

    /// Write /tmp/perf-PID.map, by which `perf report` names translated guest code by its
    /// address. Under engine translate
    #[arg(long)]
    perf_map: bool,

    /// Whether the host's MMU translates the addresses of programs that run for some
    /// milliseconds; off helps to find faults. Under engine translate
    #[arg(long, value_name = "on|off", default_value = "on", action = ArgAction::Set)]
    #[arg(value_parser = on_or_off)]
    windows: bool,

    /// Let --engine kvm use a software KVM, which cannot run a stock kernel
    #[arg(long)]
    pub force_kvm: bool,

    /// The guest's first disk, from which it boots if there is no --kernel: a file whose name ends
    /// in .qcow2, .img or .raw, or any with --kernel or --firmware. Else a kernel, like --kernel
    #[arg(value_name = "IMAGE")]
    image: Option<PathBuf>,
}

impl RunOptions {
    /// The VM that is described.
    pub fn to_spec(&self) -> Result<VmSpec, SpecError> {
        let guest: GuestKind = self.guest.parse()?;
        let image = self.image.as_ref().filter(|_| !self.image_is_disk());
        let kernel = match (&self.kernel, image) {
            (Some(file), _) | (None, Some(file)) => Kernel::File(file.clone()),
            (None, None) if self.built_in => Kernel::BuiltIn(crate::guest::BUILT_IN.into()),
            (None, None) => Kernel::Default,
        };
        let from_disk = self.kernel.is_none() && self.image_is_disk();
        let named = kernel != Kernel::Default || self.package.is_some() || self.initrd.is_some();
        let disks = self.disks()?;
        // As with firmware: what is not told apart otherwise boots from its disk.
        let of_disk = from_disk || self.firmware.is_none() && !disks.is_empty() && !named;
        if guest == GuestKind::XenPv && of_disk {
            return self.spec_of(guest, Kernel::Disk, Firmware::default(), disks);
        }
        let firmware = match self.firmware.as_deref() {
            Some(text) => text.parse()?,
            None if from_disk || !named && (!disks.is_empty() || self.boots_otherwise()) => {
                Firmware { kind: FirmwareKind::Bios, ..Firmware::default() }
            }
            None => Firmware::default(),
        };
        if from_disk && firmware.is_none() {
            return Err(SpecError::new(
                "IMAGE",
                &self.image.as_deref().unwrap_or("".as_ref()).display().to_string(),
                "without firmware nothing boots from a disk",
                "leave out --firmware none, or give a kernel with --kernel",
            ));
        }
        if !firmware.is_none() && (kernel != Kernel::Default || self.package.is_some()) {
            return Err(SpecError::new(
                "--firmware",
                &firmware.to_string(),
                "firmware boots from a disk, not a kernel that is given",
                "give --disk FILE in place of the kernel, or --firmware none",
            ));
        }
        if !firmware.is_none() && !self.append.trim().is_empty() {
            return Err(SpecError::new(
                "--append",
                &self.append,
                "firmware boots from a disk, whose boot loader gives the kernel its command line",
                "leave it out, or load a kernel by --kernel FILE or --firmware none",
            ));
        }
        if self.initrd.is_some() && kernel == Kernel::Default {
            return Err(SpecError::new(
                "--initrd",
                &self.initrd.as_deref().unwrap_or("".as_ref()).display().to_string(),
                "the default guest has an initrd of its own",
                "give --kernel FILE with it",
            ));
        }
        self.spec_of(guest, kernel, firmware, disks)
    }

    fn spec_of(
        &self,
        guest: GuestKind,
        kernel: Kernel,
        firmware: Firmware,
        disks: Vec<Disk>,
    ) -> Result<VmSpec, SpecError> {
        let (console_device, console) = parse_console(&self.console)?;
        let (cpus, cpus_max) = parse_cpus_max(&self.cpus)?;
        let (memory, memory_max) = parse_memory_max(&self.memory)?;
        let spec = VmSpec {
            guest,
            engine: self.engine.parse()?,
            cpus,
            cpus_max,
            cpu_model: self.cpu_model.clone(),
            memory,
            memory_max,
            code_cache: parse_code_cache(&self.code_cache)?,
            perf_map: self.perf_map,
            windows: self.windows,
            firmware,
            boot: self.boot.as_deref().map_or(Ok(Boot::default()), str::parse)?,
            floppy: self.floppy.clone(),
            kernel,
            initrd: self.initrd.clone(),
            append: self.append.clone(),
            console,
            console_device,
            channels: self.channels.iter().map(|text| text.parse()).collect::<Result<_, _>>()?,
            balloon: self.balloon,
            input: self.input,
            virtio: self.virtio.parse()?,
            ports: parse_ports(&self.ports)?,
            rng: self.rng,
            disks,
            cloud_init: self.cloud_init.clone(),
            net: self.net.parse()?,
            vsock: self.vsock.as_deref().map(str::parse).transpose()?,
            display: self.display.parse()?,
            smbios: self.smbios()?,
            timeout_ms: self.timeout.as_deref().map(parse_timeout).transpose()?,
            trace: self.trace.as_deref().map_or(Ok(Trace::default()), str::parse)?,
            gdb: self.gdb.as_deref().map(str::parse).transpose()?,
            ..VmSpec::default()
        };
        spec.validate()?;
        Ok(spec)
    }

    /// Whether something else than a disk is there for firmware.
    fn boots_otherwise(&self) -> bool {
        self.floppy.is_some() || self.boot.is_some()
    }

    fn smbios(&self) -> Result<Smbios, SpecError> {
        let mut smbios = Smbios::default();
        self.smbios.iter().try_for_each(|option| smbios.add(option))?;
        Ok(smbios)
    }

    fn disks(&self) -> Result<Vec<Disk>, SpecError> {
        let image = self.image.as_ref().filter(|_| self.image_is_disk());
        let image = image.map(|path| Disk { path: path.clone(), ..Disk::default() });
        let mut disks: Vec<Disk> = image.into_iter().collect();
        for disk in &self.disks {
            disks.push(disk.parse()?);
        }
        disks.extend(self.cdroms.iter().map(|path| Disk {
            path: path.clone(),
            format: Some(DiskFormat::Raw),
            read_only: true,
            bus: DiskBus::Cd,
            ..Disk::default()
        }));
        disks.iter_mut().for_each(|disk| disk.ephemeral |= self.ephemeral);
        Ok(disks)
    }

    /// The package of the default guest's kernel.
    pub fn kernel_package(&self) -> &str {
        self.package.as_deref().unwrap_or(assets::DEFAULT_KERNEL)
    }

    /// Whether the operator asked for one kernel and no other.
    pub fn names_package(&self) -> bool {
        self.package.is_some()
    }

    /// By its name, never by what a guest wrote into it.
    fn image_is_disk(&self) -> bool {
        let named = self.image.as_deref().is_some_and(crate::disks::named_as_disk);
        self.image.is_some() && (named || self.kernel.is_some() || self.firmware.is_some())
    }

    /// Whether the kernel was named as an image.
    pub fn is_image(&self) -> bool {
        self.kernel.is_none() && self.image.is_some()
    }
}

/// What came of the command line.
#[derive(Debug)]
pub enum Parsed {
    Command(Command),
    /// Help or version was asked for, and is printed.
    Printed,
}

/// Reads this process's arguments.
pub fn parse() -> Result<Parsed, Failure> {
    parse_from(std::env::args_os())
}

fn parse_from(arguments: impl IntoIterator<Item = OsString>) -> Result<Parsed, Failure> {
    let error = match Cli::try_parse_from(arguments) {
        Ok(cli) => return Ok(Parsed::Command(cli.command)),
        Err(error) => error,
    };
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A closed pipe is no reason to fail: the reader has what it wanted.
            let _ = error.print();
            Ok(Parsed::Printed)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => Err(
            Failure::usage("arguments: a command is missing; try `sarang run`, or `sarang --help`"),
        ),
        _ => Err(Failure::usage(one_line(&error.to_string()))),
    }
}

/// `clap`'s report has a paragraph for the fault and others for usage; ours is one line.
fn one_line(report: &str) -> String {
    let fault = report.split("\n\n").next().unwrap_or_default();
    let fault = fault.strip_prefix("error: ").unwrap_or(fault);
    let words: Vec<&str> = fault.split_whitespace().collect();
    format!("arguments: {}; see `sarang --help` and `sarang run --help`", words.join(" "))
}

/// Writes the completion script to standard output.
pub fn print_completion(shell: clap_complete::Shell) {
    clap_complete::generate(shell, &mut Cli::command(), "sarang", &mut std::io::stdout());
}

fn on_or_off(text: &str) -> Result<bool, &'static str> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("it is on or off"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Result<RunOptions, Failure> {
        let words = format!("sarang run {line}");
        match parse_from(words.split_whitespace().map(OsString::from))? {
            Parsed::Command(Command::Run(options)) => Ok(*options),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_the_spec() {
        assert_eq!(options("").unwrap().to_spec().unwrap(), VmSpec::default());
    }

    #[test]
    fn every_option_reaches_the_spec() {
        let spec = options(
            "--engine translate --kernel k --initrd i --append quiet --memory 1G --cpus 2 \
             --cpu-model host --console none --timeout 30s --gdb tcp:127.0.0.1:1234 \
             --trace exits:t --perf-map --windows off --stats --disk a,readonly --disk b \
             --rng --net user,mtu=9000 --channel a=pty --balloon --display vnc=127.0.0.1:1 \
             --ports 2 --input --virtio mmio",
        )
        .unwrap()
        .to_spec()
        .unwrap();
        assert_eq!(spec.engine.name(), "translate");
        assert_eq!(spec.kernel, Kernel::File("k".into()));
        assert_eq!(spec.initrd, Some("i".into()));
        assert_eq!((spec.memory, spec.cpus), (1 << 30, 2));
        assert_eq!(spec.cpu_model.as_deref(), Some("host"));
        assert_eq!(spec.timeout_ms, Some(30_000));
        let disks: Vec<_> = spec.disks.iter().map(|d| (d.path.to_str(), d.read_only)).collect();
        assert_eq!(disks, [(Some("a"), true), (Some("b"), false)]);
        assert!(
            spec.trace.exits && spec.gdb.is_some() && spec.perf_map && !spec.windows && spec.rng
        );
        assert_eq!(spec.net.to_string(), "user,mtu=9000");
        assert!(spec.balloon && spec.channels[0].name == "a" && spec.ports == 2 && spec.input);
        assert_eq!(
            (spec.display.to_string().as_str(), spec.virtio.name()),
            ("vnc=127.0.0.1:1", "mmio")
        );
        let spec = options("--console virtio").unwrap().to_spec().unwrap();
        assert_eq!(spec.console_device, vm_spec::ConsoleDevice::Virtio);
    }

    #[test]
    fn an_image_beside_a_kernel_is_the_first_disk() {
        let spec = options("--kernel k --disk b,ephemeral a.qcow2").unwrap().to_spec().unwrap();
        let disks: Vec<_> = spec.disks.iter().map(|d| (d.path.to_str(), d.ephemeral)).collect();
        assert_eq!(disks, [(Some("a.qcow2"), false), (Some("b"), true)]);
        assert_eq!(spec.kernel, Kernel::File("k".into()));
        let spec = options("--kernel k --ephemeral --disk b a").unwrap().to_spec().unwrap();
        assert!(spec.disks.iter().all(|disk| disk.ephemeral));
        let spec = options("k").unwrap().to_spec().unwrap();
        assert!(spec.kernel == Kernel::File("k".into()) && spec.disks.is_empty());
        assert!(spec.firmware.is_none());
    }

    #[test]
    fn an_image_that_is_a_disk_is_booted_by_firmware() {
        let spec = |line: &str| options(line).unwrap().to_spec();
        for (line, kind) in [
            ("a.qcow2", FirmwareKind::Bios),
            ("a.IMG", FirmwareKind::Bios),
            ("--firmware uefi a.raw", FirmwareKind::Uefi),
            ("--firmware bios /dev/sdx", FirmwareKind::Bios),
        ] {
            let spec = spec(line).unwrap();
            assert_eq!((spec.firmware.kind, spec.disks.len()), (kind, 1), "{line}");
            assert_eq!(spec.kernel, Kernel::Default);
        }
        assert_eq!(spec("--firmware none a.img").unwrap_err().option(), "IMAGE");
    }

    #[test]
    fn disks_boot_by_firmware_and_kernels_without() {
        let kind = |line: &str| options(line).unwrap().to_spec().unwrap().firmware.kind;
        assert_eq!(kind(""), FirmwareKind::None);
        assert_eq!(kind("--kernel k --disk a"), FirmwareKind::None);
        assert_eq!(kind("--built-in --cdrom a"), FirmwareKind::None);
        assert_eq!(kind("--disk a"), FirmwareKind::Bios);
        assert_eq!(kind("--cdrom a"), FirmwareKind::Bios);
        assert_eq!(kind("--firmware none --disk a"), FirmwareKind::None);
        assert_eq!(kind("--firmware uefi --disk a"), FirmwareKind::Uefi);
        let spec = options("--cdrom a,b.iso --disk c").unwrap().to_spec().unwrap();
        let buses: Vec<_> = spec.disks.iter().map(|disk| (disk.bus, disk.read_only)).collect();
        assert_eq!(buses, [(DiskBus::Virtio, false), (DiskBus::Cd, true)]);
    }

    #[test]
    fn bad_values_name_their_option() {
        for (line, option) in [
            ("--cpus 0", "--cpus"),
            ("--cpus 4096", "--cpus"),
            ("--cpus -1", "--cpus"),
            ("--memory 1M", "--memory"),
            ("--code-cache 1k", "--code-cache"),
            ("--code-cache 2G", "--code-cache"),
            ("--memory -5G", "--memory"),
            ("--engine qemu", "--engine"),
            ("--virtio ccw", "--virtio"),
            ("--console teletype", "--console"),
            ("--timeout 0s", "--timeout"),
            ("--gdb tcp:0.0.0.0:1", "--gdb"),
            ("--trace everything", "--trace"),
            ("--cpu-model ?", "--cpu-model"),
            ("--initrd i", "--initrd"),
            ("--disk a,format=vhd", "--disk"),
            ("--firmware openfirmware", "--firmware"),
            ("--firmware bios --kernel k", "--firmware"),
            ("--disk a --append quiet", "--append"),
            ("--append quiet a.qcow2", "--append"),
            ("--net user,forward=22", "--net"),
            ("--smbios type=1,colour=red", "--smbios"),
            ("--channel pty", "--channel"),
            ("--display vnc=0.0.0.0:0", "--display"),
            ("--ports 9", "--ports"),
            ("--ports many", "--ports"),
        ] {
            let error = options(line).unwrap().to_spec().unwrap_err();
            assert_eq!(error.option(), option, "{line}");
        }
    }

    #[test]
    fn faults_of_form_are_one_line() {
        for line in [
            "--colour",
            "--kernel",
            "--windows half",
            "--kernel a --package b",
            "a b",
            "--package a b",
        ] {
            let failure = options(line).unwrap_err();
            assert_eq!(failure.status, crate::status::Status::BadArguments);
            assert!(!failure.line.contains('\n') && failure.line.contains("; "), "{failure:?}");
        }
    }
}
