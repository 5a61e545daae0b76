//! Every access at every kind of address.

use crate::{
    forms::{Access, Coding, FEW, Form, MANY, Result as Wanted},
    guest::{self, CODE, CODE_GPA, CODE_LEN, DATA_GPA, Fault, GDT, IDT, PAGE, Range, STACK, Space},
    modes::{self, Gprs, Mode, PLAIN, Segment},
    sequences, special,
};
use engine::{Cause, CpuView, Exit, Flow, Intercepts, Pending, Trap, VcpuHost, Vm};
use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

/// Room for one instruction with what stands before and after it.
const SLOT: u64 = 64;
/// Instructions before, so that the block pays.
const BEFORE: usize = 16;
const UD: u8 = 6;

/// What must come of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This fault, or none.
    Exactly(Option<Fault>),
    /// This fault, or else whatever both ways of execution agree on.
    IfAny(Option<Fault>),
    /// Whatever both agree on.
    Same,
}

pub struct Attempt {
    pub name: &'static str,
    pub mode: Mode,
    pub linear: u64,
    /// Of the instruction, and of the UD2 behind it.
    pub rip: u64,
    pub end: u64,
    pub gprs: Gprs,
    pub outcome: Outcome,
    /// What RAX becomes.
    pub loads: Option<u64>,
    /// Guest-physical addresses of what may be written, and what it becomes.
    pub writes: Vec<u64>,
    pub stores: Option<Vec<u8>>,
}

/// The program: slots of code, and what is to be tried with each.
#[derive(Default)]
pub struct Plan {
    pub code: Vec<u8>,
    pub attempts: Vec<Attempt>,
}

impl Plan {
    /// Puts code into a slot of its own; returns the addresses of the instruction itself and
    /// of the UD2.
    pub fn place(&mut self, prepare: &[u8], insn: &[u8], tail: &[u8]) -> (u64, u64) {
        // A block lies in one page.
        let room = self.code.len().next_multiple_of(PAGE as usize) - self.code.len();
        if room != 0 && room < BEFORE + prepare.len() + insn.len() + tail.len() + 2 {
            self.code.resize(self.code.len() + room, 0xcc);
        }
        let slot = CODE + self.code.len() as u64;
        let mut code = vec![0x90; BEFORE];
        code.extend(prepare);
        let rip = slot + code.len() as u64;
        code.extend(insn);
        code.extend(tail);
        let end = slot + code.len() as u64;
        code.extend([0x0f, 0x0b]);
        code.resize(code.len().next_multiple_of(SLOT as usize), 0xcc);
        self.code.extend(code);
        assert!((self.code.len() as u64) < CODE_LEN);
        (rip, end)
    }
}

/// Register values that no address has.
pub fn plain_gprs() -> Gprs {
    let mut gprs = [0; 16];
    for (n, value) in gprs.iter_mut().enumerate() {
        *value = 0x0101_0101_0101_0101 * (n as u64 + 0x10);
    }
    // A dividend's upper half.
    gprs[2] = 0;
    gprs[0] = 0x1122_3344_5566_7787;
    gprs[4] = STACK - 64;
    gprs
}

/// Addresses at the edges of pages, around them, that alias in a TLB, and the host's own.
fn addresses(space: &Space) -> Vec<u64> {
    let mut all = Vec::new();
    for (linear, _) in space.pages() {
        for back in [33, 16, 9, 8, 7, 4, 2, 1, 0] {
            all.push(linear.wrapping_add(PAGE - back));
        }
        all.extend([linear, linear.wrapping_add(0x7c0), linear.wrapping_sub(3)]);
        // The same entry of a TLB, of other pages.
        for bits in [21, 22, 23, 34, 46, 47, 48, 55, 63] {
            all.push((linear ^ 1 << bits).wrapping_add(8));
        }
    }
    all.extend([0x8000_0000_0000, 0xffff_7fff_ffff_ffff, 0x8000_0000_0000_0000, 0x7fff_ffff_fffc]);
    all.extend(host_addresses());
    all
}

/// Where this process has anything: the guest's memory, translated code, stacks, heaps.
fn host_addresses() -> Vec<u64> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let ends = |line: &str| {
        let (start, rest) = line.split_once('-').unwrap();
        let end = rest.split(' ').next().unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        (number(start), number(end))
    };
    // Of some forms the guest has the low half only, which must not be its own code or tables.
    let low = |at: &u64| at & 0xffff_ffff;
    let elsewhere = |at: &u64| {
        !(CODE..CODE + CODE_LEN).contains(&low(at)) && !(GDT..IDT + PAGE).contains(&low(at))
    };
    let places = maps
        .lines()
        .map(ends)
        .flat_map(|(start, end)| [start, start + (end - start) / 2, end - 16])
        .filter(elsewhere);
    places.collect::<HashSet<_>>().into_iter().collect()
}

/// A few of them for the many forms.
fn every(addresses: &[u64], step: usize) -> impl Iterator<Item = u64> + '_ {
    addresses.iter().copied().step_by(step)
}

pub fn is_x87(form: &Form) -> bool {
    matches!(form.coding, Coding::Legacy(_, _, [0xd8..=0xdf]))
}

fn plan_form(plan: &mut Plan, space: &Space, form: &Form, mode: &Mode, at: &[u64], user: bool) {
    let prepare: &[u8] = if is_x87(form) { &[0xdb, 0xe3] } else { &[] };
    let fixed = mode.base.is_some() || mode.index.is_some();
    let mut placed = None;
    for linear in at {
        let mut gprs = plain_gprs();
        let len = form.encode(mode, mode.disp).len() as u64;
        let next = CODE + plan.code.len() as u64 + BEFORE as u64 + prepare.len() as u64 + len;
        let next = if fixed { 0 } else { next };
        let (real, disp) = mode.aim(*linear, &mut gprs, next);
        if !fixed && real != *linear {
            continue;
        }
        let new = |plan: &mut Plan| plan.place(prepare, &form.encode(mode, disp), form.tail);
        let (rip, end) = match placed {
            Some(known) if fixed => known,
            _ => new(plan),
        };
        placed = Some((rip, end));
        let write = matches!(form.access, Access::Write | Access::Modify);
        let range = Range { linear: real, len: form.len, write, stack: mode.stack() };
        let misaligned = form.aligned > 1 && !real.is_multiple_of(form.aligned as u64);
        let fault = match form.access {
            Access::Never => None,
            _ if misaligned => Some(Fault { vector: 13, error: 0, address: 0 }),
            _ => space.access(&[range], user),
        };
        let bytes = space.bytes(real, form.len);
        let read = bytes.as_ref().map(|bytes| {
            let low = bytes.iter().take(8).rev();
            low.fold(0, |value, gpa| value << 8 | u64::from(guest::pattern(*gpa)))
        });
        let stored = gprs[0].to_le_bytes();
        plan.attempts.push(Attempt {
            name: form.name,
            mode: *mode,
            linear: real,
            rip,
            end,
            gprs,
            outcome: Outcome::Exactly(fault),
            loads: read.filter(|_| form.result == Wanted::Load),
            writes: bytes.filter(|_| write).unwrap_or_default(),
            stores: (form.result == Wanted::Store).then(|| stored[..form.len].to_vec()),
        });
    }
}

fn plan(space: &Space, addresses: &[u64], user: bool) -> Plan {
    let mut plan = Plan::default();
    for (n, mode) in modes::all().iter().enumerate() {
        for form in FEW {
            // FS and GS have bases for which other addresses are of interest.
            let step = if mode.segment == Segment::None { 7 + n % 3 } else { 5 };
            let mut at: Vec<u64> = every(addresses, step).collect();
            if mode.base.is_none() && mode.index.is_none() {
                let base = if mode.segment == Segment::Fs { modes::FS_BASE } else { 0 };
                at.extend([base, base + 0x123, 0xffff_ffff_ffff_fff0, 0xffff_ffff_ffff_fffc]);
                at.extend([CODE + 0x30_0000, CODE + 0x7fff_fff0, 0x50_0ffc, 0x50_2ffc]);
            }
            plan_form(&mut plan, space, form, mode, &at, user);
        }
    }
    for form in FEW {
        plan_form(&mut plan, space, form, &PLAIN, addresses, user);
        // Across pages at each offset.
        for page in [0x50_1000, 0x50_3000, 0x56_1000, 0x56_3000] {
            let at: Vec<u64> = (page - 64..=page).collect();
            plan_form(&mut plan, space, form, &PLAIN, &at, user);
        }
    }
    for (n, form) in MANY.iter().enumerate() {
        let some: Vec<u64> = every(&addresses[n % 3..], 3).collect();
        let mut at: Vec<u64> = some.iter().map(|a| a & !(form.aligned as u64 - 1)).collect();
        at.extend(every(addresses, 29));
        plan_form(&mut plan, space, form, &PLAIN, &at, user);
    }
    special::plan(&mut plan, space, &every(addresses, 2).collect::<Vec<_>>(), user);
    plan
}

/// Sets each attempt up when the one before has trapped.
struct Runner<'p> {
    vm: Arc<dyn Vm>,
    plan: &'p Plan,
    what: String,
    /// Each is made twice: the second finds the TLB as the first left it.
    at: usize,
    digests: Vec<u64>,
    /// Instructions that the guest does not have.
    missing: HashSet<&'static str>,
    before: Vec<u8>,
    now: Vec<u8>,
    failures: Vec<String>,
}

impl Runner<'_> {
    fn check(&mut self, attempt: &Attempt, got: Option<Fault>, regs: &vcpu_state::Regs) {
        let mut fail = |why: String| {
            let Attempt { name, mode, linear, gprs, .. } = attempt;
            self.failures.push(format!(
                "{} {name} at {linear:#x}, {mode:x?}: {why}\n  from {gprs:x?}\n  to {regs:x?}",
                self.what
            ));
        };
        match attempt.outcome {
            Outcome::Exactly(fault) if got != fault => fail(format!("{got:x?} for {fault:x?}")),
            Outcome::IfAny(Some(fault)) if got != Some(fault) => {
                fail(format!("{got:x?} for {fault:x?}"));
            }
            _ => {}
        }
        if let (None, Some(value)) = (got, attempt.loads)
            && regs.gpr[0] != value
        {
            fail(format!("RAX is not {value:#x}"));
        }
        let loose = !matches!(attempt.outcome, Outcome::Exactly(_));
        // What strayed elsewhere is found a little later.
        let looks = loose || !attempt.writes.is_empty() || self.at.is_multiple_of(64);
        if looks {
            self.vm.memory().read(DATA_GPA, &mut self.now).unwrap();
        }
        let now = &self.now[..];
        let mut hasher = DefaultHasher::new();
        (got.map(|f| (f.vector, f.error, f.address)), regs.gpr, regs.rip).hash(&mut hasher);
        let page = PAGE as usize;
        let pages = self.before.chunks(page).zip(now.chunks(page)).enumerate();
        for (number, (before, now)) in pages.filter(|(_, (a, b))| looks && a != b) {
            (number, now).hash(&mut hasher);
            let base = DATA_GPA + (number * page) as u64;
            let changed = before.iter().zip(now).zip(base..).filter(|((a, b), _)| a != b);
            let allowed = |gpa| loose || got.is_none() && attempt.writes.contains(&gpa);
            if let Some((_, gpa)) = changed.into_iter().find(|(_, gpa)| !allowed(*gpa)) {
                fail(format!("wrote {gpa:#x}"));
            }
            self.vm.memory().write(base, before).unwrap();
        }
        if let (None, Some(bytes)) = (got, &attempt.stores) {
            let stored = attempt.writes.iter().map(|gpa| now[(gpa - DATA_GPA) as usize]);
            if !stored.eq(bytes.iter().copied()) {
                fail("another value is stored".into());
            }
        }
        self.digests.push(hasher.finish());
    }

    fn begin(&self, regs: &mut vcpu_state::Regs) -> Flow {
        let Some(attempt) = self.plan.attempts.get(self.at / 2) else { return Flow::Stop };
        if self.failures.len() > 20 {
            return Flow::Stop;
        }
        regs.gpr = attempt.gprs;
        regs.rip = attempt.rip & !(SLOT - 1);
        regs.rflags = 2 | if self.at % 4 < 2 { 0x801 } else { 0x44 };
        Flow::Continue
    }
}

impl VcpuHost for Runner<'_> {
    fn pio_in(&mut self, _: u16, _: usize, data: &mut [u8]) -> Flow {
        data.fill(0x5a);
        Flow::Continue
    }
    fn pio_out(&mut self, _: u16, _: usize, _: &[u8]) -> Flow {
        Flow::Continue
    }
    fn mmio_read(&mut self, _: u64, data: &mut [u8]) -> Flow {
        data.fill(0xff);
        Flow::Continue
    }
    fn mmio_write(&mut self, _: u64, _: &[u8]) -> Flow {
        Flow::Continue
    }
    fn pending(&self) -> Option<Pending> {
        None
    }
    fn ack(&mut self, _: Pending) -> Option<u8> {
        None
    }
    fn tsc(&mut self) -> u64 {
        0
    }

    fn trap(&mut self, trap: Trap, cpu: &mut dyn CpuView) -> Flow {
        let Cause::Exception(exception) = trap.cause else { panic!("{trap:?}") };
        let regs = *cpu.regs();
        // The first trap is of the UD2 that the vCPU begins with.
        if let Some(n) = self.at.checked_sub(1)
            && let Some(attempt) = self.plan.attempts.get(n / 2)
        {
            let ended = exception.vector == UD && regs.rip == attempt.end;
            let address = if exception.vector == 14 { exception.payload } else { 0 };
            let error = exception.error.unwrap_or(0);
            let got = (!ended).then_some(Fault { vector: exception.vector, error, address });
            if exception.vector == UD && regs.rip == attempt.rip {
                self.missing.insert(attempt.name);
            } else if self.missing.contains(attempt.name) {
                self.failures.push(format!("{} is missing at times", attempt.name));
            } else {
                self.check(attempt, got, &regs);
            }
        }
        let flow = self.begin(cpu.regs());
        self.at += 1;
        flow
    }
}

/// Instructions that guests need not have: the host may be without them.
pub const OPTIONAL: &[&str] = &["movdiri", "clwb", "movdir64b", "prefetchw", "clflushopt"];

pub fn attempt_all() {
    let space = Space::new();
    let intercepts = Intercepts { exceptions: !0, ..Intercepts::default() };
    let engines = guest::engines();
    let guests: Vec<_> = engines
        .iter()
        .map(|(name, engine)| {
            let vm = guest::vm(engine, &space, intercepts);
            let vcpu = vm.create_vcpu(0).unwrap();
            (*name, vm, vcpu)
        })
        .collect();
    // The host's own addresses are those of the vCPUs, too.
    let addresses = addresses(&space);
    let mut guests = guests;
    for user in [false, true] {
        let plan = plan(&space, &addresses, user);
        let mut all: Vec<Vec<u64>> = Vec::new();
        for (name, vm, vcpu) in &mut guests {
            let begin = CODE_LEN - PAGE;
            vm.memory().write(CODE_GPA, &plan.code).unwrap();
            vm.memory().write(CODE_GPA + begin, &[0x0f, 0x0b]).unwrap();
            let mut state = guest::state(user);
            state.regs.rip = CODE + begin;
            vcpu.set_state(&state).unwrap();
            let mut runner = Runner {
                vm: vm.clone(),
                plan: &plan,
                what: format!("{name}, {}:", if user { "ring 3" } else { "ring 0" }),
                at: 0,
                digests: Vec::new(),
                missing: HashSet::new(),
                before: guest::patterned(),
                now: guest::patterned(),
                failures: Vec::new(),
            };
            let exit = vcpu.run(&mut runner).unwrap();
            assert_eq!(exit, Exit::Stopped, "{}", runner.what);
            assert!(runner.failures.is_empty(), "{}", runner.failures.join("\n"));
            assert_eq!(runner.at, 2 * plan.attempts.len() + 1);
            let must = runner.missing.iter().find(|name| !OPTIONAL.contains(name));
            assert_eq!(must, None);
            println!("{} {} attempts, missing {:?}", runner.what, runner.at, runner.missing);
            if *name == "translated" && std::is_x86_feature_detected!("bmi2") {
                let entries = vcpu.stats().get("translated code", "entries");
                let Some(engine::stats::Value::Count(entries)) = entries else { panic!() };
                assert!(entries as usize > plan.attempts.len(), "{entries} entries");
            }
            all.push(runner.digests);
        }
        let pairs = all[0].iter().zip(&all[1]);
        let differs = pairs.enumerate().find(|(_, (a, b))| a != b).map(|(n, _)| n);
        assert!(all[0].len() == all[1].len());
        assert_eq!(differs, None, "{:?}", differs.map(|n| digest_name(&plan, n)));
    }
}

fn digest_name(plan: &Plan, n: usize) -> String {
    let attempt = &plan.attempts[(n / 2).min(plan.attempts.len() - 1)];
    let Attempt { name, linear, mode, gprs, rip, end, .. } = attempt;
    let code = &plan.code[(rip - CODE) as usize..(end - CODE) as usize];
    format!("near {name} at {linear:#x} {mode:?} from {gprs:x?}, code {code:02x?}")
}

/// Makes one attempt twice and stops.
struct Twice<'a>(&'a Attempt, usize, Option<u8>);

impl VcpuHost for Twice<'_> {
    fn pio_in(&mut self, _: u16, _: usize, data: &mut [u8]) -> Flow {
        data.fill(0x5a);
        Flow::Continue
    }
    fn pio_out(&mut self, _: u16, _: usize, _: &[u8]) -> Flow {
        Flow::Continue
    }
    fn mmio_read(&mut self, _: u64, data: &mut [u8]) -> Flow {
        data.fill(0xff);
        Flow::Continue
    }
    fn mmio_write(&mut self, _: u64, _: &[u8]) -> Flow {
        Flow::Continue
    }
    fn pending(&self) -> Option<Pending> {
        None
    }
    fn ack(&mut self, _: Pending) -> Option<u8> {
        None
    }
    fn tsc(&mut self) -> u64 {
        0
    }
    fn trap(&mut self, trap: Trap, cpu: &mut dyn CpuView) -> Flow {
        self.1 += 1;
        if self.1 == 2 {
            let Cause::Exception(exception) = trap.cause else { panic!("{trap:?}") };
            self.2 = Some(exception.vector);
            return Flow::Stop;
        }
        let regs = cpu.regs();
        (regs.gpr, regs.rip) = (self.0.gprs, self.0.rip & !(SLOT - 1));
        regs.rflags = 2;
        Flow::Continue
    }
}

/// Sequences, after each of which all state is compared between the ways of execution.
pub fn attempt_sequences() {
    let space = Space::new();
    let intercepts = Intercepts { exceptions: !0, ..Intercepts::default() };
    let engines = guest::engines();
    let guests = engines.iter().map(|(_, engine)| {
        let vm = guest::vm(engine, &space, intercepts);
        let vcpu = vm.create_vcpu(0).unwrap();
        (vm, vcpu)
    });
    let mut guests: Vec<_> = guests.collect();
    let addresses = addresses(&space);
    for user in [false, true] {
        let mut plan = Plan::default();
        sequences::plan(&mut plan, &space, &addresses);
        for (vm, _) in &guests {
            vm.memory().write(CODE_GPA, &plan.code).unwrap();
        }
        for (n, attempt) in plan.attempts.iter().enumerate() {
            let mut states = Vec::new();
            for (vm, vcpu) in &mut guests {
                vm.memory().write(DATA_GPA, &guest::patterned()).unwrap();
                let mut state = guest::state(user);
                state.regs.gpr = attempt.gprs;
                state.regs.rip = attempt.rip & !(SLOT - 1);
                vcpu.set_state(&state).unwrap();
                let mut host = Twice(attempt, 0, None);
                assert_eq!(vcpu.run(&mut host).unwrap(), Exit::Stopped);
                let mut state = vcpu.state().unwrap();
                state.regs.rflags &= !x86_defs::rflags::STATUS;
                let mut memory = guest::patterned();
                vm.memory().read(DATA_GPA, &mut memory).unwrap();
                states.push((host.2, state, memory));
            }
            let what = || format!("{user} {}", digest_name(&plan, 2 * n));
            let (first, others) = states.split_first().unwrap();
            for second in others {
                assert_eq!((first.0, &first.1.regs), (second.0, &second.1.regs), "{}", what());
                assert!(first.2 == second.2, "memory, {}", what());
                let areas = first.1.fpu.area.iter().zip(&second.1.fpu.area).enumerate();
                let fpu = areas.into_iter().find(|(_, (a, b))| a != b);
                assert_eq!(fpu, None, "{}", what());
                assert!(first.1 == second.1, "state, {}", what());
            }
        }
        println!("{} sequences", plan.attempts.len());
    }
}
