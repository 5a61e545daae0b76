//! What crosses the seam: written down for one vCPU, and given to the other.

use super::board::Board;
use engine::{Flow, GeneralProtection, Pending, Trace, VcpuHost};
use guest_mem::GuestMem;
use std::sync::Arc;

/// What a vCPU asked or told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    In { port: u16, size: usize, len: usize },
    Out { port: u16, size: usize, data: Vec<u8> },
    MmioRead { gpa: u64, len: usize },
    MmioWrite { gpa: u64, data: Vec<u8> },
    Rdmsr { index: u32 },
    Wrmsr { index: u32, value: u64 },
    Ack(Pending),
    Cr8,
    SetCr8(u8),
    Tsc,
    SetTscOffset(u64),
    Random,
    Trace(Trace),
}

/// What it was answered. `None`: an MSR that does not exist, an interrupt that is gone.
#[derive(Clone, Debug)]
pub struct Answer {
    value: Option<u64>,
    data: Vec<u8>,
    flow: Flow,
}

impl Answer {
    fn value(value: u64) -> Self {
        Self { value: Some(value), data: Vec::new(), flow: Flow::Continue }
    }

    fn flow(flow: Flow) -> Self {
        Self { flow, ..Self::value(0) }
    }

    fn data(data: &[u8], flow: Flow) -> Self {
        Self { value: None, data: data.to_vec(), flow }
    }

    fn optional(value: Option<u64>, flow: Flow) -> Self {
        Self { value, data: Vec::new(), flow }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    call: Call,
    answer: Answer,
    /// What was pending afterwards.
    pending: Option<Pending>,
    /// Memory that the board wrote.
    wrote: Vec<(u64, Vec<u8>)>,
}

/// Everything since the last [`Recorder::begin`].
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// What was pending before.
    pending: Option<Pending>,
    entries: Vec<Entry>,
}

/// Between the vCPU that leads and its board.
#[derive(Debug)]
pub struct Recorder {
    pub board: Board,
    memory: Arc<GuestMem>,
    /// Where the board writes the guest's time.
    clock: Option<(u64, usize)>,
    pub log: Log,
}

impl Recorder {
    pub fn new(board: Board, memory: Arc<GuestMem>) -> Self {
        Self { board, memory, clock: None, log: Log::default() }
    }

    /// A new piece begins.
    pub fn begin(&mut self) {
        self.log = Log { pending: self.board.pending(), entries: Vec::new() };
    }

    /// The piece is run. What a vCPU asks at each end of a run is not the guest's reading.
    pub fn end(&mut self) {
        if self.log.entries.last().is_some_and(|last| last.call == Call::Tsc) {
            self.board.unread();
        }
    }

    fn note(&mut self, call: Call, answer: Answer) {
        let wrote = self.wrote(&call);
        let pending = self.board.pending();
        self.log.entries.push(Entry { call, answer, pending, wrote });
    }

    fn wrote(&mut self, call: &Call) -> Vec<(u64, Vec<u8>)> {
        let place = match *call {
            Call::Wrmsr { index, value } => {
                let place = Board::named_by(index, value);
                use x86_defs::msr::{KVM_SYSTEM_TIME, KVM_SYSTEM_TIME_NEW};
                if matches!(index, KVM_SYSTEM_TIME | KVM_SYSTEM_TIME_NEW) {
                    self.clock = place;
                }
                place
            }
            Call::SetTscOffset(_) => self.clock,
            _ => None,
        };
        let read = |(gpa, len): (u64, usize)| {
            let mut bytes = vec![0; len];
            self.memory.read(gpa, &mut bytes).is_ok().then_some((gpa, bytes))
        };
        place.and_then(read).into_iter().collect()
    }
}

impl VcpuHost for Recorder {
    fn pio_in(&mut self, port: u16, size: usize, data: &mut [u8]) -> Flow {
        let flow = self.board.pio_in(port, size, data);
        self.note(Call::In { port, size, len: data.len() }, Answer::data(data, flow));
        flow
    }

    fn pio_out(&mut self, port: u16, size: usize, data: &[u8]) -> Flow {
        let flow = self.board.pio_out(port, size, data);
        self.note(Call::Out { port, size, data: data.to_vec() }, Answer::flow(flow));
        flow
    }

    fn mmio_read(&mut self, gpa: u64, data: &mut [u8]) -> Flow {
        let flow = self.board.mmio_read(gpa, data);
        self.note(Call::MmioRead { gpa, len: data.len() }, Answer::data(data, flow));
        flow
    }

    fn mmio_write(&mut self, gpa: u64, data: &[u8]) -> Flow {
        let flow = self.board.mmio_write(gpa, data);
        self.note(Call::MmioWrite { gpa, data: data.to_vec() }, Answer::flow(flow));
        flow
    }

    fn rdmsr(&mut self, index: u32, value: &mut u64) -> Result<Flow, GeneralProtection> {
        let result = self.board.rdmsr(index, value);
        let answer = Answer::optional(result.is_ok().then_some(*value), Flow::Continue);
        self.note(Call::Rdmsr { index }, answer);
        result
    }

    fn wrmsr(&mut self, index: u32, value: u64) -> Result<Flow, GeneralProtection> {
        let result = self.board.wrmsr(index, value);
        let answer = Answer::optional(result.is_ok().then_some(0), Flow::Continue);
        self.note(Call::Wrmsr { index, value }, answer);
        result
    }

    fn pending(&self) -> Option<Pending> {
        self.board.pending()
    }

    fn ack(&mut self, what: Pending) -> Option<u8> {
        let vector = self.board.ack(what);
        self.note(Call::Ack(what), Answer::optional(vector.map(u64::from), Flow::Continue));
        vector
    }

    fn cr8(&mut self) -> u8 {
        let value = self.board.cr8();
        self.note(Call::Cr8, Answer::value(value.into()));
        value
    }

    fn set_cr8(&mut self, value: u8) -> Flow {
        let flow = self.board.set_cr8(value);
        self.note(Call::SetCr8(value), Answer::flow(flow));
        flow
    }

    fn tsc(&mut self) -> u64 {
        let value = self.board.tsc();
        self.note(Call::Tsc, Answer::value(value));
        value
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.board.set_tsc_offset(offset);
        self.note(Call::SetTscOffset(offset), Answer::value(0));
    }

    fn random(&mut self) -> u64 {
        let value = self.board.random();
        self.note(Call::Random, Answer::value(value));
        value
    }

    fn trace(&mut self, event: Trace) {
        self.note(Call::Trace(event), Answer::value(0));
    }
}

/// Gives the vCPU that follows the answers that the other was given.
#[derive(Debug)]
pub struct Replayer<'l> {
    log: &'l Log,
    at: usize,
    memory: Arc<GuestMem>,
    /// The run is shorter than the one that was recorded: asked the time at its end, it is told
    /// the last.
    part: bool,
    last_tsc: u64,
    /// The time was the last question, and where its answer is in the log.
    read: Option<usize>,
    /// The first question that the other did not ask here.
    wrong: Option<String>,
}

impl<'l> Replayer<'l> {
    pub fn new(log: &'l Log, memory: &Arc<GuestMem>, part: bool) -> Self {
        Self { log, at: 0, memory: memory.clone(), part, last_tsc: 0, read: None, wrong: None }
    }

    /// A run has ended inside the piece. A vCPU asks the time at each end of a run: what it was
    /// told then may have been meant for the guest, which is still to read it.
    pub fn end(&mut self) {
        if let Some(at) = self.read.take() {
            self.at = at;
        }
    }

    /// What was asked differently, or not at all.
    pub fn wrong(&self) -> Option<String> {
        if self.wrong.is_some() || self.part {
            return self.wrong.clone();
        }
        let rest = self.log.entries.get(self.at)?;
        Some(format!("it does not ask {:x?}", rest.call))
    }

    fn answer(&mut self, call: Call) -> Answer {
        let none = Answer { value: None, data: Vec::new(), flow: Flow::Stop };
        if self.wrong.is_some() {
            return none;
        }
        self.read = None;
        match self.log.entries.get(self.at) {
            Some(entry) if entry.call == call => {
                self.read = (call == Call::Tsc).then_some(self.at);
                self.at += 1;
                for (gpa, bytes) in &entry.wrote {
                    // It was read from there.
                    drop(self.memory.write(*gpa, bytes));
                }
                if call == Call::Tsc {
                    self.last_tsc = entry.answer.value.unwrap_or_default();
                }
                entry.answer.clone()
            }
            _ if self.part && call == Call::Tsc => Answer::value(self.last_tsc),
            entry => {
                let other = entry.map(|entry| &entry.call);
                self.wrong = Some(format!("it asks {call:x?}, the other {other:x?}"));
                none
            }
        }
    }
}

/// As much of it as there is room for.
fn copy(to: &mut [u8], from: &[u8]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
}

impl VcpuHost for Replayer<'_> {
    fn pio_in(&mut self, port: u16, size: usize, data: &mut [u8]) -> Flow {
        let answer = self.answer(Call::In { port, size, len: data.len() });
        copy(data, &answer.data);
        answer.flow
    }

    fn pio_out(&mut self, port: u16, size: usize, data: &[u8]) -> Flow {
        self.answer(Call::Out { port, size, data: data.to_vec() }).flow
    }

    fn mmio_read(&mut self, gpa: u64, data: &mut [u8]) -> Flow {
        let answer = self.answer(Call::MmioRead { gpa, len: data.len() });
        copy(data, &answer.data);
        answer.flow
    }

    fn mmio_write(&mut self, gpa: u64, data: &[u8]) -> Flow {
        self.answer(Call::MmioWrite { gpa, data: data.to_vec() }).flow
    }

    fn rdmsr(&mut self, index: u32, value: &mut u64) -> Result<Flow, GeneralProtection> {
        let answer = self.answer(Call::Rdmsr { index });
        *value = answer.value.ok_or(GeneralProtection)?;
        Ok(answer.flow)
    }

    fn wrmsr(&mut self, index: u32, value: u64) -> Result<Flow, GeneralProtection> {
        let answer = self.answer(Call::Wrmsr { index, value });
        answer.value.ok_or(GeneralProtection)?;
        Ok(answer.flow)
    }

    fn pending(&self) -> Option<Pending> {
        match self.at.checked_sub(1).and_then(|last| self.log.entries.get(last)) {
            Some(entry) => entry.pending,
            None => self.log.pending,
        }
    }

    fn ack(&mut self, what: Pending) -> Option<u8> {
        self.answer(Call::Ack(what)).value.map(|vector| vector as u8)
    }

    fn cr8(&mut self) -> u8 {
        self.answer(Call::Cr8).value.unwrap_or_default() as u8
    }

    fn set_cr8(&mut self, value: u8) -> Flow {
        self.answer(Call::SetCr8(value)).flow
    }

    fn tsc(&mut self) -> u64 {
        self.answer(Call::Tsc).value.unwrap_or(self.last_tsc)
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.answer(Call::SetTscOffset(offset));
    }

    fn random(&mut self) -> u64 {
        self.answer(Call::Random).value.unwrap_or_default()
    }

    fn trace(&mut self, event: Trace) {
        self.answer(Call::Trace(event));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_runs_take_nothing_from_the_guest() {
        let tsc = |value| Entry {
            call: Call::Tsc,
            answer: Answer::value(value),
            pending: None,
            wrote: Vec::new(),
        };
        // The guest reads the time twice; the end of the piece is the third one.
        let log = Log { pending: None, entries: vec![tsc(5), tsc(6), tsc(7)] };
        let memory = GuestMem::new(1 << 20).unwrap();
        let mut host = Replayer::new(&log, &memory, true);
        // In steps: one before the first reading, the two readings, and one behind them.
        for readings in [0, 1, 1, 0] {
            let before = host.at;
            for n in 0..readings {
                assert_eq!(host.tsc(), 5 + (before + n) as u64);
            }
            host.tsc();
            host.end();
            assert_eq!(host.at, before + readings);
        }
        host.end();
        assert_eq!(host.at, 2);
        assert!(host.wrong().is_none());
    }
}
