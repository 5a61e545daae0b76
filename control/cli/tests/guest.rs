//! Runs of the built-in guest: how they end, and what carries the console.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio},
    time::Duration,
};

/// Longer than any run takes, so that a hanging one ends.
const LIMIT: &str = "60s";

fn sarang(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sarang"));
    command.args(["run", "--engine", "translate", "--built-in", "--memory", "32M"]).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(args: &[&str]) -> Output {
    let child = sarang(args).args(["--timeout", LIMIT]).stdin(Stdio::null()).spawn().unwrap();
    child.wait_with_output().unwrap()
}

/// A guest that waits for commands, with its console on pipes.
struct Talk {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
}

impl Talk {
    fn start(args: &[&str]) -> Self {
        let mut child = sarang(args).args(["--timeout", LIMIT]).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, input, output }
    }

    fn say(&mut self, bytes: &[u8]) {
        self.input.write_all(bytes).unwrap();
    }

    fn expect(&mut self, words: &str) -> String {
        expect(&mut self.output, words)
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// The exit status, and what was said on standard error.
    fn end(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().unwrap().code();
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status, said)
    }
}

/// Reads until the text holds the words.
fn expect(from: &mut impl Read, words: &str) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(words.as_bytes()) {
        let n = from.read(&mut byte).unwrap();
        assert_eq!(n, 1, "no {words:?} in {}", String::from_utf8_lossy(&text));
        text.push(byte[0]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn scratch(name: &str) -> PathBuf {
    env::temp_dir().join(format!("sarang-guest-{name}-{}", std::process::id()))
}

#[test]
fn what_was_counted_is_told_at_the_end() {
    let args = ["--append", "run=info;smp", "--cpus", "2", "--code-cache", "4M"];
    let without = run(&args);
    assert!(!String::from_utf8_lossy(&without.stderr).contains("exits by cause"));
    let child = sarang(&args).args(["--stats", "--perf-map", "--timeout", LIMIT]).spawn().unwrap();
    let map = format!("/tmp/perf-{}.map", child.id());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let row = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(name));
        let numbers = line.unwrap_or_else(|| panic!("no {name:?} in {said}")).split_whitespace();
        numbers.map(|n| n.parse().unwrap()).collect::<Vec<u64>>()
    };
    let exits = row("  port accesses");
    assert!(exits.len() == 3 && exits[0] == exits[1] + exits[2] && exits[1] > 0, "{exits:?}");
    let text = fs::read_to_string(&map).unwrap();
    fs::remove_file(&map).unwrap();
    if !std::is_x86_feature_detected!("bmi2") {
        return;
    }
    let blocks = row("  blocks translated")[0];
    let hot = |line: &&str| line.contains(" guest_") && !line.ends_with("_cold");
    let names = text.lines().filter(hot).count() as u64;
    assert_eq!(names, blocks, "{text}");
}

#[test]
fn ends_and_their_statuses() {
    for (args, status, words) in [
        (&["--append", "run=echo hello"][..], 0, ""),
        (&["--append", "run=triple-fault"], 4, "sarang: guest: a triple fault ended it"),
    ] {
        let out = run(args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(status), "{args:?}: {said}");
        assert!(said.contains(words), "{args:?}: {said}");
    }
    let out = run(&["--append", "run=echo hello;echo again"]);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.contains("hello") && text.contains("again"), "{text}");
    assert!(out.stderr.is_empty(), "nothing is said of a good run");
}

#[test]
fn a_limit_of_time_ends_it() {
    let mut child = sarang(&["--timeout", "300ms"]).spawn().unwrap();
    // The pipe is kept open, so that it is not the end of input that ends the run.
    let input = child.stdin.take();
    let out = child.wait_with_output().unwrap();
    drop(input);
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(5), "{said}");
    assert!(said.contains("sarang: --timeout 0.3s: the guest was still running; "), "{said}");
}

#[test]
fn the_escape_sequence_and_the_monitor() {
    let mut talk = Talk::start(&[]);
    talk.expect("\n> ");
    talk.say(b"echo a\x01\x01b\r");
    talk.expect("\nab\r\n");
    talk.say(b"\x01h");
    talk.expect("quit at once");
    talk.say(b"\x01c");
    talk.expect("(sarang) ");
    talk.say(b"info\r");
    let info = talk.expect("(sarang) ");
    assert!(info.contains("translate") && info.contains("32 MiB"), "{info}");
    talk.say(b"pause\rinfo\r");
    talk.expect("paused\r\n(sarang) ");
    assert!(talk.expect("(sarang) ").contains("paused"));
    // What is typed while the machine is paused waits for it.
    talk.say(b"\recho later\r\x01cresume\r\r");
    talk.expect("later");
    talk.say(b"\x01creset\r\r");
    talk.expect("Sarang micro-guest");
    talk.say(b"\x01x");
    assert_eq!(talk.end().0, Some(6));
}

#[test]
fn the_end_of_input_ends_nothing() {
    let mut talk = Talk::start(&[]);
    talk.expect("\n> ");
    let Talk { child, input, output } = &mut talk;
    input.write_all(b"echo last words; poweroff\r").unwrap();
    expect(output, "last words");
    // A new pipe in its place: the guest's end is closed by that.
    drop(std::mem::replace(
        input,
        Command::new("cat").stdin(Stdio::piped()).spawn().unwrap().stdin.unwrap(),
    ));
    std::thread::sleep(Duration::from_millis(200));
    assert!(child.try_wait().unwrap().is_none(), "it goes on");
    talk.signal("TERM");
    talk.signal("TERM");
    let _ = talk.child.kill();
}

#[test]
fn a_second_signal_quits() {
    let mut talk = Talk::start(&[]);
    talk.expect("\n> ");
    talk.signal("TERM");
    let mut said = BufReader::new(talk.child.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert!(line.contains("asking the guest to power down"), "{line}");
    talk.signal("TERM");
    assert_eq!(talk.child.wait().unwrap().code(), Some(6));
}

#[test]
fn the_console_in_a_file_is_appended() {
    let path = scratch("file");
    fs::write(&path, "before\n").unwrap();
    let console = format!("file:{}", path.display());
    let out = run(&["--console", &console, "--append", "run=echo hello"]);
    assert_eq!(out.status.code(), Some(0));
    assert!(out.stdout.is_empty());
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("before\n") && text.contains("hello"), "{text}");
    fs::remove_file(&path).unwrap();
}

#[test]
fn the_console_on_a_socket_takes_one_client_after_another() {
    let path = scratch("socket");
    let console = format!("unix:{}", path.display());
    let talk = Talk::start(&["--console", &console]);
    let connect = || loop {
        match UnixStream::connect(&path) {
            Ok(stream) => break prompt(stream),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    for words in ["first", "second"] {
        let mut client = connect();
        client.write_all(format!("echo {words}\r").as_bytes()).unwrap();
        // Once as echo, once as output.
        expect(&mut client, words);
        expect(&mut client, words);
    }
    let mut client = connect();
    client.write_all(b"poweroff\r").unwrap();
    assert_eq!(talk.end().0, Some(0));
    assert!(!path.exists(), "the socket is removed");
}

/// Presses return until the guest answers: what it says while nobody is connected is lost.
fn prompt(mut stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    loop {
        stream.write_all(b"\r").unwrap();
        let mut bytes = [0; 256];
        match stream.read(&mut bytes) {
            Ok(n) if bytes[..n].contains(&b'>') => break,
            _ => {}
        }
    }
    stream.set_read_timeout(None).unwrap();
    stream
}

#[test]
fn the_console_on_a_pseudo_terminal() {
    let mut talk = Talk::start(&["--console", "pty"]);
    let mut said = BufReader::new(talk.child.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    let path = line.trim().strip_prefix("sarang: the console is ").unwrap().to_string();
    let mut terminal = fs::File::options().read(true).write(true).open(path).unwrap();
    // Before the guest listens, what is typed may be lost, as on any serial line.
    expect(&mut terminal, "\n> ");
    terminal.write_all(b"echo hello\r").unwrap();
    expect(&mut terminal, "hello");
    expect(&mut terminal, "hello");
    terminal.write_all(b"poweroff\r").unwrap();
    assert_eq!(talk.child.wait().unwrap().code(), Some(0));
}

#[test]
fn no_console_at_all() {
    let out = run(&["--console", "none", "--append", "run=echo hello"]);
    assert_eq!((out.status.code(), out.stdout.len()), (Some(0), 0));
}

#[test]
fn what_crosses_the_seam_is_written_down() {
    let path = scratch("trace");
    let trace = format!("exits,exceptions:{}", path.display());
    let out = run(&["--trace", &trace, "--append", "run=triple-fault"]);
    assert_eq!(out.status.code(), Some(4));
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.lines().count() > 100 && text.contains("vcpu0"), "{}", text.len());
    fs::remove_file(&path).unwrap();
}

#[test]
fn a_pipe_can_be_a_kernel() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sarang"))
        .args(["run", "--engine", "translate", "--memory", "32M", "--timeout", LIMIT])
        .args(["--kernel", "/dev/stdin", "--append", "run=echo hello", "--console", "none"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(microguest::GUEST).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
