//! Noticing that a Linux guest's kernel has panicked, where no pvpanic driver tells it.
//!
//! Debian's kernel has that driver as a module, so a panic before the root has loaded it, such
//! as a missing root file system, is only text on the console, after which the kernel stands
//! still or starts over for ever. The text counts where nobody but the kernel can have
//! written it: before the first process runs. Later it does when nothing at all follows its
//! last line, and the CPUs run without taking interrupts, as they do after a panic.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use byte_stream::Output;

use crate::monitor::{Activity, Control};

/// How long a kernel may go on to say why it panics, and how long it is silent after that.
const GRACE: Duration = Duration::from_secs(3);
/// How many instructions a CPU executes at least that waits in a loop for [`GRACE`].
const BUSY: u64 = 1_000_000;
/// No line that matters is longer; the rest of one is not looked at.
const LINE_MAX: usize = 256;

/// Passes output on, and reads along.
pub struct PanicWatch {
    next: Arc<dyn Output>,
    scanner: Mutex<Scanner>,
    changed: Condvar,
}

impl PanicWatch {
    pub fn new(next: Arc<dyn Output>) -> Arc<Self> {
        Arc::new(Self { next, scanner: Mutex::default(), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Scanner> {
        self.scanner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the kernel has panicked, or the machine has ended.
    pub fn wait(&self, control: &dyn Control) {
        loop {
            if !self.suspect() {
                return;
            }
            let Ok(before) = control.activity() else { return };
            thread::sleep(GRACE);
            let Ok(after) = control.activity() else { return };
            let mut scanner = self.lock();
            if scanner.suspicion.is_some() && is_stuck(before, after) {
                return;
            }
            scanner.suspicion = None;
        }
    }

    /// Returns when the console's text has the looks of a panic: with false when it is sure,
    /// and with true when the CPUs have to be looked at.
    fn suspect(&self) -> bool {
        let mut scanner = self.lock();
        loop {
            scanner = match scanner.suspicion {
                None => self.changed.wait(scanner).unwrap_or_else(PoisonError::into_inner),
                Some(since) => {
                    let left = GRACE.saturating_sub(since.elapsed());
                    if left.is_zero() {
                        return scanner.userland;
                    }
                    let waited = self.changed.wait_timeout(scanner, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

/// Whether the CPUs were busy and yet took no interrupt.
fn is_stuck(before: Activity, after: Activity) -> bool {
    let busy = match (before.retired, after.retired) {
        (Some(before), Some(after)) => after.saturating_sub(before) >= BUSY,
        // An engine that does not count leaves it at the interrupts.
        _ => true,
    };
    busy && before.interrupts == after.interrupts
}

impl Output for PanicWatch {
    fn write(&self, bytes: &[u8]) {
        self.next.write(bytes);
        self.look(bytes);
    }

    fn offer(&self, bytes: &[u8]) -> usize {
        let taken = self.next.offer(bytes);
        self.look(bytes.get(..taken).unwrap_or(bytes));
        taken
    }

    fn on_space(&self, callback: Box<dyn Fn() + Send + Sync>) {
        self.next.on_space(callback);
    }
}

impl PanicWatch {
    fn look(&self, bytes: &[u8]) {
        let mut scanner = self.lock();
        let before = scanner.suspicion;
        for byte in bytes {
            scanner.byte(*byte, Instant::now);
        }
        if scanner.suspicion != before {
            self.changed.notify_all();
        }
    }
}

#[derive(Debug, Default)]
struct Scanner {
    line: Vec<u8>,
    /// The first process was started: from here on anybody may write anything.
    userland: bool,
    /// Since when the kernel seems to have panicked.
    suspicion: Option<Instant>,
}

impl Scanner {
    fn byte(&mut self, byte: u8, now: impl Fn() -> Instant) {
        if byte != b'\n' {
            if self.line.len() < LINE_MAX {
                self.line.push(byte);
            }
            // Something follows what seemed to be the last line.
            if self.userland && !byte.is_ascii_whitespace() {
                self.suspicion = None;
            }
            return;
        }
        let has = |words: &str| self.line.windows(words.len()).any(|w| w == words.as_bytes());
        let ends = has("---[ end Kernel panic");
        let panics = !self.userland && has("Kernel panic - not syncing");
        // The first is a line of the kernel's, unless it is quiet; the second of our root's.
        let userland = has(" as init process") || self.line.starts_with(b"Sarang: ");
        self.line.clear();
        if (panics || ends) && self.suspicion.is_none() {
            self.suspicion = Some(now());
        }
        self.userland |= userland;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::tests::Recorder;
    use byte_stream::Null;

    fn suspects(text: &str) -> bool {
        let mut scanner = Scanner::default();
        for byte in text.bytes() {
            scanner.byte(byte, Instant::now);
        }
        scanner.suspicion.is_some()
    }

    const PANIC: &str = "[    1.0] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n";
    const END: &str = "[    1.1] ---[ end Kernel panic - not syncing: VFS ]---\r\n";
    const INIT: &str = "[    1.0] Run /init as init process\r\n";

    #[test]
    fn early_panics_are_seen_whatever_follows() {
        assert!(suspects(PANIC));
        assert!(suspects(&format!("{PANIC}CPU: 0 PID: 1\r\n[    0.0] Linux version\r\n")));
        assert!(!suspects("[    1.0] all is well\r\n"));
        assert!(!suspects("Kernel panic - not syncing, and the line has no end"));
    }

    #[test]
    fn later_only_the_very_last_line_counts() {
        assert!(suspects(&format!("{INIT}{PANIC}{END}")));
        assert!(suspects(&format!("{INIT}{PANIC}{END}\r\n")));
        assert!(!suspects(&format!("{INIT}{PANIC}")), "a log that somebody shows");
        assert!(!suspects(&format!("{INIT}{PANIC}{END}sarang:/root# ")));
        assert!(!suspects(&format!("Sarang: Debian kernel 6.1\r\n{PANIC}")));
    }

    #[test]
    fn a_guest_that_sleeps_or_works_is_not_stuck() {
        let activity = |interrupts, retired| Activity { interrupts, retired };
        assert!(is_stuck(activity(5, Some(0)), activity(5, Some(BUSY))));
        assert!(is_stuck(activity(5, None), activity(5, None)));
        assert!(!is_stuck(activity(5, Some(0)), activity(5, Some(1000))), "it sleeps");
        assert!(!is_stuck(activity(5, Some(0)), activity(6, Some(BUSY))), "it works");
    }

    #[test]
    fn long_lines_take_no_memory() {
        let mut scanner = Scanner::default();
        for _ in 0..100_000 {
            scanner.byte(b'x', Instant::now);
        }
        assert!(scanner.line.capacity() <= 2 * LINE_MAX);
    }

    #[test]
    fn waiting_ends_with_the_panic() {
        let watch = PanicWatch::new(Arc::new(Null));
        let waiter = watch.clone();
        let thread = thread::spawn(move || waiter.wait(&Recorder::default()));
        for piece in PANIC.as_bytes().chunks(7) {
            watch.write(piece);
        }
        thread.join().unwrap();
    }
}
