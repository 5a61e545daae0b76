//! A record of what crosses the seam, for people: one line an event.

use engine::Trace as Event;
use std::{
    fmt,
    io::Write,
    sync::{Arc, Mutex, PoisonError},
};
use vm_spec::{Trace, TraceKind};

/// Where traces go, and which.
#[derive(Clone)]
pub struct Tracer(Option<Arc<Inner>>);

struct Inner {
    kinds: Trace,
    to: Mutex<Box<dyn Write + Send>>,
}

impl Tracer {
    pub fn none() -> Self {
        Self(None)
    }

    /// Writes every event of `kinds` to `to`, which should buffer.
    pub fn new(kinds: Trace, to: Box<dyn Write + Send>) -> Self {
        Self(kinds.any().then(|| Arc::new(Inner { kinds, to: Mutex::new(to) })))
    }

    #[inline]
    pub(crate) fn wants(&self, kind: TraceKind) -> bool {
        self.0.as_ref().is_some_and(|inner| inner.kinds.wants(kind))
    }

    /// Nothing is done about a sink that fails: a trace must not end the guest.
    pub(crate) fn line(&self, vcpu: u32, text: fmt::Arguments<'_>) {
        if let Some(inner) = &self.0 {
            let mut to = inner.to.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = writeln!(to, "vcpu{vcpu} {text}");
        }
    }

    pub(crate) fn event(&self, vcpu: u32, event: Event) {
        match event {
            Event::Exception { exception, rip } if self.wants(TraceKind::Exceptions) => {
                let error = exception.error.map_or(String::new(), |e| format!(" error {e:#x}"));
                let (vector, payload) = (exception.vector, exception.payload);
                let text =
                    format_args!("exception {vector} at {rip:#x}{error} payload {payload:#x}");
                self.line(vcpu, text);
            }
            Event::Interrupt { vector, rip, software } if self.wants(TraceKind::Interrupts) => {
                let what = if software { "int" } else { "interrupt" };
                self.line(vcpu, format_args!("{what} {vector:#x} at {rip:#x}"));
            }
            Event::Nmi { rip } if self.wants(TraceKind::Interrupts) => {
                self.line(vcpu, format_args!("nmi at {rip:#x}"));
            }
            _ => {}
        }
    }

    pub(crate) fn flush(&self) {
        if let Some(inner) = &self.0 {
            let mut to = inner.to.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = to.flush();
        }
    }
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tracer({:?})", self.0.as_ref().map(|inner| &inner.kinds))
    }
}
