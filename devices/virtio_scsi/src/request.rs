//! One command: what the driver gives, and what it is answered (5.6.6.1).

use crate::{
    Address, VirtioScsi,
    address::Whom,
    lock,
    medium::{Fault, Transfer},
    tasks::Task,
};
use scsi::{CDB, Outcome, Sense, Unit};
use std::sync::{Arc, PoisonError, atomic::Ordering::Relaxed};
use virtio::{Chain, GuestError, Span};

/// Bytes of a request before the command, and of an answer before sense data.
const HEADER: usize = 19;
const ANSWER: usize = 12;

const REPORT_LUNS: u8 = 0xa0;

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
        let Chain { readable: mut given, writable: mut answer, .. } = chain;
        let (sense, cdb) = (sense as usize, cdb as usize);
        let mut header = vec![0; HEADER + cdb];
        if given.read(&mut header) < header.len() {
            return Err(GuestError("a request has no command"));
        }
        if answer.len() < (ANSWER + sense) as u64 {
            return Err(GuestError("a request has no room for its answer"));
        }
        let mut first = answer.split_front((ANSWER + sense) as u64);
        std::mem::swap(&mut first, &mut answer);
        let byte = |at: usize| header.get(at).copied().unwrap_or(0);
        Ok(Self {
            whom: Whom::parse(std::array::from_fn(byte)),
            id: u64::from_le_bytes(std::array::from_fn(|at| byte(8 + at))),
            cdb: std::array::from_fn(|at| byte(HEADER + at)),
            given,
            answer,
            sense,
            wanted: first,
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
        let room = request.given.len().saturating_add(request.wanted.len());
        let (given, wanted) = (&mut request.given, &mut request.wanted);
        let mut transfer = Transfer { given, wanted, buffer, stop, moved: 0 };
        let result = self.perform(request.whom, &request.cdb, &mut transfer);
        let moved = transfer.moved;
        let written = room.saturating_sub(request.given.len());
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
        // From the front: the answer, and what there is of data behind it.
        let data = written.saturating_sub(request.wanted.len());
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
            Whom::ReportLuns => Some((None, self.well_known(cdb))),
            Whom::Unit(address) => {
                let units = self.units.read().unwrap_or_else(PoisonError::into_inner);
                let mut of_target =
                    units.keys().filter(|it| it.target == address.target).peekable();
                of_target.peek()?;
                if cdb[0] == REPORT_LUNS {
                    let entry = |address: &Address| {
                        let [high, low] = address.lun_field();
                        [high, low, 0, 0, 0, 0, 0, 0]
                    };
                    return Some((None, report_luns(cdb, of_target.map(entry))));
                }
                drop(of_target);
                let unit = units.get(&address).cloned();
                drop(units);
                let outcome = match &unit {
                    Some(unit) => unit.command(cdb),
                    None => Unit::absent(cdb),
                };
                Some((unit, outcome))
            }
        }
    }

    /// The well-known unit that lists all units of all targets, as the field `lun` has them.
    fn well_known(&self, cdb: &[u8; CDB]) -> Outcome {
        const TEST_UNIT_READY: u8 = 0x00;
        const REQUEST_SENSE: u8 = 0x03;
        const INQUIRY: u8 = 0x12;
        match cdb[0] {
            REPORT_LUNS => {
                let units = self.units.read().unwrap_or_else(PoisonError::into_inner);
                report_luns(cdb, units.keys().map(|address| address.field()))
            }
            INQUIRY if cdb[1] & 1 == 0 => {
                // Peripheral device type 1Eh (SPC-4, 6.4.2).
                let mut data = vec![0x1e, 0, 5, 2, 31, 0, 0, 0];
                data.extend(b"SARANG  REPORT LUNS     1.0 ");
                data.truncate(usize::from(u16::from_be_bytes([cdb[3], cdb[4]])));
                Outcome::Data(data)
            }
            REQUEST_SENSE => {
                let mut data = Sense::NONE.fixed().to_vec();
                data.truncate(cdb[4].into());
                Outcome::Data(data)
            }
            TEST_UNIT_READY => Outcome::Good,
            INQUIRY => Outcome::Failed(Sense::BAD_FIELD),
            _ => Outcome::Failed(Sense::NO_SUCH_COMMAND),
        }
    }

    /// A queue's buffer, for its thread.
    pub(crate) fn buffer(&self, queue: u16) -> Option<std::sync::MutexGuard<'_, Vec<u8>>> {
        self.buffers.get(usize::from(queue)).map(lock)
    }
}

/// SPC-4, 6.33.
fn report_luns(cdb: &[u8; CDB], luns: impl Iterator<Item = [u8; 8]>) -> Outcome {
    let list: Vec<u8> = match cdb[2] {
        0 | 2 => luns.flatten().collect(),
        // Well-known units of a target: there are none.
        1 => Vec::new(),
        _ => return Outcome::Failed(Sense::BAD_FIELD),
    };
    let mut data = u32::try_from(list.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    data.extend([0; 4]);
    data.extend(list);
    let allowed = u32::from_be_bytes([cdb[6], cdb[7], cdb[8], cdb[9]]);
    data.truncate(usize::try_from(allowed).unwrap_or(usize::MAX));
    Outcome::Data(data)
}
