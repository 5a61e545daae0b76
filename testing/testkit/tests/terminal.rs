//! A real terminal is left as it was found, whatever ends the run.

use std::process::{Command, Stdio};
use testkit::program;

/// Runs a shell script on a pseudo-terminal of its own (`script` of util-linux); its output,
/// or `None` where there is no such program.
fn on_a_terminal(script: &str) -> Option<String> {
    let out = Command::new("script")
        .args(["--quiet", "--return", "--command", script, "/dev/null"])
        .stdin(Stdio::null())
        .output();
    match out {
        Ok(out) => Some(String::from_utf8_lossy(&out.stdout).replace('\r', "")),
        Err(e) => {
            eprintln!("skipped: script: {e}");
            None
        }
    }
}

/// The settings before and after, and the exit status between them.
fn settings(run: &str) -> Option<(String, String, String)> {
    let program = program().display().to_string();
    let script = format!(
        "echo before=$(stty -g); {}; echo status=$?; echo after=$(stty -g)",
        run.replace("SARANG", &format!("'{program}'"))
    );
    let output = on_a_terminal(&script)?;
    let field = |name: &str| {
        let at = output.rfind(name).map(|at| at + name.len());
        let rest = at.and_then(|at| output.get(at..)).unwrap_or_default();
        rest.lines().next().unwrap_or_default().to_owned()
    };
    Some((field("before="), field("after="), field("status=")))
}

#[test]
fn after_a_power_off() {
    let run = "SARANG run --engine translate --built-in --append run=info";
    let Some((before, after, status)) = settings(run) else { return };
    assert!(!before.is_empty());
    assert_eq!((after, status.as_str()), (before, "0"));
}

#[test]
fn after_a_time_out() {
    let run = "SARANG run --engine translate --built-in --timeout 2s";
    let Some((before, after, status)) = settings(run) else { return };
    assert_eq!((after, status.as_str()), (before, "5"));
}

#[test]
fn after_two_signals() {
    let run = "(sleep 2; pkill -TERM -P $$ sarang; sleep 1; pkill -TERM -P $$ sarang) & \
               SARANG run --engine translate --built-in --timeout 60s";
    let Some((before, after, status)) = settings(run) else { return };
    assert_eq!((after, status.as_str()), (before, "6"));
}
