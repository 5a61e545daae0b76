//! Signals become calls on a thread of their own, where anything may be done.

use std::{io, sync::atomic::Ordering::Relaxed, thread};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH},
    iterator::Signals,
};

use crate::{Failure, progress};

/// Calls `on_signal` for each signal that asks this process to end, from now on, and says
/// whether the operator's terminal is gone, so that no other signal will come from there.
///
/// With a raw terminal, Ctrl-C is a byte for the guest and no signal.
pub fn listen(on_signal: impl FnMut(bool) + Send + 'static) -> Result<(), Failure> {
    start(on_signal).map_err(|e| {
        Failure::host(format!("signals: {e}; lower the load of this host and try again"))
    })
}

fn start(mut on_signal: impl FnMut(bool) + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGHUP, SIGINT, SIGQUIT])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            on_signal(signal == SIGHUP);
        }
    })?;
    Ok(())
}

/// Calls `on_resize` whenever the terminal has another size.
pub fn on_resize(mut on_resize: impl FnMut() + Send + 'static) -> Result<(), Failure> {
    let start = || -> io::Result<()> {
        let mut signals = Signals::new([SIGWINCH])?;
        thread::Builder::new().name("terminal size".into()).spawn(move || {
            signals.forever().for_each(|_| on_resize());
        })?;
        Ok(())
    };
    start().map_err(|e| {
        Failure::host(format!("signals: {e}; lower the load of this host and try again"))
    })
}

/// While guests are fetched, these signals stop the fetch.
pub fn cancel_on_interrupt() -> Result<(), Failure> {
    listen(|_| progress::CANCELLED.store(true, Relaxed))
}
