//! Where hot blocks leave the interpreter.

use crate::{
    Interp,
    cache::{Heat, New, Span},
    fetch::linear_ip,
};
use semantics::{Ctx, Stop};
use std::time::Instant;
use translator::{Code, Left, Source, Translator, Width};

impl Interp {
    /// From now on blocks are translated when they have run so often. Runs with a budget need a
    /// translator that counts.
    pub fn set_translator(&mut self, translator: Translator, hot: u32) {
        self.hot = hot;
        // A quarter of all.
        self.cache.resize(translator.bytes() / 3);
        self.translator = Some(translator.autonomous().intercepting(crate::trap::intercept));
    }

    pub fn translator(&mut self) -> Option<&mut Translator> {
        self.translator.as_mut()
    }

    /// What retires is counted.
    pub fn counts(&self) -> bool {
        self.translator.as_ref().is_none_or(Translator::counts)
    }

    /// Runs the block that `locate` has found, and what follows, as translated code, which
    /// retires at most `left` instructions where they are counted. `None` if it is to be
    /// interpreted. `before` is how translated code has come here.
    #[inline]
    pub(crate) fn translated(
        &mut self,
        ctx: &mut Ctx<'_>,
        span: Span,
        before: Option<Left>,
        left: u64,
    ) -> Option<Result<Left, Stop>> {
        match self.cache.heat(span)? {
            Heat::Never => return None,
            Heat::Runs(runs) if *runs < self.hot => {
                *runs += 1;
                return None;
            }
            Heat::Runs(_) | Heat::Translated => {}
        }
        self.enter(ctx, span, before, left)
    }

    fn enter(
        &mut self,
        ctx: &mut Ctx<'_>,
        span: Span,
        before: Option<Left>,
        left: u64,
    ) -> Option<Result<Left, Stop>> {
        let translator = self.translator.as_mut()?;
        if let Some(dropped) = self.cache.take_dropped() {
            if dropped.all {
                translator.clear();
            }
            translator.suspend(&dropped.suspended);
            translator.remove(&dropped.gone);
        }
        let version = translator.version(ctx)?;
        let known = self.cache.translations(span).and_then(|t| *t.get(version)?);
        if known.is_some_and(|code| translator.is_evicted(code)) {
            // It has to become hot again. What does not would make others go that are.
            *self.cache.heat(span)? = Heat::Runs(0);
            return None;
        }
        let code = match known.filter(|code| translator.revive(*code, version)) {
            Some(code) => code,
            None => self.translate(ctx, span, version)?,
        };
        let translator = self.translator.as_mut()?;
        match before {
            Some(Left::Exit(link)) => translator.link(link, code),
            Some(Left::Jump) => translator.set_jump(ctx, code, self.global),
            Some(Left::Boundary | Left::Short) | None => {}
        }
        if !translator.counts() {
            return translator.run(ctx, code, self.global);
        }
        translator.set_budget(left);
        let result = translator.run(ctx, code, self.global);
        self.retired += translator.take_retired();
        result
    }

    /// Translates the block at RIP.
    fn translate(&mut self, ctx: &mut Ctx<'_>, span: Span, version: usize) -> Option<Code> {
        let since = Instant::now();
        let span = if span.is_bare() { self.dress(ctx, span).ok()? } else { span };
        let code = self.make(ctx, span, version);
        let ns = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.counters.translation_ns = self.counters.translation_ns.saturating_add(ns);
        let Some(code) = code else {
            *self.cache.heat(span)? = Heat::Never;
            return None;
        };
        if self.cache.translations(span).is_none() {
            self.cache.set_translated(span);
        }
        *self.cache.translations(span)?.get_mut(version)? = Some(code);
        Some(code)
    }

    /// Keeps a block that was decoded.
    pub(crate) fn keep(&mut self, new: New<'_>) -> Span {
        let translator = self.translator.as_ref();
        self.cache.add(new, &|code| translator.is_some_and(|t| !t.is_evicted(code)))
    }

    /// What a bare block was decoded from; nothing if none of its translations is left.
    pub(crate) fn text(&self, span: Span) -> &[u8] {
        let Some(translator) = &self.translator else { return &[] };
        let code = self.cache.translation(span, &|code| !translator.is_evicted(code));
        code.map_or(&[], |code| translator.text(code))
    }

    /// Gives the bare block at RIP instructions again.
    #[cold]
    pub(crate) fn dress(&mut self, ctx: &mut Ctx<'_>, span: Span) -> Result<Span, Stop> {
        let bytes = self.text(span).to_vec();
        if let Some(key) = self.cache.key(span)
            && bytes.len() == usize::from(span.len)
        {
            let mut insns = self.decode(ctx, &bytes, false);
            if insns.last().map(|insn| insn.end) == Some(span.len) {
                let new = New { key: Some(key), insns: &mut insns, bytes: &bytes, checked: false };
                let translator = self.translator.as_ref();
                let lives = |code| translator.is_some_and(|t| !t.is_evicted(code));
                if let Some(span) = self.cache.clothe(span, new, &lives) {
                    return Ok(span);
                }
            }
        }
        self.cache.forget(span.id);
        self.locate(ctx)
    }

    fn make(&mut self, ctx: &mut Ctx<'_>, span: Span, version: usize) -> Option<Code> {
        if !self.cache.is_kept(span) {
            return None;
        }
        let start = (linear_ip(ctx) % x86_defs::PAGE_SIZE) as u16;
        let bytes = self.cache.bytes(span).to_vec();
        let checked = self.cache.is_checked(span);
        let check = match checked {
            true => Some(self.check(ctx, span, &bytes)?),
            false => None,
        };
        let (linear, width) = (ctx.cpu.rip, Width::of(ctx.cpu)?);
        let registers = ctx.cpu.gpr.first_chunk::<16>().copied().unwrap_or_default();
        let bytes = &bytes;
        let insns = self.cache.insns(span);
        let supervisor = ctx.cpu.mode.cpl == 0;
        let source =
            Source { insns, bytes, linear, start, version, supervisor, width, registers, check };
        self.translator.as_mut()?.translate(&source)
    }
}
