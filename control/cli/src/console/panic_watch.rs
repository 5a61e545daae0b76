//! Noticing that a Linux guest's kernel has panicked, where no pvpanic driver tells it.
//!
//! Debian's kernel has that driver as a module, so a panic before the root has loaded it, such
//! as a missing root file system, is only text on the console, after which the kernel stands
//! still or starts over for ever. The text counts where nobody but the kernel can have
//! written it: before the first process runs, or when nothing at all follows its last line.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use byte_stream::Output;

/// How long a kernel may go on to say why it panics, and how long it is silent after that.
const GRACE: Duration = Duration::from_secs(3);
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

    /// Returns when the kernel has panicked.
    pub fn wait(&self) {
        let mut scanner = self.lock();
        loop {
            scanner = match scanner.suspicion {
                None => self.changed.wait(scanner).unwrap_or_else(PoisonError::into_inner),
                Some(since) => {
                    let left = GRACE.saturating_sub(since.elapsed());
                    if left.is_zero() {
                        return;
                    }
                    let waited = self.changed.wait_timeout(scanner, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl Output for PanicWatch {
    fn write(&self, bytes: &[u8]) {
        self.next.write(bytes);
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
        let thread = std::thread::spawn(move || waiter.wait());
        for piece in PANIC.as_bytes().chunks(7) {
            watch.write(piece);
        }
        thread.join().unwrap();
    }
}
