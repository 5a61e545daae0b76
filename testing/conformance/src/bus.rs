//! A machine with one bus that remembers, and nothing else.

use crate::guest::{HANDLER_PORT, VECTOR_PORTS};
use engine::*;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

/// What crossed the seam.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    In(u16, usize),
    Out(u16, Vec<u8>),
    Read(u64, usize),
    Write(u64, Vec<u8>),
    /// A handler of this vector ran.
    Vector(u8),
    Cr8(u8),
    ReadMsr(u32),
    WriteMsr(u32, u64),
}

/// What is pending, with its vector; other threads may raise it.
pub type Line = Arc<Mutex<Option<(Pending, u8)>>>;
type Hook = Box<dyn FnMut(&Event) -> Flow + Send>;

/// Stops the guest at its end (a write to port 0xf4) and at exceptions.
#[derive(Default)]
pub struct Bus {
    pub log: Vec<Event>,
    /// What the next byte of input is; each further one is one more.
    pub input: u8,
    pub line: Line,
    /// MSRs that this machine serves.
    pub msrs: BTreeMap<u32, u64>,
    pub hook: Option<Hook>,
    pub tsc: u64,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus").field("log", &self.log).finish_non_exhaustive()
    }
}

impl Bus {
    pub fn with_hook(hook: impl FnMut(&Event) -> Flow + Send + 'static) -> Self {
        Self { hook: Some(Box::new(hook)), ..Self::default() }
    }

    pub fn raise(&self, what: Pending, vector: u8) {
        *self.line.lock().unwrap() = Some((what, vector));
    }

    /// The log, which begins anew.
    pub fn take(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.log)
    }

    /// Vectors whose handlers ran, in order.
    pub fn vectors(&self) -> Vec<u8> {
        let vector = |e: &Event| if let Event::Vector(v) = e { Some(*v) } else { None };
        self.log.iter().filter_map(vector).collect()
    }

    fn saw(&mut self, event: Event) -> Flow {
        let ends = match &event {
            Event::Out(port, _) => *port == 0xf4,
            Event::Vector(vector) => *vector < 0x20 && *vector != 2,
            _ => false,
        };
        let flow = self.hook.as_mut().map_or(Flow::Continue, |hook| hook(&event));
        self.log.push(event);
        if ends { Flow::Stop } else { flow }
    }

    fn fill(&mut self, data: &mut [u8]) {
        for byte in data {
            *byte = self.input;
            self.input = self.input.wrapping_add(1);
        }
    }
}

impl VcpuHost for Bus {
    fn pio_in(&mut self, port: u16, size: usize, data: &mut [u8]) -> Flow {
        let mut flow = Flow::Continue;
        for operand in data.chunks_mut(size) {
            self.fill(operand);
            if self.saw(Event::In(port, size)) == Flow::Stop {
                flow = Flow::Stop;
            }
        }
        flow
    }

    fn pio_out(&mut self, port: u16, size: usize, data: &[u8]) -> Flow {
        let mut flow = Flow::Continue;
        for operand in data.chunks(size) {
            let event = if VECTOR_PORTS.contains(&port) {
                Event::Vector((port - HANDLER_PORT) as u8)
            } else {
                Event::Out(port, operand.to_vec())
            };
            if self.saw(event) == Flow::Stop {
                flow = Flow::Stop;
            }
        }
        flow
    }

    fn mmio_read(&mut self, gpa: u64, data: &mut [u8]) -> Flow {
        self.fill(data);
        self.saw(Event::Read(gpa, data.len()))
    }

    fn mmio_write(&mut self, gpa: u64, data: &[u8]) -> Flow {
        self.saw(Event::Write(gpa, data.to_vec()))
    }

    fn rdmsr(&mut self, index: u32, value: &mut u64) -> Result<Flow, GeneralProtection> {
        *value = *self.msrs.get(&index).ok_or(GeneralProtection)?;
        Ok(self.saw(Event::ReadMsr(index)))
    }

    fn wrmsr(&mut self, index: u32, value: u64) -> Result<Flow, GeneralProtection> {
        *self.msrs.get_mut(&index).ok_or(GeneralProtection)? = value;
        Ok(self.saw(Event::WriteMsr(index, value)))
    }

    fn pending(&self) -> Option<Pending> {
        self.line.lock().unwrap().map(|(what, _)| what)
    }

    fn ack(&mut self, what: Pending) -> Option<u8> {
        let taken = self.line.lock().unwrap().take();
        taken.filter(|(pending, _)| *pending == what).map(|(_, vector)| vector)
    }

    fn set_cr8(&mut self, value: u8) -> Flow {
        self.saw(Event::Cr8(value))
    }

    fn tsc(&mut self) -> u64 {
        self.tsc += 1000;
        self.tsc
    }
}
