//! Both executors side by side: cases in, differences out, smaller and smaller.

use crate::{
    case::{Background, Case, Mode, Outcome},
    compare::{Verdict, compare},
    generate::{Generator, values},
    guest::Guest,
    native::Native,
    rng::Rng,
};
use engine::Engine;

/// A case on which the host processor and the engine differ.
#[derive(Clone, Debug)]
pub struct Difference {
    pub mode: Mode,
    /// What memory held: see [`values::background`].
    pub seed: u64,
    pub case: Case,
    /// Where the instruction is that faulted, or the case's end.
    pub rip: u64,
    /// What differs, one line each.
    pub what: Vec<String>,
}

/// Counts of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub cases: usize,
    /// Ran to their end, and not into an exception.
    pub completed: usize,
    pub unjudged: usize,
}

/// Changes an engine's outcome before it is compared: to see the comparison fail.
pub type Spoil<'a> = &'a dyn Fn(&mut Outcome);

/// The host processor and an engine, in one mode.
#[derive(Debug)]
pub struct Oracle {
    mode: Mode,
    native: Native,
    guest: Guest,
}

type Error = Box<dyn std::error::Error>;

impl Oracle {
    pub fn new(engine: &dyn Engine, mode: Mode) -> Result<Self, Error> {
        Ok(Self { mode, native: Native::new(mode)?, guest: Guest::new(engine, mode)? })
    }

    /// Cases begin with their memory known to the engine.
    #[must_use]
    pub fn warm(mut self) -> Self {
        self.guest = self.guest.warm();
        self
    }

    /// What the engine counted.
    pub fn stats(&self) -> engine::Stats {
        self.guest.stats()
    }

    pub fn generator(&self) -> Generator {
        Generator::new(self.mode, self.native.has_bases())
    }

    /// Makes and judges `count` cases from `seed`; calls `found` for each that differs.
    pub fn search(
        &mut self,
        generator: &mut Generator,
        seed: u64,
        count: usize,
        spoil: Option<Spoil<'_>>,
        mut found: impl FnMut(Difference),
    ) -> Result<Tally, Error> {
        const BATCH: usize = crate::native::BATCH;
        let mut rng = Rng::new(seed);
        let mut tally = Tally::default();
        while tally.cases < count {
            let seed = rng.u64();
            let background = values::background(seed);
            let cases: Vec<Case> = (0..BATCH.min(count - tally.cases))
                .map(|_| generator.case(&mut rng, &background))
                .collect();
            let native = self.native.run(&background, &cases)?;
            let mut guest = self.guest.run(&background, &cases)?;
            for ((case, native), guest) in cases.iter().zip(&native).zip(&mut guest) {
                tally.cases += 1;
                tally.completed += usize::from(native.vector == 3);
                if let Some(spoil) = spoil {
                    spoil(guest);
                }
                match compare(self.mode, case, &background, native, guest) {
                    Verdict::Same => {}
                    Verdict::Unjudged => tally.unjudged += 1,
                    Verdict::Differs(what) => {
                        let faulted = if native.vector == 3 { guest.rip } else { native.rip };
                        let (mode, case) = (self.mode, *case);
                        found(Difference { mode, seed, case, rip: faulted, what });
                    }
                }
            }
        }
        Ok(tally)
    }

    /// Both outcomes of one case.
    pub fn both(
        &mut self,
        background: &Background,
        case: &Case,
    ) -> Result<(Outcome, Outcome), Error> {
        let cases = [*case];
        let native = self.native.run(background, &cases)?;
        let guest = self.guest.run(background, &cases)?;
        match (native.first(), guest.first()) {
            (Some(native), Some(guest)) => Ok((*native, *guest)),
            _ => Err("no outcome".into()),
        }
    }

    /// What differs now, if anything.
    pub fn judge(&mut self, seed: u64, case: &Case) -> Result<Option<Vec<String>>, Error> {
        let background = values::background(seed);
        let (native, guest) = self.both(&background, case)?;
        Ok(match compare(self.mode, case, &background, &native, &guest) {
            Verdict::Differs(what) => Some(what),
            Verdict::Same | Verdict::Unjudged => None,
        })
    }

    /// The smallest state found with which the same kind of difference is still there.
    pub fn minimise(&mut self, difference: &Difference) -> Result<Difference, Error> {
        let mut best = difference.clone();
        let kind = kind(&difference.what);
        for change in crate::minimise::changes(self.mode, &difference.case) {
            let mut case = best.case;
            change(&mut case);
            if case.bytes() == best.case.bytes() && same_state(&case, &best.case) {
                continue;
            }
            if let Some(what) = self.judge(best.seed, &case)?
                && kind.is_some()
                && self::kind(&what) == kind
            {
                (best.case, best.what) = (case, what);
            }
        }
        Ok(best)
    }
}

/// What differs first, without the values.
fn kind(what: &[String]) -> Option<String> {
    what.first().and_then(|line| line.split(':').next()).map(str::to_owned)
}

fn same_state(a: &Case, b: &Case) -> bool {
    a.fpu == b.fpu
        && a.gpr == b.gpr
        && a.rflags == b.rflags
        && a.at == b.at
        && (a.fs_base, a.gs_base) == (b.fs_base, b.gs_base)
}
