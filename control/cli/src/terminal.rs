//! The operator's terminal: raw while a guest has it, and as it was on every way out.

use std::{
    io::{self, IsTerminal, Write},
    panic,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::termios::{self, OptionalActions, Termios};

/// The settings to go back to; `None` while the terminal is not raw.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

fn saved() -> MutexGuard<'static, Option<Termios>> {
    SAVED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sets the terminal of standard input raw, so that every key goes to the guest. Does nothing
/// when standard input is no terminal.
pub fn make_raw() -> io::Result<bool> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Ok(false);
    }
    let before = termios::tcgetattr(&stdin)?;
    let mut raw = before.clone();
    raw.make_raw();
    let mut saved = saved();
    termios::tcsetattr(&stdin, OptionalActions::Drain, &raw)?;
    saved.get_or_insert(before);
    Ok(true)
}

/// Goes back to the settings from before [`make_raw`]; does nothing the second time.
pub fn restore() {
    let Some(before) = saved().take() else { return };
    // What the guest left switched on in the terminal itself: colours, a hidden cursor; and
    // its last line is not to be written over.
    let _ = io::stdout().write_all(b"\x1b[0m\x1b[?25h\r\n");
    let _ = io::stdout().flush();
    let _ = termios::tcsetattr(io::stdin(), OptionalActions::Drain, &before);
}

/// Whether the terminal is raw now.
pub fn is_raw() -> bool {
    saved().is_some()
}

/// Makes a panic's message readable, and the terminal usable after it.
pub fn restore_on_panic() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        restore();
        report(info);
    }));
}

/// Rows and columns of the terminal, if there is one with a size.
pub fn size() -> Option<(u16, u16)> {
    let size =
        termios::tcgetwinsize(io::stdout()).or_else(|_| termios::tcgetwinsize(io::stdin())).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}
