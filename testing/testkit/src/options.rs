//! What guest to boot.

use std::path::Path;

/// The options of one `sarang run`; what is not set is left to the command's defaults.
#[derive(Debug, Clone)]
pub struct Options {
    engine: String,
    timeout: String,
    console: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
}

impl Default for Options {
    /// The default guest under `$SARANG_TEST_ENGINE`, else `translate`, which runs anywhere.
    fn default() -> Self {
        let engine = std::env::var("SARANG_TEST_ENGINE").unwrap_or_else(|_| "translate".to_owned());
        Self {
            engine,
            // Longer than any test waits: so that nothing outlives a killed test run.
            timeout: "1800s".to_owned(),
            console: "stdio".to_owned(),
            args: Vec::new(),
            env: Vec::new(),
        }
    }
}

impl Options {
    /// Another engine than the default one.
    pub fn engine(mut self, name: &str) -> Self {
        self.engine = name.to_owned();
        self
    }

    /// `--console`, which the test talks to by standard input and output.
    pub fn console(mut self, console: &str) -> Self {
        self.console = console.to_owned();
        self
    }

    /// `--cpus`.
    pub fn cpus(self, count: u32) -> Self {
        self.arg("--cpus", &count.to_string())
    }

    /// `--memory`, as the command line takes it: `512M`.
    pub fn memory(self, size: &str) -> Self {
        self.arg("--memory", size)
    }

    /// `--kernel`.
    pub fn kernel(self, file: &Path) -> Self {
        self.arg("--kernel", &file.to_string_lossy())
    }

    /// `--initrd`.
    pub fn initrd(self, file: &Path) -> Self {
        self.arg("--initrd", &file.to_string_lossy())
    }

    /// `--append`.
    pub fn append(self, text: &str) -> Self {
        self.arg("--append", text)
    }

    /// `--timeout`, as the command line takes it: `30s`.
    pub fn timeout(mut self, time: &str) -> Self {
        self.timeout = time.to_owned();
        self
    }

    /// `--built-in`, with commands that the built-in guest executes before it powers off; none
    /// leave it at its prompt.
    pub fn built_in(self, commands: &str) -> Self {
        let words = if commands.is_empty() { String::new() } else { format!("run={commands}") };
        self.flag("--built-in").append(&words)
    }

    /// An option without a value.
    pub fn flag(mut self, name: &str) -> Self {
        self.args.push(name.to_owned());
        self
    }

    /// Any other option with its value.
    pub fn arg(mut self, name: &str, value: &str) -> Self {
        self.args.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// An environment variable of the command.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn environment(&self) -> &[(String, String)] {
        &self.env
    }

    pub(crate) fn command_line(&self) -> Vec<String> {
        let mut line: Vec<String> = ["run", "--engine", &self.engine, "--timeout", &self.timeout]
            .map(str::to_owned)
            .to_vec();
        line.extend(["--console".to_owned(), self.console.clone()]);
        let has = |names: &[&str]| self.args.iter().any(|arg| names.contains(&&**arg));
        // The default guest, with disks beside it: they alone would be booted from.
        if has(&["--disk", "--cdrom"]) && !has(&["--firmware"]) {
            line.extend(["--firmware", "none"].map(str::to_owned));
        }
        line.extend(self.args.iter().cloned());
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line() {
        let options = Options::default().engine("kvm").timeout("9s").cpus(2).append("quiet x=1");
        assert_eq!(
            options.command_line().join("|"),
            "run|--engine|kvm|--timeout|9s|--console|stdio|--cpus|2|--append|quiet x=1"
        );
    }
}
