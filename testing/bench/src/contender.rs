//! The contenders: how each is found, named and started.

use crate::guest::{self, Built, Files};
use crate::options::Options;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Who runs the guest's program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contender {
    /// The program on the host itself.
    Native,
    /// `qemu-system-x86_64` with its translator.
    Qemu,
    /// The same on its smallest machine, which boots faster: for boot times only.
    QemuMicrovm,
    /// User-Mode Linux: its own kernel, native user code.
    Uml,
    /// This project.
    Sarang,
    /// The same with the guest as a Xen PV domain.
    XenPv,
}

/// What all contenders are given.
#[derive(Debug, Clone)]
pub struct Setup {
    pub built: Built,
    pub files: Files,
    pub memory_mib: u32,
    /// vCPUs.
    pub cpus: u32,
    pub engine: String,
    pub sarang: PathBuf,
}

impl Setup {
    /// Takes the options over what is built.
    pub fn new(options: &Options, built: Built, files: Files) -> Self {
        let default = || guest::out_dir().join("../release/sarang");
        Self {
            built,
            files,
            memory_mib: options.memory_mib,
            cpus: 1,
            engine: options.engine.clone(),
            sarang: options.sarang.clone().unwrap_or_else(default),
        }
    }

    /// The same guest with so many vCPUs.
    pub fn with_cpus(&self, cpus: u32) -> Self {
        Self { cpus, ..self.clone() }
    }

    fn kernel(&self) -> Result<&Path, String> {
        let missing = "there is no guest kernel: give one with --kernel FILE";
        self.files.kernel.as_deref().ok_or_else(|| missing.to_owned())
    }
}

impl Contender {
    /// In the order in which a round runs them.
    pub const ALL: [Self; 6] =
        [Self::Native, Self::Qemu, Self::QemuMicrovm, Self::Uml, Self::Sarang, Self::XenPv];

    /// It is this project's program.
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Sarang | Self::XenPv)
    }

    /// The kernel's name for the guest's console.
    pub fn console(self) -> &'static str {
        if self == Self::XenPv { "hvc0" } else { "ttyS0" }
    }

    /// It ends when its guest has powered off. A machine without ACPI halts, and is killed.
    pub fn powers_off(self) -> bool {
        self != Self::QemuMicrovm
    }

    /// The name on the command line and in the tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Qemu => "qemu",
            Self::QemuMicrovm => "qemu-microvm",
            Self::Uml => "uml",
            Self::Sarang => "sarang",
            Self::XenPv => "xen-pv",
        }
    }

    /// The contender of this name.
    pub fn named(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|c| c.name() == name);
        found.ok_or_else(|| {
            format!("no contender `{name}` (native, qemu, qemu-microvm, uml, sarang, xen-pv)")
        })
    }

    /// Its version, or why it cannot take part.
    pub fn present(self, setup: &Setup) -> Result<String, String> {
        match self {
            Self::Native => Ok(first_line(Command::new("cc").arg("--version"))?),
            Self::Qemu | Self::QemuMicrovm => {
                setup.kernel()?;
                first_line(Command::new("qemu-system-x86_64").arg("--version"))
                    .map_err(|e| format!("{e} (apt-get install qemu-system-x86)"))
            }
            Self::Uml => first_line(Command::new("linux.uml").arg("--version"))
                .map(|version| format!("User-Mode Linux {version}"))
                .map_err(|e| format!("{e} (apt-get install user-mode-linux)")),
            Self::Sarang | Self::XenPv => {
                setup.kernel()?;
                first_line(Command::new(&setup.sarang).arg("--version"))
            }
        }
    }

    /// The command that runs the benchmark with these arguments (`-t,50,fib`).
    pub fn command(self, setup: &Setup, gbench_args: &str) -> Result<Command, String> {
        if self == Self::Native {
            let mut native = Command::new(&setup.built.program);
            native.args(gbench_args.split(',').filter(|a| !a.is_empty()));
            return Ok(native);
        }
        let append = format!("quiet gbench.args={gbench_args}");
        self.boot(setup, &setup.built.initramfs, &append)
    }

    /// The command that boots a guest with its console on standard input and output.
    pub fn boot(self, setup: &Setup, initrd: &Path, append: &str) -> Result<Command, String> {
        let memory = setup.memory_mib;
        match self {
            Self::Native => Err("the host itself boots no guest".to_owned()),
            Self::Qemu | Self::QemuMicrovm => {
                let machine = match self {
                    Self::QemuMicrovm => "microvm,acpi=off,pit=on,pic=on,rtc=on",
                    _ => "pc",
                };
                let mut qemu = Command::new("qemu-system-x86_64");
                // RAM as a memfd, so that /proc tells it from the program's own memory.
                qemu.arg("-object").arg(format!("memory-backend-memfd,id=ram,size={memory}M"));
                qemu.arg("-machine").arg(format!("{machine},memory-backend=ram"));
                qemu.arg("-m").arg(format!("{memory}M")).arg("-smp").arg(setup.cpus.to_string());
                qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max,la57=off"]);
                qemu.args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]);
                qemu.arg("-kernel").arg(setup.kernel()?).arg("-initrd").arg(initrd);
                qemu.arg("-append").arg(format!("console={} {append}", self.console()));
                Ok(qemu)
            }
            Self::Uml => {
                let mut uml = Command::new("linux.uml");
                uml.env("LD_PRELOAD", &setup.built.uml_shim);
                uml.arg(format!("mem={memory}M")).arg(format!("initrd={}", initrd.display()));
                uml.args(["root=/dev/ram0", "rdinit=/init", "con=null"]);
                uml.args(["con0=fd:0,fd:1", "con1=fd:0,fd:1"]).args(append.split(' '));
                Ok(uml)
            }
            Self::Sarang | Self::XenPv => {
                let mut sarang = self.ours(setup, memory);
                sarang.arg("--kernel").arg(setup.kernel()?).arg("--initrd").arg(initrd);
                sarang.arg("--append").arg(format!("console={} {append}", self.console()));
                Ok(sarang)
            }
        }
    }

    /// What begins a command of this project's program.
    pub fn ours(self, setup: &Setup, memory_mib: u32) -> Command {
        let mut sarang = Command::new(&setup.sarang);
        sarang.args(["run", "--console", "stdio"]);
        if self == Self::XenPv {
            // No other engine has it.
            sarang.args(["--engine", "translate", "--guest", "xen-pv"]);
        } else {
            sarang.args(["--engine", &setup.engine]);
        }
        sarang.arg("--cpus").arg(setup.cpus.to_string());
        sarang.arg("--memory").arg(format!("{memory_mib}M"));
        sarang
    }
}

fn first_line(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = command.output().map_err(|e| format!("{name}: {e}"))?;
    let text = String::from_utf8_lossy(&out.stdout);
    let line = text.lines().map(str::trim).find(|l| !l.is_empty());
    line.map(str::to_owned).ok_or_else(|| format!("{name} tells no version ({})", out.status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_contender() {
        for contender in Contender::ALL {
            assert_eq!(Contender::named(contender.name()), Ok(contender));
        }
        assert!(Contender::named("xen").unwrap_err().contains("xen-pv"));
    }

    #[test]
    fn a_domain_is_the_same_guest_with_another_console() {
        let setup = Setup {
            built: Built {
                program: "gbench".into(),
                initramfs: "initramfs".into(),
                io: "io".into(),
                uml_shim: "shim".into(),
            },
            files: Files { kernel: Some("vmlinuz".into()), ..Files::default() },
            memory_mib: 512,
            cpus: 2,
            engine: "kvm".to_owned(),
            sarang: "sarang".into(),
        };
        let line = |contender: Contender| {
            let command = contender.command(&setup, "-t,1,fib").unwrap();
            let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
            args.join(" ")
        };
        let rest = "--cpus 2 --memory 512M --kernel vmlinuz --initrd initramfs --append console=";
        let words = "quiet gbench.args=-t,1,fib";
        assert_eq!(
            line(Contender::Sarang),
            format!("run --console stdio --engine kvm {rest}ttyS0 {words}")
        );
        assert_eq!(
            line(Contender::XenPv),
            format!("run --console stdio --engine translate --guest xen-pv {rest}hvc0 {words}")
        );
    }
}
