//! A guest that runs: its console, its end.

use crate::{Error, Options, program};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What the shell says before its first prompt.
const BANNER: &str = "built-in shell (ash)";

/// How long its prompt may take to come after that.
const PROMPT: Duration = Duration::from_secs(10);

/// One `sarang run` with its console on pipes.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    input: Option<ChildStdin>,
    output: Receiver<Vec<u8>>,
    stderr: Arc<Mutex<String>>,
    console: String,
    /// Up to here the console's text was taken by [`Guest::expect`].
    taken: usize,
    commands: u32,
}

/// How a guest ended.
#[derive(Debug)]
pub struct Finished {
    /// The command's exit status; `None` when a signal ended it.
    pub status: Option<i32>,
    /// Everything that the guest's console printed.
    pub console: String,
    /// What the command itself said.
    pub stderr: String,
}

impl Guest {
    /// Starts the guest; does not wait for anything.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn boot(options: &Options) -> Result<Self, Error> {
        let fail = |e: std::io::Error| Error::new(format!("starting sarang: {e}"), "", "");
        let mut child = Command::new(program())
            .args(options.command_line())
            .envs(options.environment().iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(fail)?;
        let input = child.stdin.take();
        let (sender, output) = channel();
        if let Some(mut pipe) = child.stdout.take() {
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                    if sender.send(buffer[..count].to_vec()).is_err() {
                        break;
                    }
                }
            });
        }
        let stderr = Arc::new(Mutex::new(String::new()));
        if let Some(mut pipe) = child.stderr.take() {
            let stderr = Arc::clone(&stderr);
            thread::spawn(move || {
                let mut buffer = [0; 1024];
                while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                    let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
                    stderr.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
                }
            });
        }
        Ok(Self { child, input, output, stderr, console: String::new(), taken: 0, commands: 0 })
    }

    /// Waits until the console has printed `pattern` after what was expected before; the text
    /// up to and with it.
    ///
    /// # Errors
    /// When the pattern does not come in time, or the guest ends without it.
    pub fn expect(&mut self, pattern: &str, timeout: Duration) -> Result<String, Error> {
        let text = self.comes(pattern, timeout)?;
        text.ok_or_else(|| self.error(format!("no `{pattern}` within {timeout:?}")))
    }

    /// The same; none when it does not come in time.
    fn comes(&mut self, pattern: &str, timeout: Duration) -> Result<Option<String>, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            let rest = self.console.get(self.taken..).unwrap_or_default();
            if let Some(at) = rest.find(pattern) {
                let text = rest[..at + pattern.len()].to_owned();
                self.taken += text.len();
                return Ok(Some(text));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.console.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.error(format!("the console ended without `{pattern}`")));
                }
            }
        }
    }

    /// Types bytes at the guest's console.
    ///
    /// # Errors
    /// When the program does not take them.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let Some(input) = &mut self.input else {
            return Err(self.error("the console's input is closed".to_owned()));
        };
        let sent = input.write_all(bytes).and_then(|()| input.flush());
        sent.map_err(|e| self.error(format!("typing at the console: {e}")))
    }

    /// Types a line.
    ///
    /// # Errors
    /// When the program does not take it.
    pub fn send(&mut self, line: &str) -> Result<(), Error> {
        self.send_bytes(format!("{line}\n").as_bytes())
    }

    /// Closes the console's input, as a script's end does.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Waits for the shell of the default guest, and keeps the kernel's messages off its
    /// console from then on.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn shell(&mut self) -> Result<(), Error> {
        let limit = Instant::now() + crate::BOOT;
        while self.comes("\nsarang:", PROMPT)?.is_none() {
            if Instant::now() > limit {
                return Err(self.error("no prompt of a shell".to_owned()));
            }
            // The kernel may have said something in the middle of the prompt: then there is another.
            if self.console.get(self.taken..).is_some_and(|rest| rest.contains(BANNER)) {
                self.send("")?;
            }
        }
        self.comes("# ", PROMPT)?;
        self.quiet()
    }

    /// Keeps the kernel's messages off the console of a shell that waits for a command. Until it
    /// is done one may be in the middle of what this command prints, too; then it is tried again.
    ///
    /// # Errors
    /// When it does not work in time.
    pub fn quiet(&mut self) -> Result<(), Error> {
        let mut tries = 1..crate::COMMAND.as_secs() / PROMPT.as_secs();
        loop {
            match self.command("dmesg -n 1", PROMPT) {
                Err(_) if tries.next().is_some() => {}
                last => return last.map(drop),
            }
        }
    }

    /// Runs a command in the guest's shell; its output, and its exit status.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn command(&mut self, line: &str, timeout: Duration) -> Result<(String, i32), Error> {
        self.commands += 1;
        let number = self.commands;
        // The line is echoed, and wrapped at the terminal's width; with quotes inside them the
        // marks do not show in the echo, only in the output.
        self.send(&format!("echo be''gin-{number}; {line}; echo en''d-{number} $?"))?;
        self.expect(&format!("begin-{number}"), timeout)?;
        self.expect("\n", timeout)?;
        let end = format!("end-{number} ");
        let output = self.expect(&end, timeout)?;
        let status = self.expect("\n", timeout)?;
        self.expect("# ", timeout)?;
        let output = output.strip_suffix(&end).unwrap_or(&output).replace('\r', "");
        let status = status.trim().parse::<i32>();
        let status = status.map_err(|e| self.error(format!("`{line}` ends with: {e}")))?;
        Ok((output, status))
    }

    /// Runs a command that must succeed; what it prints, without white space around it.
    ///
    /// # Errors
    /// When it does not end in time, or fails.
    pub fn says(&mut self, line: &str) -> Result<String, Error> {
        match self.command(line, crate::COMMAND)? {
            (text, 0) => Ok(text.trim().to_owned()),
            (text, code) => Err(self.error(format!("`{line}` ends with {code}: {text}"))),
        }
    }

    /// What the monitor prompt answers to a line.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub fn monitor(&mut self, line: &str) -> Result<String, Error> {
        self.send_bytes(b"\x01c")?;
        self.expect("(sarang) ", crate::COMMAND)?;
        self.send_bytes(format!("{line}\r").as_bytes())?;
        self.expect("\n", crate::COMMAND)?;
        let answer = self.expect("(sarang) ", crate::COMMAND)?;
        self.send_bytes(b"\x01c")?;
        Ok(answer)
    }

    /// Has the shell power off, and waits for the end.
    ///
    /// # Errors
    /// When that does not come in time, or is another one.
    pub fn power_off(mut self) -> Result<(), Error> {
        self.send("poweroff")?;
        let end = self.finish(crate::COMMAND)?;
        match end.status {
            Some(crate::status::POWERED_OFF) => Ok(()),
            other => {
                let what = format!("it was to power off, and ends with {other:?}");
                Err(Error::new(what, &end.console, &end.stderr))
            }
        }
    }

    /// Sends the program a signal, by its name for `kill`: `TERM`.
    ///
    /// # Errors
    /// When that fails.
    pub fn signal(&mut self, name: &str) -> Result<(), Error> {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        match sent {
            Ok(status) if status.success() => Ok(()),
            other => Err(self.error(format!("kill -s {name}: {other:?}"))),
        }
    }

    /// Waits for the end of the program.
    ///
    /// # Errors
    /// When it does not end in time, or if it panicked, whatever its exit status.
    pub fn finish(mut self, timeout: Duration) -> Result<Finished, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.console.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.error(format!("it does not end within {timeout:?}")));
                }
            }
        }
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(10)),
                Ok(None) => return Err(self.error("it closed its console and stays".to_owned())),
                Err(e) => return Err(self.error(format!("waiting for its end: {e}"))),
            }
        };
        let stderr = self.said();
        if stderr.contains("panicked at") || status.core_dumped() {
            return Err(self.error(format!("the monitor itself failed: {status}")));
        }
        let console = std::mem::take(&mut self.console);
        Ok(Finished { status: status.code(), console, stderr })
    }

    /// The program's process ID.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// KiB of guest RAM that the host holds: the shared memory of the process.
    ///
    /// # Panics
    /// If the process is gone.
    #[must_use]
    pub fn held_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process()));
        let held = status.ok().and_then(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("RssShmem:"))?;
            line.split_whitespace().next()?.parse().ok()
        });
        held.unwrap_or_else(|| panic!("the process is gone: {}", self.said()))
    }

    /// What the program itself has said on standard error.
    pub fn said(&self) -> String {
        self.stderr.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn error(&self, what: String) -> Error {
        Error::new(what, &self.console, &self.said())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
