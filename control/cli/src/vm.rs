//! The machine, as this command uses it: built from files and options, its errors told by
//! the option that they concern.

use std::{io::Write, sync::Arc, time::Instant};

use byte_stream::{Input, Output};
use gdb_server::Server;
use machine::{CpusAnswer, Handle, Machine, Parts, Place, Sleep, Tracer, Wake};
use vm_spec::{GdbAddress, VmSpec};

use crate::{
    Failure, channels,
    console::Console,
    disks, displays, engines,
    engines::Engine,
    guest::Files,
    monitor::{Activity, Control, Gone},
    nets, plug, report, screens,
    status::Status,
    vsock,
};

pub use machine::Ended;

/// A machine and its threads.
pub struct Running {
    machine: Machine,
    control: Arc<Handle>,
    debugger: Option<Server>,
    /// Kept while the machine runs: sockets are removed with them.
    channels: Vec<Console>,
    /// The socket is removed with it.
    _vsock: Option<vsock::Socket>,
    /// Shows the screen as long as it is there.
    _viewer: Option<vnc_server::Server>,
}

impl Running {
    /// Builds it, not running yet.
    pub fn build(
        spec: &VmSpec,
        engine: Engine,
        files: Files,
        console: Arc<dyn Output>,
        trace: Option<Box<dyn Write + Send>>,
    ) -> Result<Self, Failure> {
        let names = Names::of(spec, &files);
        let mut channels = channels::open(&spec.channels)?;
        let engine = engines::open(engine, spec)?;
        let (vsock, sockets) = vsock::open(spec.vsock.as_ref())?.unzip();
        let parts = Parts {
            start: files.start,
            console,
            disks: disks::open(&spec.disks, spec.cloud_init.as_deref())?,
            channels: channels::parts(&spec.channels, &channels),
            entropy: spec.rng.then(disks::entropy).transpose()?,
            vga_rom: displays::vga_rom(&spec.display),
            networks: nets::open(&spec.net)?,
            vsock: sockets,
            tracer: match trace {
                Some(to) => Tracer::new(spec.trace.clone(), to),
                None => Tracer::none(),
            },
        };
        let machine =
            Machine::build(&*engine, spec, parts).map_err(|error| names.failure(&error))?;
        channels::start(&mut channels, &machine)?;
        let control = Arc::new(machine.handle());
        let debugger = match &spec.gdb {
            Some(address) => Some(serve_debugger(address, &control)?),
            None => None,
        };
        let viewer = displays::serve(&spec.display, control.seat().clone())?;
        Ok(Self { machine, control, debugger, channels, _vsock: vsock, _viewer: viewer })
    }

    pub fn control(&self) -> Arc<dyn Control> {
        self.control.clone()
    }

    /// Where the console's input goes.
    pub fn input(&self) -> Arc<dyn Input> {
        self.machine.console()
    }

    /// Lets the guest begin; with a debugger, that is for it to say.
    pub fn start(&self) {
        if self.debugger.is_some() {
            return;
        }
        // A machine that has ended already says how to whoever waits.
        let _ = self.control.resume();
    }

    /// What was counted, as a table, once it has ended.
    pub fn final_stats(&self) -> Option<String> {
        // Of one that a deadline ends, the end comes soon.
        let _ = self.machine.wait(None);
        self.machine.final_stats().map(|stats| stats.to_string())
    }

    /// How it ended; `None` if the deadline passes first, and then it is ended.
    pub fn wait(&self, deadline: Option<Instant>) -> Option<Ended> {
        let ended = self.machine.wait(deadline);
        self.channels.iter().for_each(Console::drain);
        if ended.is_none() {
            let _ = self.control.quit();
        }
        ended
    }
}

fn serve_debugger(address: &GdbAddress, control: &Handle) -> Result<Server, Failure> {
    let server = gdb_server::serve(address.socket(), control.clone())
        .map_err(|e| Failure::host(format!("--gdb {address}: {e}")))?;
    report::notice(&format!("waiting for a debugger: `target remote {}`", server.address()));
    Ok(server)
}

fn gone<T>(result: Result<T, machine::Gone>) -> Result<T, Gone> {
    result.map_err(|machine::Gone| Gone)
}

const FIXED_CPUS: &str = "the machine's CPUs are what they are; start it with --cpus N,max=M\n";
const SILENT: &str =
    "the guest has not answered yet: it does once its ACPI runs; `info cpus` shows it\n";
const FIXED: &str = "the machine's memory is what it is; start it with --memory SIZE,max=SIZE\n";
const ASKED: &str = "asked; `info` says when the guest is asleep, and `wake` lets it go on\n";
const ASLEEP: &str = "the guest is asleep; `wake` lets it go on\n";
const CANNOT_SLEEP: &str = "the guest's kernel has not said that it can suspend itself\n";
const AWAKE: &str = "the guest is not asleep\n";
const BUTTONS: &str = "a PC's guest is woken by its buttons: `sleep` or `powerdown`\n";
const NO_BALLOON: &str =
    "the machine has no balloon; start it with --balloon, or `device add balloon`\n";

impl Control for Handle {
    fn info(&self) -> Result<String, Gone> {
        gone(Handle::info(self)).map(|info| info.to_string())
    }

    fn stats(&self) -> Result<String, Gone> {
        gone(Handle::stats(self)).map(|stats| stats.to_string())
    }

    fn pause(&self) -> Result<(), Gone> {
        gone(Handle::pause(self))
    }

    fn resume(&self) -> Result<(), Gone> {
        gone(Handle::resume(self))
    }

    fn reset(&self) -> Result<(), Gone> {
        gone(Handle::reset(self))
    }

    fn power_button(&self) -> Result<(), Gone> {
        gone(Handle::power_button(self))
    }

    fn sleep_button(&self) -> Result<String, Gone> {
        let answer = match gone(Handle::sleep_button(self))? {
            Sleep::Pressed => "the sleep button was pressed\n",
            Sleep::Asked => ASKED,
            Sleep::Asleep => ASLEEP,
            Sleep::Unable => CANNOT_SLEEP,
        };
        Ok(answer.into())
    }

    fn wake(&self) -> Result<String, Gone> {
        let answer = match gone(Handle::wake(self))? {
            Wake::Woken => "the guest goes on\n",
            Wake::CalledOff => "the guest does not go to sleep\n",
            Wake::Awake => AWAKE,
            Wake::Buttons => BUTTONS,
        };
        Ok(answer.into())
    }

    fn nmi(&self) -> Result<(), Gone> {
        gone(Handle::nmi(self))
    }

    fn quit(&self) -> Result<(), Gone> {
        gone(Handle::quit(self))
    }

    fn set_cpus(&self, count: u32) -> Result<String, Gone> {
        Ok(match gone(Handle::set_cpus(self, count))? {
            CpusAnswer::Fixed => FIXED_CPUS.into(),
            CpusAnswer::Range(most) => format!("cpu: this guest can have 1 to {most} CPUs\n"),
            CpusAnswer::Failed(why) => format!("cpu: {why}\n"),
            CpusAnswer::Answered(info) => info.to_string(),
            CpusAnswer::Silent(info) => format!("{info}{SILENT}"),
        })
    }

    fn cpus_info(&self) -> Result<String, Gone> {
        gone(Handle::cpus_info(self)).map(|info| info.to_string())
    }

    fn set_memory(&self, bytes: u64) -> Result<String, Gone> {
        let Some(info) = gone(Handle::memory_info(self))? else { return Ok(FIXED.into()) };
        if !(info.start..=info.most).contains(&bytes) {
            let (least, most) = (info.start >> 20, info.most >> 20);
            return Ok(format!("memory: this guest can have {least} to {most} MiB\n"));
        }
        gone(Handle::set_memory(self, bytes)).map(|_| "asked\n".into())
    }

    fn memory_info(&self) -> Result<String, Gone> {
        let info = gone(Handle::memory_info(self))?;
        Ok(info.map_or(FIXED.into(), |info| info.to_string()))
    }

    fn balloon(&self, bytes: u64) -> Result<String, Gone> {
        let found = gone(Handle::balloon(self, bytes))?;
        Ok(if found { "asked\n" } else { NO_BALLOON }.into())
    }

    fn balloon_info(&self) -> Result<String, Gone> {
        let info = gone(Handle::balloon_info(self))?;
        Ok(info.map_or(NO_BALLOON.into(), |info| info.to_string()))
    }

    fn screendump(&self, file: &str) -> String {
        screens::dump(self.seat(), file)
    }

    fn send_keys(&self, chord: &str) -> String {
        screens::send_keys(self.seat(), chord)
    }

    fn device_add(&self, kind: &str, option: &str) -> Result<String, Gone> {
        plug::add(self, kind, option)
    }

    fn disc(&self, drive: Place, file: Option<&str>) -> Result<String, Gone> {
        plug::disc(self, drive, file)
    }

    fn device_remove(&self, place: Place) -> Result<String, Gone> {
        plug::remove(self, place)
    }

    fn devices(&self) -> Result<String, Gone> {
        plug::list(self)
    }

    fn resize(&self, columns: u16, rows: u16) -> Result<(), Gone> {
        gone(Handle::resize(self, columns, rows))
    }

    fn activity(&self) -> Result<Activity, Gone> {
        let info = gone(Handle::info(self))?;
        let interrupts = info.vcpus.iter().map(|vcpu| vcpu.exits.interrupts);
        Ok(Activity {
            interrupts: interrupts.fold(0, u64::wrapping_add),
            retired: info.vcpus.iter().filter(|vcpu| vcpu.present).map(|vcpu| vcpu.retired).sum(),
        })
    }
}

/// What the operator called the things that a machine may complain of.
struct Names {
    kernel: String,
    initrd: String,
    memory: String,
    cpu_model: String,
    /// Whose fault a kernel is that cannot be booted.
    status: Status,
}

impl Names {
    fn of(spec: &VmSpec, files: &Files) -> Self {
        Self {
            kernel: files.kernel_name.clone(),
            initrd: files.initrd_name.clone(),
            memory: format!("--memory {}", vm_spec::format_memory(spec.memory)),
            cpu_model: format!("--cpu-model {}", spec.cpu_model.as_deref().unwrap_or("(default)")),
            status: match spec.kernel {
                vm_spec::Kernel::File(_) => Status::BadArguments,
                _ => Status::HostError,
            },
        }
    }

    fn failure(&self, error: &machine::Error) -> Failure {
        use boot::Error as Boot;
        let (name, status) = match error {
            machine::Error::Boot(Boot::InitrdTooLarge { .. } | Boot::InitrdEmpty) => {
                (&*self.initrd, self.status)
            }
            machine::Error::Boot(Boot::Memory { .. } | Boot::TooSmall { .. }) => {
                (&*self.memory, Status::BadArguments)
            }
            machine::Error::Boot(Boot::CommandLineTooLong { .. } | Boot::CommandLineZero) => {
                ("--append", Status::BadArguments)
            }
            machine::Error::DiskBoot(_) => (&*self.kernel, Status::HostError),
            machine::Error::Boot(_) => (&*self.kernel, self.status),
            machine::Error::FirmwareSize(_) | machine::Error::VariablesSize(_) => {
                (&*self.kernel, Status::BadArguments)
            }
            machine::Error::CpuModel(_) => (&*self.cpu_model, Status::BadArguments),
            machine::Error::TooManyVcpus { .. } => ("--cpus", Status::BadArguments),
            _ => ("machine", Status::HostError),
        };
        // A model's refusal names its option itself.
        let line = match error {
            machine::Error::CpuModel(why) => format!("{name}: {why}"),
            _ => format!("{name}: {}", error.line()),
        };
        Failure { status, line }
    }
}
