//! Which engines this host offers, and which one a VM gets.

use std::env;

use engine_kvm::{HostKvm, probe};
use machine::engines::{Kind, open_for};
use vm_spec::{EngineChoice, VmSpec};

use crate::Failure;

/// An engine that was decided for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Kvm,
    Translate,
}

impl Engine {
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Translate => "translate",
        }
    }
}

fn remedy(kvm: HostKvm) -> &'static str {
    match kvm {
        HostKvm::Missing => "load the module kvm_intel or kvm_amd, or use --engine translate",
        HostKvm::NotPermitted => {
            "join the group that owns /dev/kvm (often `kvm`), or use --engine translate"
        }
        HostKvm::SoftwareOnly => {
            "use --engine translate, or --force-kvm for a guest that is made for it"
        }
        HostKvm::Hardware => "nothing is to be done",
    }
}

/// What was decided, and what the operator should know of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Choice {
    pub engine: Engine,
    pub notice: Option<String>,
}

/// Decides for an engine. `forced` says that the operator wants even a software KVM;
/// `built_in`, that the guest is one of ours, which asks less of it than a stock kernel.
pub fn choose(
    wanted: EngineChoice,
    kvm: HostKvm,
    forced: bool,
    built_in: bool,
) -> Result<Choice, Failure> {
    let choice = |engine, notice| Ok(Choice { engine, notice });
    match (wanted, kvm) {
        (EngineChoice::Translate, _) => choice(Engine::Translate, None),
        (_, HostKvm::Hardware) => choice(Engine::Kvm, None),
        (EngineChoice::Auto, _) => {
            choice(Engine::Translate, Some(format!("engine translate: {}", kvm.reason())))
        }
        (EngineChoice::Kvm, HostKvm::SoftwareOnly) if forced || built_in => {
            choice(Engine::Kvm, Some(format!("engine kvm: {}", kvm.reason())))
        }
        (EngineChoice::Kvm, _) => {
            Err(Failure::host(format!("--engine kvm: {}; {}", kvm.reason(), remedy(kvm))))
        }
    }
}

/// Opens the engine that was decided for, as the VM wants it.
pub fn open(engine: Engine, spec: &VmSpec) -> Result<Box<dyn engine::Engine>, Failure> {
    let (kind, advice) = match engine {
        Engine::Kvm => (Kind::Kvm, "; use --engine translate"),
        Engine::Translate => (Kind::Translate, ""),
    };
    open_for(kind, spec)
        .map_err(|e| Failure::host(format!("engine {}: {e}{advice}", engine.name())))
}

/// Whether the environment forces a software KVM, as `--force-kvm` does.
pub fn forced_by_environment() -> bool {
    env::var_os("SARANG_SOFTWARE_KVM").is_some_and(|value| value == "1")
}

/// `sarang engines`.
pub fn print_table() {
    print!("{}", table(probe()));
}

fn table(kvm: HostKvm) -> String {
    let usable = if kvm == HostKvm::Hardware { "yes" } else { "no" };
    let default = match choose(EngineChoice::Auto, kvm, false, false) {
        Ok(choice) => choice.engine,
        Err(_) => Engine::Translate,
    };
    let mut text = String::from("ENGINE     USABLE  AUTO  WHY\n");
    for (engine, usable, why) in [
        (Engine::Kvm, usable, kvm.reason()),
        (Engine::Translate, "yes", "software, on any x86-64-v2 host"),
    ] {
        let auto = if engine == default { "*" } else { "" };
        text.push_str(&format!("{:<9}  {usable:<6}  {auto:<4}  {why}\n", engine.name()));
    }
    if kvm != HostKvm::Hardware {
        text.push_str(&format!("\nFor kvm: {}.\n", remedy(kvm)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use HostKvm::*;

    #[test]
    fn auto_takes_hardware_and_else_says_why_not() {
        let auto = |kvm| choose(EngineChoice::Auto, kvm, false, false).unwrap();
        assert_eq!(auto(Hardware), Choice { engine: Engine::Kvm, notice: None });
        for kvm in [Missing, NotPermitted, SoftwareOnly] {
            let choice = auto(kvm);
            assert_eq!(choice.engine, Engine::Translate);
            assert!(choice.notice.unwrap().contains(kvm.reason()));
        }
    }

    #[test]
    fn a_software_kvm_is_refused_unless_forced() {
        let kvm = |kvm, forced, built_in| choose(EngineChoice::Kvm, kvm, forced, built_in);
        assert!(kvm(SoftwareOnly, false, false).is_err());
        assert!(kvm(SoftwareOnly, true, false).unwrap().notice.is_some());
        assert!(kvm(SoftwareOnly, false, true).unwrap().notice.is_some());
        assert!(kvm(Hardware, false, false).unwrap().notice.is_none());
        // What is not there cannot be forced.
        assert!(kvm(Missing, true, true).is_err());
        assert!(kvm(NotPermitted, true, true).is_err());
    }

    #[test]
    fn translate_is_never_replaced() {
        for kvm in [Missing, NotPermitted, SoftwareOnly, Hardware] {
            let choice = choose(EngineChoice::Translate, kvm, true, true).unwrap();
            assert_eq!(choice, Choice { engine: Engine::Translate, notice: None });
        }
    }

    #[test]
    fn the_table_marks_the_default_and_gives_reasons() {
        let text = table(NotPermitted);
        assert!(text.contains("kvm        no            this user may not open /dev/kvm"));
        assert!(text.contains("translate  yes     *"), "{text}");
        let text = table(Hardware);
        assert!(text.contains("kvm        yes     *"), "{text}");
    }
}
