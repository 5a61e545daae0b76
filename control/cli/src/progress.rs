//! Showing how far a fetch has come: a bar on a terminal, plain lines elsewhere.

use std::{
    io::{self, IsTerminal, Write},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use crate::terminal;

const REDRAW: Duration = Duration::from_millis(100);

/// Set by a signal: the fetch is to stop.
pub static CANCELLED: AtomicBool = AtomicBool::new(false);

/// Progress on standard error.
#[derive(Debug)]
pub struct Bar {
    on_terminal: bool,
    text: String,
    permille: u16,
    drawn: Option<Instant>,
}

impl Bar {
    pub fn new() -> Self {
        Self {
            on_terminal: io::stderr().is_terminal(),
            text: String::new(),
            permille: 0,
            drawn: None,
        }
    }

    fn draw(&mut self) {
        let columns = terminal::size().map_or(80, |(_, columns)| usize::from(columns));
        let line = format!("\r\x1b[K{}", render(&self.text, self.permille, columns));
        let _ = io::stderr().write_all(line.as_bytes());
        self.drawn = Some(Instant::now());
    }

    fn clear(&mut self) {
        if self.drawn.take().is_some() {
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
    }
}

impl assets::Progress for Bar {
    fn step(&mut self, text: &str) {
        self.text = text.into();
        self.permille = 0;
        if self.on_terminal {
            self.draw();
        } else {
            let _ = writeln!(io::stderr(), "sarang: {text}");
        }
    }

    fn advance(&mut self, permille: u16) {
        let changed = permille > self.permille;
        self.permille = self.permille.max(permille);
        let due = self.drawn.is_none_or(|at| at.elapsed() >= REDRAW);
        if self.on_terminal && changed && due {
            self.draw();
        }
    }

    fn cancelled(&self) -> bool {
        CANCELLED.load(Relaxed)
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.clear();
    }
}

/// One line of at most `columns`: the bar first, so that a long text cannot push it away.
fn render(text: &str, permille: u16, columns: usize) -> String {
    const WIDTH: usize = 20;
    let permille = usize::from(permille.min(1000));
    let full = permille * WIDTH / 1000;
    let bar = format!("[{}{}]", "#".repeat(full), " ".repeat(WIDTH - full));
    let line = format!("{bar} {:3}%  {text}", permille / 10);
    // The last column stays free: a terminal may wrap when it is written.
    line.chars().take(columns.saturating_sub(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars() {
        assert_eq!(render("x", 0, 80), "[                    ]   0%  x");
        assert_eq!(render("x", 500, 80), "[##########          ]  50%  x");
        assert_eq!(render("x", 5000, 80), "[####################] 100%  x");
        assert_eq!(render("a long text", 0, 30).chars().count(), 29);
        assert_eq!(render("x", 0, 0), "");
    }
}
