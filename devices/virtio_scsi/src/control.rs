//! The control queue: task management and asynchronous notifications (5.6.6.2).

use crate::{Address, REQUESTS, Response, VirtioScsi, address::Whom, tasks::Which};
use scsi::Sense;
use std::sync::{PoisonError, atomic::Ordering::Relaxed};
use virtio::{Chain, GuestError, Queue, Served};

/// Types of requests.
const TMF: u32 = 0;
const AN_QUERY: u32 = 1;
const AN_SUBSCRIBE: u32 = 2;

/// Subtypes of [`TMF`].
mod function {
    pub const ABORT_TASK: u32 = 0;
    pub const ABORT_TASK_SET: u32 = 1;
    pub const CLEAR_TASK_SET: u32 = 3;
    pub const I_T_NEXUS_RESET: u32 = 4;
    pub const LUN_RESET: u32 = 5;
    pub const QUERY_TASK: u32 = 6;
    pub const QUERY_TASK_SET: u32 = 7;
}

/// What a function came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Complete = 0,
    BadTarget = 3,
    Failure = 9,
    Succeeded = 10,
    Rejected = 11,
    IncorrectLun = 12,
}

impl VirtioScsi {
    pub(crate) fn serve_control(&self, queue: &mut Queue<'_>) -> Result<Served, GuestError> {
        while let Some(mut chain) = queue.pop()? {
            // Kept from here on, in case the function is begun anew.
            let whole = chain.clone();
            let mut kind = [0; 4];
            if chain.readable.read(&mut kind) < kind.len() {
                return Err(GuestError("a control request has no type"));
            }
            let bytes = match u32::from_le_bytes(kind) {
                TMF => match self.manage(&mut chain, queue)? {
                    Some(answer) => vec![answer as u8],
                    None => {
                        queue.put_back(whole);
                        return Ok(Served::Left);
                    }
                },
                // No events can be asked for: none are supported.
                AN_QUERY | AN_SUBSCRIBE => vec![0, 0, 0, 0, Answer::Complete as u8],
                _ => vec![Answer::Failure as u8],
            };
            if chain.writable.write(&bytes) < bytes.len() {
                return Err(GuestError("a control request has no room for its answer"));
            }
            queue.complete(whole, bytes.len() as u32)?;
            queue.signal()?;
        }
        Ok(Served::Drained)
    }

    /// A task management function; `None` if the device is to rest before it is done.
    fn manage(&self, chain: &mut Chain, queue: &Queue<'_>) -> Result<Option<Answer>, GuestError> {
        let mut bytes = [0; 20];
        if chain.readable.read(&mut bytes) < bytes.len() {
            return Err(GuestError("a task management request is too short"));
        }
        let subtype = u32::from_le_bytes(std::array::from_fn(|at| bytes[at]));
        let id = u64::from_le_bytes(std::array::from_fn(|at| bytes[12 + at]));
        let address = match Whom::parse(std::array::from_fn(|at| bytes[4 + at])) {
            Whom::Unit(address) => address,
            _ => return Ok(Some(Answer::BadTarget)),
        };
        self.counters.functions.fetch_add(1, Relaxed);
        if let Some(wrong) = self.misaddressed(address, subtype) {
            return Ok(Some(wrong));
        }
        let one = Which::One((address, id));
        let answer = match subtype {
            function::ABORT_TASK => self.end_tasks(one, Response::Aborted, queue),
            function::ABORT_TASK_SET | function::CLEAR_TASK_SET => {
                self.end_tasks(Which::OfUnit(address), Response::Aborted, queue)
            }
            function::LUN_RESET | function::I_T_NEXUS_RESET => {
                self.reset_units(address, subtype == function::LUN_RESET, queue)
            }
            function::QUERY_TASK => Some(self.query(one)),
            function::QUERY_TASK_SET => Some(self.query(Which::OfUnit(address))),
            // CLEAR ACA among them: there is no auto contingent allegiance to be cleared.
            _ => Some(Answer::Rejected),
        };
        Ok(answer)
    }

    fn misaddressed(&self, address: Address, subtype: u32) -> Option<Answer> {
        let units = self.units.read().unwrap_or_else(PoisonError::into_inner);
        if !units.keys().any(|there| there.target == address.target) {
            return Some(Answer::BadTarget);
        }
        let whole_target = subtype == function::I_T_NEXUS_RESET;
        (!whole_target && !units.contains_key(&address)).then_some(Answer::IncorrectLun)
    }

    fn query(&self, which: Which) -> Answer {
        if self.tasks.executing(which) { Answer::Succeeded } else { Answer::Complete }
    }

    fn end_tasks(&self, which: Which, response: Response, queue: &Queue<'_>) -> Option<Answer> {
        let Some(handle) = self.handle.get() else { return Some(Answer::Failure) };
        let done = self.tasks.end(
            which,
            response,
            |index| handle.kick(REQUESTS + index),
            |index| !handle.is_set_up(REQUESTS + index),
            || queue.interrupted(),
        );
        done.then_some(Answer::Complete)
    }

    fn reset_units(&self, address: Address, one: bool, queue: &Queue<'_>) -> Option<Answer> {
        let (which, why) = if one {
            (Which::OfUnit(address), Sense::UNIT_RESET)
        } else {
            (Which::OfTarget(address.target), Sense::NEXUS_LOSS)
        };
        let answer = self.end_tasks(which, Response::Reset, queue)?;
        let units = self.units.read().unwrap_or_else(PoisonError::into_inner);
        let concerned = |there: &Address| {
            if one { *there == address } else { there.target == address.target }
        };
        units.iter().filter(|(there, _)| concerned(there)).for_each(|(_, unit)| unit.reset(why));
        Some(answer)
    }
}
