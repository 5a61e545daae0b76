//! The operator's own terminal as the console: keys go to the guest but for the escape
//! sequence. Input that is no terminal is treated alike, so that a script can do what a
//! person can; its end ends nothing.

use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use byte_stream::Input;

use super::{feeder::Feeder, queue::Queue};
use crate::{
    Failure,
    escape::{Escape, Typed},
    monitor::{self, Answer, Control, Editor, Key},
    terminal,
};

/// Begins to read standard input.
pub fn start(
    input: Arc<dyn Input>,
    queue: Arc<Queue>,
    control: Arc<dyn Control>,
) -> Result<(), Failure> {
    let feeder = Feeder::start(input)?;
    let raw = terminal::make_raw().map_err(|e| {
        Failure::host(format!("terminal: it cannot be set raw ({e}); use --console none or a file"))
    })?;
    super::spawn("keyboard", move || {
        Keyboard { feeder, queue, control, raw, escape: Escape::default(), prompt: None }.read();
    })
}

fn read(from: &mut impl Read, buffer: &mut [u8]) -> Option<usize> {
    loop {
        match from.read(buffer) {
            Ok(0) => return None,
            Ok(n) => return Some(n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

struct Keyboard {
    feeder: Feeder,
    queue: Arc<Queue>,
    control: Arc<dyn Control>,
    /// A person types; otherwise a program writes.
    raw: bool,
    escape: Escape,
    /// The line at the monitor's prompt, while the operator is there.
    prompt: Option<Editor>,
}

impl Keyboard {
    fn read(mut self) {
        let mut buffer = [0; 4096];
        let mut stdin = io::stdin();
        while let Some(n) = read(&mut stdin, &mut buffer) {
            // One byte at a time: what follows an escape sequence may be for the prompt.
            for byte in &buffer[..n] {
                if self.prompt.is_some() {
                    self.at_prompt(*byte);
                } else if let Some(typed) = self.escape.feed(*byte) {
                    self.at_console(typed);
                }
            }
        }
    }

    fn at_console(&mut self, typed: Typed) {
        match typed {
            Typed::Byte(byte) if self.raw => self.feeder.offer(&[byte]),
            Typed::Byte(byte) => self.feeder.send(&[byte]),
            // An error says that the machine has ended, which is what was wanted.
            Typed::Quit => drop(self.control.quit()),
            Typed::Help => {
                self.queue.hold(true);
                show(&format!("\n{}", monitor::KEYS));
                self.queue.hold(false);
            }
            Typed::Monitor => {
                self.queue.hold(true);
                self.prompt = Some(Editor::default());
                show(&format!("\n{}", monitor::PROMPT));
            }
        }
    }

    fn at_prompt(&mut self, byte: u8) {
        let Some(editor) = &mut self.prompt else { return };
        match editor.key(byte) {
            Key::Echo(text) => show(&text),
            Key::Leave => self.leave(),
            Key::Line(line) => match monitor::execute(&line, &*self.control) {
                Answer::Text(text) => show(&format!("\n{text}{}", monitor::PROMPT)),
                Answer::Leave => self.leave(),
            },
        }
    }

    fn leave(&mut self) {
        self.prompt = None;
        show("\n");
        self.queue.hold(false);
    }
}

/// Writes to the raw terminal.
fn show(text: &str) {
    let mut stdout = io::stdout().lock();
    // A terminal that is gone sends SIGHUP; there is nothing to add here.
    let _ = stdout.write_all(text.replace('\n', "\r\n").as_bytes());
    let _ = stdout.flush();
}
