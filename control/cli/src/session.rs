//! One run of a guest, from its options to its exit status.

use std::{
    io::{self, BufWriter, IsTerminal, Write},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use vm_spec::{ConsoleDevice, Trace, VmSpec};

use crate::{
    Failure,
    args::RunOptions,
    console::{self, Console, PanicWatch},
    disks,
    engines::{self, Choice},
    guest::{self, Files},
    monitor::Control,
    progress::CANCELLED,
    report, signals,
    status::Status,
    terminal,
    vm::{Ended, Running},
};

/// How long a guest may take to power down when nobody is left to ask it again.
const HANG_UP: Duration = Duration::from_secs(30);

/// Runs the guest that the options describe until it ends.
pub fn run(options: &RunOptions) -> Result<Status, Failure> {
    let spec = options.to_spec().map_err(|e| Failure::usage(e.to_string()))?;
    let operator = Arc::new(Operator::default());
    let hears = operator.clone();
    signals::listen(move |hung_up| hears.signal(hung_up))?;

    // Before anything is fetched, because a refusal needs no guest.
    let choice = choose(options, &spec, matches!(spec.kernel, vm_spec::Kernel::BuiltIn(_)))?;
    let files = guest::load(options, &spec)?;
    if let Some(notice) = &choice.notice {
        report::notice(notice);
    }
    let option = match spec.console_device {
        ConsoleDevice::Serial => "--console ",
        ConsoleDevice::Virtio => "--console virtio:",
    };
    let mut console = Console::open(option, &spec.console)?;
    announce(&spec, &files, &choice);
    let watch = PanicWatch::new(console.output());
    let trace = trace(&spec.trace)?;
    let running = Running::build(&spec, choice.engine, files, watch.clone(), trace)?;
    let control = running.control();
    console.start(running.input(), control.clone())?;
    if spec.console == vm_spec::Console::Stdio {
        follow_size(&control)?;
    }
    if !operator.take_charge_of(control.clone()) {
        return Ok(Status::Quit);
    }

    let deadline = spec.timeout().and_then(|time| Instant::now().checked_add(time));
    let panicked = end_at_panic(watch, control)?;
    running.start();
    let ended = match running.wait(deadline) {
        Some(Ended::Quit) if panicked.load(Relaxed) => Some(Ended::GuestPanicked),
        other => other,
    };
    console.drain();
    terminal::restore();
    disks::close_all()?;
    let status = explain(ended, &spec);
    if options.stats
        && let Some(table) = running.final_stats()
    {
        report::lines(&table);
    }
    Ok(status)
}

/// Tells the console of the terminal's size, now and when it changes.
fn follow_size(control: &Arc<dyn Control>) -> Result<(), Failure> {
    let control = control.clone();
    let tell = move || {
        if let Some((rows, columns)) = terminal::size() {
            // A machine that has ended has no use for it.
            let _ = control.resize(columns, rows);
        }
    };
    tell();
    signals::on_resize(tell)
}

/// Ends the machine when its kernel's last words are that it panicked; tells if so.
fn end_at_panic(
    watch: Arc<PanicWatch>,
    control: Arc<dyn Control>,
) -> Result<Arc<AtomicBool>, Failure> {
    let panicked = Arc::new(AtomicBool::new(false));
    let told = panicked.clone();
    console::spawn("panic watch", move || {
        watch.wait(&*control);
        told.store(true, Relaxed);
        // Gone is what it was to become.
        let _ = control.quit();
    })?;
    Ok(panicked)
}

fn choose(options: &RunOptions, spec: &VmSpec, built_in: bool) -> Result<Choice, Failure> {
    let forced = options.force_kvm || engines::forced_by_environment();
    engines::choose(spec.engine_of_guest(), engine_kvm::probe(), forced, built_in)
}

/// For a person, what is about to happen and how to get out of it.
fn announce(spec: &VmSpec, files: &Files, choice: &Choice) {
    if !io::stderr().is_terminal() {
        return;
    }
    let keys = match spec.console {
        vm_spec::Console::Stdio if io::stdin().is_terminal() => " (Ctrl-A x quits, Ctrl-A h helps)",
        _ => "",
    };
    report::notice(&format!("booting {} with engine {}{keys}", files.title, choice.engine.name()));
}

/// What the end of the machine means for whoever started it.
fn explain(ended: Option<Ended>, spec: &VmSpec) -> Status {
    match ended {
        Some(Ended::PoweredOff) => Status::PoweredOff,
        Some(Ended::Quit) => Status::Quit,
        Some(Ended::GuestPanicked) => {
            report::failure("guest: its kernel panicked; what it said is on its console");
            Status::GuestPanic
        }
        Some(Ended::DebugExit(0)) => Status::PoweredOff,
        Some(Ended::DebugExit(code)) => {
            report::failure(&format!("guest: it reported failure {code} at its debug-exit port"));
            Status::GuestError
        }
        Some(Ended::TripleFault(state)) => {
            report::failure("guest: a triple fault ended it; the state of its CPU follows");
            report::lines(&state);
            Status::GuestError
        }
        Some(Ended::Failed(why)) => {
            report::failure(&format!("machine: {why}; try another engine with --engine"));
            Status::HostError
        }
        None => {
            let seconds = spec.timeout().unwrap_or_default().as_secs_f64();
            report::failure(&format!(
                "--timeout {seconds}s: the guest was still running; give it more time, or none"
            ));
            Status::TimedOut
        }
    }
}

/// Where traced events go; `None` if none are asked for.
fn trace(wanted: &Trace) -> Result<Option<Box<dyn Write + Send>>, Failure> {
    if !wanted.any() {
        return Ok(None);
    }
    let Some(path) = &wanted.file else { return Ok(Some(Box::new(TraceLines))) };
    let file = std::fs::File::create(path).map_err(|e| {
        Failure::host(format!(
            "--trace :{}: {}; give the path of a file that can be written",
            path.display(),
            report::os_reason(&e)
        ))
    })?;
    Ok(Some(Box::new(BufWriter::with_capacity(1 << 16, file))))
}

/// Standard error, whose lines are to stay lines on a raw terminal.
struct TraceLines;

impl Write for TraceLines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if terminal::is_raw() {
            let text = String::from_utf8_lossy(bytes).replace('\n', "\r\n");
            io::stderr().write_all(text.as_bytes())?;
        } else {
            io::stderr().write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// What signals are for: a fetch is stopped, a guest is asked to power down, then ended.
#[derive(Default)]
struct Operator {
    machine: Mutex<Option<Arc<dyn Control>>>,
    asked: AtomicBool,
}

impl Operator {
    fn signal(&self, hung_up: bool) {
        CANCELLED.store(true, Relaxed);
        let machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(machine) = &*machine else { return };
        // A machine that has ended needs no more asking.
        if self.asked.swap(true, Relaxed) {
            let _ = machine.quit();
            return;
        }
        report::notice("asking the guest to power down; a second signal ends it at once");
        // A paused guest could not answer.
        let _ = machine.resume();
        let _ = machine.power_button();
        if hung_up {
            let machine = machine.clone();
            // Without the thread the machine ends when the guest does, as after SIGTERM.
            let _ = console::spawn("hang-up", move || {
                thread::sleep(HANG_UP);
                let _ = machine.quit();
            });
        }
    }

    /// From now on signals go to the machine; false if one has come before.
    fn take_charge_of(&self, machine: Arc<dyn Control>) -> bool {
        let mut place = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        *place = Some(machine);
        !CANCELLED.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::tests::Recorder;

    #[test]
    fn the_first_signal_asks_and_the_second_quits() {
        let operator = Operator::default();
        let machine = Arc::new(Recorder::default());
        assert!(operator.take_charge_of(machine.clone()));
        operator.signal(false);
        assert_eq!(*machine.0.lock().unwrap(), ["resume", "power button"]);
        operator.signal(false);
        assert_eq!(machine.0.lock().unwrap().len(), 2, "then `quit`, which it records as gone");
        CANCELLED.store(false, Relaxed);
    }

    #[test]
    fn ends_have_their_statuses() {
        let spec = VmSpec { timeout_ms: Some(1500), ..VmSpec::default() };
        for (ended, status) in [
            (Some(Ended::PoweredOff), Status::PoweredOff),
            (Some(Ended::Quit), Status::Quit),
            (Some(Ended::GuestPanicked), Status::GuestPanic),
            (Some(Ended::DebugExit(0)), Status::PoweredOff),
            (Some(Ended::DebugExit(3)), Status::GuestError),
            (Some(Ended::TripleFault("rip 0".into())), Status::GuestError),
            (Some(Ended::Failed("engine: gone".into())), Status::HostError),
            (None, Status::TimedOut),
        ] {
            assert_eq!(explain(ended, &spec), status);
        }
    }
}
