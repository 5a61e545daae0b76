//! Running Debian's package client: bounded output, and a way to stop it.

use std::{
    io::{self, BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use crate::Progress;

/// What one program may write: `apt-cache pkgnames` says about 2 MB.
const OUTPUT_MAX: u64 = 64 << 20;

/// How a program ended, and what it said.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Why a program was not run to its end.
#[derive(Debug)]
pub enum Stopped {
    /// It could not be started.
    Start(io::Error),
    /// The operator asked to stop; the program was killed.
    Cancelled,
}

/// Runs a program to its end. Each line of its standard output goes to `line` first, and is
/// kept when that answers so.
pub fn run(
    command: &mut Command,
    progress: &mut dyn Progress,
    mut line: impl FnMut(&str, &mut dyn Progress) -> bool,
) -> Result<Finished, Stopped> {
    // In a group of its own: a Ctrl-C at the terminal reaches us alone, and we end it.
    command.env("LC_ALL", "C").stdin(Stdio::null()).process_group(0);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = Reaped(child.map_err(Stopped::Start)?);
    let (sender, lines) = mpsc::channel();
    if let Some(pipe) = child.0.stdout.take() {
        thread::spawn(move || {
            for line in BufReader::new(pipe.take(OUTPUT_MAX)).split(b'\n') {
                let Ok(line) = line else { return };
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
    }
    let errors = child.0.stderr.take().map(|pipe| {
        thread::spawn(move || {
            let mut text = Vec::new();
            let _ = pipe.take(OUTPUT_MAX).read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        })
    });

    let mut stdout = String::new();
    loop {
        if progress.cancelled() {
            return Err(Stopped::Cancelled);
        }
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(text) => {
                if line(&text, progress) {
                    stdout.push_str(&text);
                    stdout.push('\n');
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.0.wait().map_err(Stopped::Start)?;
    let stderr = errors.and_then(|thread| thread.join().ok()).unwrap_or_default();
    Ok(Finished { status, stdout, stderr })
}

/// A child that does not outlive the interest in it.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Silent;

    #[test]
    fn output_and_status() {
        let mut seen = Vec::new();
        let finished = run(
            Command::new("sh").args(["-c", "echo one; echo two; echo bad >&2; exit 3"]),
            &mut Silent,
            |line, _| {
                seen.push(line.to_string());
                line == "two"
            },
        )
        .unwrap();
        assert_eq!(seen, ["one", "two"]);
        assert_eq!(finished.stdout, "two\n");
        assert_eq!(finished.stderr, "bad\n");
        assert_eq!(finished.status.code(), Some(3));
    }

    #[test]
    fn stops_when_asked() {
        struct Stop;
        impl Progress for Stop {
            fn step(&mut self, _: &str) {}
            fn advance(&mut self, _: u16) {}
            fn cancelled(&self) -> bool {
                true
            }
        }
        let stopped = run(Command::new("sleep").arg("1000"), &mut Stop, |_, _| true);
        assert!(matches!(stopped, Err(Stopped::Cancelled)));
    }

    #[test]
    fn a_missing_program_is_told() {
        let stopped = run(&mut Command::new("/nonexistent/apt-get"), &mut Silent, |_, _| true);
        assert!(matches!(stopped, Err(Stopped::Start(e)) if e.kind() == io::ErrorKind::NotFound));
    }
}
