//! Both vCPUs, piece by piece.

use super::{
    Error, Found, Start,
    board::Board,
    find,
    memory::Reference,
    record::{Recorder, Replayer},
    side::Side,
    undefined,
};
use crate::Rng;
use device::PowerEvent;
use engine::{Exit, Vcpu};
use engine_translate::{Translate, Translation};
use vcpu_state::VcpuState;

/// How it is run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub translation: Translation,
    /// Instructions in a piece at most; lengths are random.
    pub piece: u64,
    pub seed: u64,
    /// Interrupts and exceptions are compared one by one, too.
    pub trace: bool,
    /// Retired instructions after which it is enough.
    pub limit: u64,
    /// From so many retired instructions on, both are compared after at most so many more:
    /// which changes nothing that the guest sees.
    pub close: Option<(u64, u64)>,
    /// CPUID names the second vCPU's processor otherwise: a difference, for tests to find.
    pub other_brand: bool,
}

impl Default for Plan {
    fn default() -> Self {
        let translation = Translation::default();
        let (piece, limit) = (200_000, u64::MAX);
        let (trace, close, other_brand) = (false, None, false);
        Self { translation, piece, seed: 1, trace, limit, close, other_brand }
    }
}

impl Plan {
    /// How far to go now, of `left` instructions of a piece.
    fn part(&self, retired: u64, left: u64) -> u64 {
        match self.close {
            Some((from, step)) if retired >= from => left.min(step.max(1)),
            Some((from, _)) => left.min(from - retired),
            None => left,
        }
    }

    /// A difference that does not come again when its piece is run again depends on what was
    /// run before: how to see it closer, from the beginning.
    #[must_use]
    pub fn closer(&self, found: &Found) -> Option<Self> {
        let now = self.close.map_or(self.piece, |(_, step)| step);
        let worth = !found.again && now > 1;
        worth.then(|| Self { close: Some((found.agreed, now.div_ceil(100))), ..self.clone() })
    }
}

/// Why it ended, with both vCPUs the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Power(PowerEvent),
    /// [`Plan::limit`] is reached.
    Enough,
    /// Halted, and nothing will wake it.
    Halted,
    Exit(Exit),
}

/// How far both have come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Instructions that both have retired.
    pub retired: u64,
    pub pieces: u64,
    /// Pieces after which flags differed that were undefined.
    pub undefined: u64,
}

#[derive(Debug)]
pub struct Pair {
    /// The interpreter.
    pub(super) a: Side,
    /// The translator.
    pub(super) b: Side,
    pub(super) recorder: Recorder,
    pub(super) reference: Reference,
    /// Both vCPUs, when they last agreed.
    pub(super) agreed: VcpuState,
    rng: Rng,
    plan: Plan,
    counts: Counts,
}

impl Pair {
    pub fn new(start: &Start, plan: Plan) -> Result<Self, Error> {
        let mut a = Side::new(&Translate::new()?, start, plan.trace, false)?;
        let translating = Translate::new()?.with_translation(plan.translation);
        let b = Side::new(&translating, start, plan.trace, plan.other_brand)?;
        let board = Board::new(a.memory(), start.memory)?;
        let recorder = Recorder::new(board, a.memory().clone());
        let reference = Reference::new(&a, start.memory)?;
        let agreed = a.vcpu.state()?;
        let rng = Rng::new(plan.seed);
        Ok(Self { a, b, recorder, reference, agreed, rng, plan, counts: Counts::default() })
    }

    /// Runs to the end, or to the first difference.
    pub fn run(&mut self) -> Result<Result<End, Box<Found>>, Error> {
        loop {
            match self.piece()? {
                Ok(None) => {}
                Ok(Some(end)) => return Ok(Ok(end)),
                Err(found) => return Ok(Err(found)),
            }
        }
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Both, when they last agreed.
    pub fn state(&self) -> &VcpuState {
        &self.agreed
    }

    /// What the guest printed.
    pub fn console(&self) -> String {
        self.recorder.board.told.console()
    }

    /// Time goes on after a piece, not inside.
    fn piece(&mut self) -> Result<Result<Option<End>, Box<Found>>, Error> {
        let mut left = 1 + self.rng.u64() % self.plan.piece.max(1);
        let mut total = 0;
        let exit = loop {
            let (exit, done) = match self.part(self.plan.part(self.counts.retired, left))? {
                Ok(ran) => ran,
                Err(found) => return Ok(Err(found)),
            };
            (left, total) = (left - done.min(left), total + done);
            if exit != Exit::Retired || left == 0 {
                break exit;
            }
        };
        self.counts.pieces += 1;
        let board = &mut self.recorder.board;
        board.advance(total);
        if let Some(event) = board.told.power() {
            return Ok(Ok(Some(End::Power(event))));
        }
        Ok(Ok(match exit {
            Exit::Idle if !board.idle() => Some(End::Halted),
            Exit::Idle | Exit::Retired | Exit::Stopped if self.counts.retired < self.plan.limit => {
                None
            }
            Exit::Idle | Exit::Retired | Exit::Stopped => Some(End::Enough),
            other => Some(End::Exit(other)),
        }))
    }

    /// Both run for so many instructions and are compared.
    fn part(&mut self, length: u64) -> Result<Result<(Exit, u64), Box<Found>>, Error> {
        self.recorder.begin();
        let (exit, done) = self.a.run(length, &mut self.recorder)?;
        self.recorder.end();
        let mut host = Replayer::new(&self.recorder.log, self.b.memory(), false);
        let ran = self.b.run(length, &mut host)?;
        let mut what: Vec<String> = host.wrong().into_iter().collect();
        if ran != (exit, done) {
            what.push(format!("the end: {:?} {ran:?}", (exit, done)));
        }
        self.reference.collect([&self.a, &self.b])?;
        let together = what.is_empty();
        what.extend(self.compare()?);
        if !what.is_empty() {
            if !together || !undefined::reconcile(self, done)? {
                let (agreed, most) = (self.counts.retired, done.max(ran.1));
                return Ok(Err(find::first(self, agreed, most, what)?));
            }
            self.counts.undefined += 1;
        }
        self.reference.keep(&self.a)?;
        self.agreed = self.a.vcpu.state()?;
        self.counts.retired += done;
        Ok(Ok((exit, done)))
    }

    /// What differs now: registers, then memory.
    pub(super) fn compare(&mut self) -> Result<Vec<String>, Error> {
        let (a, b) = (self.a.vcpu.state()?, self.b.vcpu.state()?);
        let mut what = find::differences(&a, &b);
        let words = self.reference.compare(&self.a, &self.b)?;
        what.extend(words.iter().map(|(at, a, b)| format!("memory at {at:#x}: {a:#x} {b:#x}")));
        Ok(what)
    }
}
