//! One run of one contender: its console's lines with the host's time of each.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// A contender that runs, with its output as it comes.
#[derive(Debug)]
pub struct Session {
    child: Child,
    started: Instant,
    deadline: Instant,
    chunks: Receiver<(Instant, Vec<u8>)>,
    text: String,
    /// The length of `text` after each chunk, and when that chunk came.
    arrivals: Vec<(usize, Instant)>,
    ended: bool,
}

impl Session {
    /// Starts a command in a process group of its own, with its output captured. Its standard
    /// input stays open until the session ends, and silent but for what is sent.
    pub fn start(command: &mut Command, timeout: Duration) -> Result<Self, String> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        command.process_group(0);
        let name = command.get_program().to_string_lossy().into_owned();
        let started = Instant::now();
        let mut child = command.spawn().map_err(|e| format!("{name}: {e}"))?;
        let mut stdout = child.stdout.take().ok_or("no output pipe")?;
        let (sender, chunks) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                if sender.send((Instant::now(), buffer[..count].to_vec())).is_err() {
                    break;
                }
            }
        });
        let deadline = started + timeout;
        Ok(Self {
            child,
            started,
            deadline,
            chunks,
            text: String::new(),
            arrivals: Vec::new(),
            ended: false,
        })
    }

    /// Types these bytes.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        let input = self.child.stdin.as_mut().ok_or("no input pipe")?;
        input.write_all(bytes).and_then(|()| input.flush()).map_err(|e| format!("input: {e}"))
    }

    /// The process that was started.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// When it was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Everything said so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Waits until the output holds `pattern` after position `from`; the time at which the
    /// bytes that complete it arrived, and the position after it.
    pub fn wait_for(&mut self, pattern: &str, from: usize) -> Result<(Instant, usize), String> {
        loop {
            let start = from.min(self.text.len());
            if let Some(at) = self.text.get(start..).and_then(|t| t.find(pattern)) {
                let end = start + at + pattern.len();
                return Ok((self.arrival(end), end));
            }
            self.more().map_err(|why| format!("{why} before `{pattern}` came"))?;
        }
    }

    /// When the text up to `end` was complete.
    fn arrival(&self, end: usize) -> Instant {
        let chunk = self.arrivals.iter().find(|(length, _)| *length >= end);
        chunk.map_or(self.started, |(_, time)| *time)
    }

    /// Waits for the end; the exit status, and when the output ended.
    pub fn finish(mut self) -> Result<(String, Option<i32>), String> {
        while !self.ended {
            if let Err(why) = self.more()
                && !self.ended
            {
                return Err(why);
            }
        }
        loop {
            if let Some(status) = self.child.try_wait().map_err(|e| e.to_string())? {
                return Ok((std::mem::take(&mut self.text), status.code()));
            }
            if Instant::now() > self.deadline {
                return Err("it closed its output and did not end".to_owned());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn more(&mut self) -> Result<(), String> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match self.chunks.recv_timeout(left) {
            Ok((time, bytes)) => {
                self.text.push_str(&String::from_utf8_lossy(&bytes));
                self.arrivals.push((self.text.len(), time));
                Ok(())
            }
            Err(RecvTimeoutError::Timeout) => Err("it took too long".to_owned()),
            Err(RecvTimeoutError::Disconnected) => {
                self.ended = true;
                Err("its output ended".to_owned())
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            // The whole group: User-Mode Linux has helper processes.
            let group = format!("-{}", self.child.id());
            let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Session {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Session::start(&mut command, Duration::from_secs(20)).unwrap()
    }

    #[test]
    fn patterns_come_in_order() {
        let mut session = shell("echo one; echo two; exit 3");
        let (_, at) = session.wait_for("one", 0).unwrap();
        let (_, end) = session.wait_for("two", at).unwrap();
        assert!(end > at);
        assert_eq!(session.finish().unwrap(), ("one\ntwo\n".to_owned(), Some(3)));
    }

    #[test]
    fn what_is_sent_is_its_input() {
        let mut session = shell("read line; echo \"got $line\"");
        session.send(b"this\n").unwrap();
        session.wait_for("got this", 0).unwrap();
    }

    #[test]
    fn times_belong_to_their_bytes() {
        let mut session = shell("echo one; echo two; sleep 0.2; echo three");
        session.wait_for("three", 0).unwrap();
        let (two, _) = session.wait_for("two", 0).unwrap();
        let (three, _) = session.wait_for("three", 0).unwrap();
        assert!(two > session.started() && three > two);
    }

    #[test]
    fn an_end_is_no_hang() {
        let mut session = shell("echo one");
        assert!(session.wait_for("two", 0).unwrap_err().contains("ended"));
    }
}
