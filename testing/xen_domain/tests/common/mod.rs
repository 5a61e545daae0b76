//! A stock kernel in a domain, and its shell.

#![allow(dead_code, reason = "each test file uses a part")]

use std::{sync::Arc, time::Duration};
use testkit::guest_files;
use xen_domain::{By, Domain, Start};
use xen_front::Backend;

/// Hosts are shared.
pub const LONG: Duration = Duration::from_secs(300);
pub const POWEROFF: u32 = 0;
const PROMPT: &str = "# ";

pub struct Guest {
    pub domain: Domain,
    at: usize,
}

impl Guest {
    /// A guest at its shell; `None` where the kernel cannot be fetched.
    pub fn boot(
        package: &str,
        vcpus: u32,
        memory: u64,
        backends: &[Arc<dyn Backend>],
    ) -> Option<Self> {
        if cfg!(debug_assertions) {
            eprintln!("skipped: a debug build would take minutes for a kernel");
            return None;
        }
        let files = guest_files(package)?;
        let start = Start {
            kernel: std::fs::read(&files.kernel).unwrap(),
            initrd: std::fs::read(&files.initrd).unwrap(),
            command_line: "console=hvc0".into(),
            memory: memory << 20,
            vcpus,
            by: By::Translator,
        };
        let domain = Domain::boot_with(&start, backends).unwrap();
        let at = domain.expect("built-in shell", 0, LONG).unwrap();
        let at = domain.expect(PROMPT, at, LONG).unwrap();
        Some(Self { domain, at })
    }

    /// What a command prints that succeeds.
    pub fn says(&mut self, line: &str) -> String {
        // The echo of what is typed has the quotes.
        self.domain.type_in(&format!("{line}; echo \"do\"ne $?\n"));
        let from = self.domain.expect("\n", self.at, LONG).unwrap();
        self.at = self.domain.expect("done ", from, LONG).unwrap();
        self.at = self.domain.expect("\n", self.at, LONG).unwrap();
        let said = self.domain.said();
        let said = said.get(from..self.at).unwrap_or("").replace('\r', "");
        let Some(said) = said.strip_suffix("done 0\n") else { panic!("{line}: {said}") };
        said.into()
    }

    /// The last line of that.
    pub fn value(&mut self, line: &str) -> String {
        self.says(line).lines().last().unwrap_or_default().trim().into()
    }

    pub fn power_off(self) {
        self.domain.type_in("poweroff\n");
        assert_eq!(self.domain.wait(LONG), Some(POWEROFF), "{}", self.domain.said());
    }
}
