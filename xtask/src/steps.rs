//! Running the steps of a chore one after the other, with their times and one summary.

use std::process::Command;
use std::time::Instant;

/// The steps of one chore: what ran, what failed, what was left out and why.
#[derive(Debug, Default)]
pub struct Steps {
    lines: Vec<String>,
    failed: Vec<String>,
}

impl Steps {
    /// Runs one step; a failure is kept and the next steps still run.
    pub fn run(&mut self, name: &str, step: impl FnOnce() -> Result<(), String>) -> bool {
        println!("\n==> {name}");
        let start = Instant::now();
        let result = step();
        let seconds = start.elapsed().as_secs_f32();
        match &result {
            Ok(()) => self.lines.push(format!("ok      {name} ({seconds:.0} s)")),
            Err(message) => {
                eprintln!("{message}");
                self.lines.push(format!("FAILED  {name} ({seconds:.0} s)"));
                self.failed.push(name.to_owned());
            }
        }
        result.is_ok()
    }

    /// Runs one command as a step.
    pub fn command(&mut self, name: &str, command: &mut Command) -> bool {
        self.run(name, || status(command))
    }

    /// Notes a step that is left out.
    pub fn skip(&mut self, name: &str, why: &str) {
        println!("\n==> {name}: left out, {why}");
        self.lines.push(format!("skipped {name}: {why}"));
    }

    /// Prints the summary; an error when a step failed.
    pub fn finish(self) -> Result<(), String> {
        println!("\nSummary");
        for line in &self.lines {
            println!("  {line}");
        }
        if self.failed.is_empty() {
            Ok(())
        } else {
            Err(format!("failed: {}", self.failed.join(", ")))
        }
    }
}

/// Runs a command with the terminal's own output; an error when it does not succeed.
pub fn status(command: &mut Command) -> Result<(), String> {
    let shown = format!("{:?}", command.get_program());
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{shown}: {status}")),
        Err(e) => Err(format!("{shown}: {e}")),
    }
}
