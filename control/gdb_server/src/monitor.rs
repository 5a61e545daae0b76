//! GDB's `monitor` command.

use crate::target::Target;
use gdbstub::{
    outputln,
    target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd},
};
use machine::Gone;

const HELP: &str = "\
info             the machine
reset            as the reset button does; the machine stays paused
powerdown        presses the ACPI power button
nmi              an NMI for every vCPU
xp ADDRESS [LEN] physical memory, in hexadecimal";

const LONGEST: usize = 1024;

impl MonitorCmd for Target {
    fn handle_monitor_cmd(&mut self, command: &[u8], out: ConsoleOutput<'_>) -> Result<(), Gone> {
        let command = String::from_utf8_lossy(command);
        let words: Vec<&str> = command.split_ascii_whitespace().collect();
        self.monitor(&words, out)
    }
}

impl Target {
    fn monitor(&mut self, words: &[&str], mut out: ConsoleOutput<'_>) -> Result<(), Gone> {
        match words {
            ["info"] => outputln!(out, "{}", self.handle.info()?.to_string().trim_end()),
            ["reset"] => {
                self.handle.reset()?;
                self.forget_states();
                outputln!(out, "reset");
            }
            ["powerdown"] => self.handle.power_button()?,
            ["nmi"] => {
                self.handle.nmi()?;
            }
            ["xp", address] => self.dump(address, "64", &mut out),
            ["xp", address, len] => self.dump(address, len, &mut out),
            _ => outputln!(out, "{HELP}"),
        }
        Ok(())
    }

    fn dump(&self, address: &str, len: &str, out: &mut ConsoleOutput<'_>) {
        let (Some(address), Some(len)) = (number(address), number(len)) else {
            outputln!(out, "xp takes numbers");
            return;
        };
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(LONGEST).min(LONGEST)];
        if self.handle.memory().read(address, &mut bytes).is_err() {
            outputln!(out, "there is no memory at {address:#x}");
            return;
        }
        for (row, chunk) in bytes.chunks(16).enumerate() {
            let hex: Vec<String> = chunk.iter().map(|b| format!("{b:02x}")).collect();
            outputln!(out, "{:016x}: {}", address.wrapping_add(16 * row as u64), hex.join(" "));
        }
    }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!((number("0x1f"), number("31"), number("1f")), (Some(31), Some(31), None));
        assert_eq!(number("0x10000000000000000"), None);
    }
}
