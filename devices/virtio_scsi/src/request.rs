//! One command: what the driver gives, and what it is answered (5.6.6.1).

use crate::{
    Address, VirtioScsi,
    address::Whom,
    lock,
    medium::{Fault, Transfer},
    tasks::Task,
};
use scsi::{CDB, Outcome, Sense, Unit, target};
use std::sync::{Arc, PoisonError, atomic::Ordering::Relaxed};
use virtio::{Chain, GuestError, Span};

/// Bytes of a request before the command, and of an answer before sense data.
const HEADER: usize = 19;
const ANSWER: usize = 12;

/// How the adapter fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Response {
    Ok = 0,
    /// The command needs more room than the request has.
    Overrun = 1,
    Aborted = 2,
    BadTarget = 3,
    Reset = 4,
    Failure = 9,
}

/// SAM-5, 5.3.1.
mod status {
    pub const GOOD: u8 = 0;
    pub const CHECK_CONDITION: u8 = 2;
}

pub(crate) enum End {
    /// The answer is written: so many bytes with the data.
    Done(u32),
    /// The device is to rest: nothing was reported, and the request may be begun anew.
    Interrupted,
}

pub(crate) struct Request {
    whom: Whom,
    id: u64,
    cdb: [u8; CDB],
    given: Span,
    answer: Span,
    sense: usize,
    wanted: Span,
}

impl Request {
    /// `sense` and `cdb` are the sizes that the driver chose.
    pub(crate) fn parse(chain: Chain, (sense, cdb): (u32, u32)) -> Result<Self, GuestError> {
        let Chain { readable: mut given, writable: mut wanted, .. } = chain;
        let (sense, cdb) = (sense as usize, cdb as usize);
        let mut header = vec![0; HEADER + cdb];
        if given.read(&mut header) < header.len() {
            return Err(GuestError("a request has no command"));
        }
        if wanted.len() < (ANSWER + sense) as u64 {
            return Err(GuestError("a request has no room for its answer"));
        }
        let answer = wanted.split_front((ANSWER + sense) as u64);
        let byte = |at: usize| header.get(at).copied().unwrap_or(0);
        Ok(Self {
            whom: Whom::parse(std::array::from_fn(byte)),
            id: u64::from_le_bytes(std::array::from_fn(|at| byte(8 + at))),
            cdb: std::array::from_fn(|at| byte(HEADER + at)),
            given,
            answer,
            sense,
            wanted,
        })
    }

    /// As task management knows it; the well-known unit has no tasks.
    pub(crate) fn task(&self) -> Option<Task> {
        match self.whom {
            Whom::Unit(address) => Some((address, self.id)),
            _ => None,
        }
    }

    fn answer(&mut self, residual: u64, sense: Option<Sense>, response: Response) {
        let data = sense.map(Sense::fixed);
        let data = data.as_ref().map_or(&[][..], |data| data.as_slice());
        let data = data.get(..data.len().min(self.sense)).unwrap_or_default();
        let status = if sense.is_some() { status::CHECK_CONDITION } else { status::GOOD };
        let mut bytes = (data.len() as u32).to_le_bytes().to_vec();
        bytes.extend(u32::try_from(residual).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend([0, 0, status, response as u8]);
        bytes.extend(data);
        bytes.resize(ANSWER + self.sense, 0);
        self.answer.write(&bytes);
    }
}

impl VirtioScsi {
    /// Executes a command. `stop` is asked between pieces of work.
    pub(crate) fn execute(
        &self,
        mut request: Request,
        buffer: &mut [u8],
        stop: &dyn Fn() -> Option<Fault>,
    ) -> End {
        let wanted_before = request.wanted.len();
        let room = request.given.len().saturating_add(wanted_before);
        let (given, wanted) = (&mut request.given, &mut request.wanted);
        let mut transfer = Transfer { given, wanted, buffer, stop, moved: 0 };
        let result = self.perform(request.whom, &request.cdb, &mut transfer);
        let moved = transfer.moved;
        let residual = room.saturating_sub(moved);
        self.counters.commands.fetch_add(1, Relaxed);
        match result {
            Ok(()) => request.answer(residual, None, Response::Ok),
            Err(Fault::Interrupted) => return End::Interrupted,
            Err(Fault::Sense(sense)) => {
                self.counters.failed.fetch_add(1, Relaxed);
                request.answer(residual, Some(sense), Response::Ok);
            }
            Err(Fault::Response(response)) => {
                self.counters.failed.fetch_add(1, Relaxed);
                request.answer(residual, None, response);
            }
        }
        // What is written of the driver's memory only (2.7.8.2): the answer, and data behind it.
        let data = wanted_before.saturating_sub(request.wanted.len());
        let len = (ANSWER + request.sense) as u64 + data;
        End::Done(u32::try_from(len).unwrap_or(u32::MAX))
    }

    fn perform(
        &self,
        whom: Whom,
        cdb: &[u8; CDB],
        transfer: &mut Transfer<'_>,
    ) -> Result<(), Fault> {
        if !transfer.given.is_empty() && !transfer.wanted.is_empty() {
            // Data in both directions were not offered.
            return Err(Fault::Response(Response::Failure));
        }
        // What is to end may not even begin.
        (transfer.stop)().map_or(Ok(()), Err)?;
        let (unit, outcome) = self.begin(whom, cdb).ok_or(Fault::Response(Response::BadTarget))?;
        let result = transfer.carry_out(self, unit.as_deref(), cdb, outcome);
        if let (Some(unit), Err(Fault::Sense(_))) = (&unit, &result) {
            // It goes along with the status.
            unit.take_sense();
        }
        result
    }

    /// What a command means, and the unit that it is for; `None` if there is no such target.
    fn begin(&self, whom: Whom, cdb: &[u8; CDB]) -> Option<(Option<Arc<Unit>>, Outcome)> {
        match whom {
            Whom::Nobody => None,
            // It lists all units of all targets, as the field `lun` has them.
            Whom::ReportLuns => {
                let units = self.units.read().unwrap_or_else(PoisonError::into_inner);
                let luns = units.keys().map(|address| address.field());
                Some((None, target::well_known(cdb, luns)))
            }
            Whom::Unit(address) => {
                let units = self.units.read().unwrap_or_else(PoisonError::into_inner);
                let mut of_target =
                    units.keys().filter(|it| it.target == address.target).peekable();
                of_target.peek()?;
                if cdb[0] == target::REPORT_LUNS {
                    let entry = |address: &Address| {
                        let [high, low] = address.lun_field();
                        [high, low, 0, 0, 0, 0, 0, 0]
                    };
                    return Some((None, target::report_luns(cdb, of_target.map(entry))));
                }
                drop(of_target);
                let unit = units.get(&address).cloned();
                drop(units);
                let outcome = match &unit {
                    Some(unit) => unit.command(cdb),
                    None => target::absent(cdb),
                };
                Some((unit, outcome))
            }
        }
    }

    /// A queue's buffer, for its thread.
    pub(crate) fn buffer(&self, queue: u16) -> Option<std::sync::MutexGuard<'_, Vec<u8>>> {
        self.buffers.get(usize::from(queue)).map(lock)
    }
}
