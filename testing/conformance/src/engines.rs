//! The engines of this host.

use cpu_model::{CpuModel, CpuidTable, Options, best_model, resolve};
use engine::{Engine, Error};
use engine_kvm::{HostKvm, KvmEngine};
use engine_translate::{Translate, Translation, Windowing};

/// What the software KVM does not execute at ring 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacks {
    /// Paging outside long mode.
    PagedProtectedMode,
    /// INT n and INT3.
    SoftwareInterrupts,
    /// x87, MMX and SSE instructions.
    FloatingPoint,
    /// Local APICs that keep an interrupt in service until its EOI.
    InService,
    /// Anything else, by name.
    Other(&'static str),
}

/// One engine, and what a test may ask of it.
pub struct UnderTest {
    engine: Box<dyn Engine>,
    software: bool,
}

impl std::fmt::Debug for UnderTest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::ops::Deref for UnderTest {
    type Target = dyn Engine;

    fn deref(&self) -> &Self::Target {
        &*self.engine
    }
}

impl UnderTest {
    /// True, with a line that says so, where this is the software KVM, which lacks that.
    pub fn skips(&self, what: Lacks) -> bool {
        if self.software {
            println!("skipped on the software KVM, which lacks: {what:?}");
        }
        self.software
    }

    /// The CPUID table of the best named model, for one vCPU.
    pub fn cpuid(&self) -> CpuidTable {
        let supported = &self.caps().cpuid;
        let model = best_model(supported)
            .unwrap_or_else(|| CpuModel::named("host").expect("the list has it"));
        let options = Options {
            vcpus: 2,
            tsc_khz: self.caps().tsc_khz,
            apic_khz: 1_000_000,
            ..Options::default()
        };
        resolve(&model, supported, &options).expect("it is the best that there is")
    }
}

fn kvm() -> Result<UnderTest, Error> {
    let engine = Box::new(KvmEngine::open()?);
    Ok(UnderTest { engine, software: engine_kvm::probe() == HostKvm::SoftwareOnly })
}

/// Every engine that this host offers; why one is missing is printed.
pub fn engines() -> Vec<UnderTest> {
    let mut engines = Vec::new();
    match kvm() {
        Ok(kvm) => engines.push(kvm),
        Err(e) => println!("without kvm: {e}"),
    }
    match Translate::new() {
        Ok(engine) => engines.push(UnderTest { engine: Box::new(engine), software: false }),
        Err(e) => println!("without translate: {e}"),
    }
    // Everything is translated at once, in little memory.
    match Translate::new() {
        Ok(engine) => {
            let windows = Windowing::Eager;
            let all = Translation::default();
            let how = Translation { code_memory: 1 << 20, hot: 0, windows, ..all };
            let engine = engine.with_translation(how);
            engines.push(UnderTest { engine: Box::new(engine), software: false });
        }
        Err(e) => println!("without translate: {e}"),
    }
    engines
}

/// The software engine, which translates blocks that have run so often.
pub fn translated(hot: u32) -> Result<UnderTest, Error> {
    let how = Translation { hot, ..Translation::default() };
    let engine = Box::new(Translate::new()?.with_translation(how));
    Ok(UnderTest { engine, software: false })
}

/// Runs a case on every engine; the name is told if it fails.
pub fn each_engine(case: impl Fn(&UnderTest)) {
    for engine in engines() {
        let name = engine.name();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(&engine)));
        if let Err(panic) = result {
            eprintln!("it failed on engine {name}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// From each engine to each, itself included.
pub fn each_pair(case: impl Fn(&UnderTest, &UnderTest)) {
    each_engine(|a| {
        for b in engines() {
            let run = std::panic::AssertUnwindSafe(|| case(a, &b));
            if let Err(panic) = std::panic::catch_unwind(run) {
                eprintln!("it failed from {} to {}", a.name(), b.name());
                std::panic::resume_unwind(panic);
            }
        }
    });
}
