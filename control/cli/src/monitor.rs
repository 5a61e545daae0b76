//! The monitor: what an operator can ask of a running machine, at a prompt.

use machine::Place;

/// The machine has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// What the CPUs have done since the machine was built, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    pub interrupts: u64,
    /// Instructions, where the engine counts them.
    pub retired: Option<u64>,
}

/// What an operator may do to a machine, from any thread.
pub trait Control: Send + Sync {
    fn info(&self) -> Result<String, Gone>;
    fn stats(&self) -> Result<String, Gone>;
    fn pause(&self) -> Result<(), Gone>;
    fn resume(&self) -> Result<(), Gone>;
    fn reset(&self) -> Result<(), Gone>;
    fn power_button(&self) -> Result<(), Gone>;
    fn sleep_button(&self) -> Result<String, Gone>;
    fn wake(&self) -> Result<String, Gone>;
    fn nmi(&self) -> Result<(), Gone>;
    fn quit(&self) -> Result<(), Gone>;
    fn activity(&self) -> Result<Activity, Gone>;
    /// Lets the guest have so many CPUs; what came of it.
    fn set_cpus(&self, count: u32) -> Result<String, Gone>;
    fn cpus_info(&self) -> Result<String, Gone>;
    /// Gives the guest so many bytes of memory in all; what came of it.
    fn set_memory(&self, bytes: u64) -> Result<String, Gone>;
    fn memory_info(&self) -> Result<String, Gone>;
    /// Leaves the guest with so many bytes of its memory; what came of it.
    fn balloon(&self, bytes: u64) -> Result<String, Gone>;
    fn balloon_info(&self) -> Result<String, Gone>;
    /// Writes a picture of the screen to this file; what came of it.
    fn screendump(&self, file: &str) -> String;
    /// Presses these keys together; what came of it.
    fn send_keys(&self, chord: &str) -> String;
    /// Adds a device, told as its option would: its kind and what follows; what came of it.
    fn device_add(&self, kind: &str, option: &str) -> Result<String, Gone>;
    /// Puts a disc into a CD drive, or takes out what there is.
    fn disc(&self, drive: Place, file: Option<&str>) -> Result<String, Gone>;
    /// Asks the guest to let go of what is behind a port, or takes a SCSI unit away.
    fn device_remove(&self, place: Place) -> Result<String, Gone>;
    /// What is behind each port.
    fn devices(&self) -> Result<String, Gone>;
    /// The operator's terminal has another size.
    fn resize(&self, columns: u16, rows: u16) -> Result<(), Gone>;
}

pub const PROMPT: &str = "(sarang) ";

/// The keys' help, on the guest's terminal.
pub const KEYS: &str = "\
Ctrl-A x       quit at once
Ctrl-A c       monitor prompt, and back
Ctrl-A h       this help
Ctrl-A Ctrl-A  send Ctrl-A to the guest
";

const HELP: &str = "\
info       what the machine is and does
stats      what was counted so far, for each CPU
cpu N      let the guest have N CPUs in all; needs --cpus N,max=M
info cpus  what each CPU does, and which the guest has
memory N   give the guest N MiB of memory in all, or 2G; needs --memory SIZE,max=SIZE
info memory   how much it has, and may have
balloon N  leave the guest with N MiB of its memory, or with 1G; it gives the rest back
info balloon  how much it has given, and what it says of its memory
device add disk FILE[,readonly][,serial=TEXT]   put a disk behind a free port
device add disk FILE,bus=scsi[,..]              or, with bus=scsi or scsi-cd, on the SCSI adapter
device add net user[,mac=..][,forward=..]       a network card
device add rng                                  an entropy device
device add scsi                                 a SCSI adapter, if there is none
device add vsock PATH[,cid=N]                   sockets, if there are none
device add balloon                              a balloon, if there is none
device add keyboard                             a keyboard, which gets the keys from then on
device add tablet                               a pointer that takes places
device add channel NAME=unix:PATH|pty|file:PATH a port with a name, as --channel makes one
device remove N    ask the guest to let go of what is behind port N
device remove T:L  take unit L of target T from the SCSI adapter
device change T:L FILE  put a disc into a CD drive of the SCSI adapter
device eject T:L   take the disc out
device list        what is behind each port, and the units of the SCSI adapter
pause      stop all CPUs
resume     let them run again
reset      press the reset button
powerdown  press the power button: the guest is asked to power off
sleep      press the sleep button; a Xen PV guest is asked to suspend itself
wake       let a Xen PV guest go on that has, or was asked to
nmi        send a non-maskable interrupt to every CPU
screendump FILE  write a picture of the screen, as PNG
sendkey KEYS  press keys together, such as ctrl-alt-delete, a or ret
quit       end the machine without asking the guest
console    back to the guest (so do Ctrl-A c, Ctrl-D and an empty line)
";

/// What follows a line typed at the prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Show this, and the prompt again.
    Text(String),
    /// Back to the guest's console.
    Leave,
}

/// Carries out one line.
pub fn execute(line: &str, control: &dyn Control) -> Answer {
    let done = |result: Result<(), Gone>, text: &str| match result {
        Ok(()) => Answer::Text(text.into()),
        Err(Gone) => Answer::Text("the machine has ended\n".into()),
    };
    let shown = |text: Result<String, Gone>| match text {
        Ok(text) => Answer::Text(text),
        Err(gone) => done(Err(gone), ""),
    };
    match line.trim() {
        "" | "console" | "c" => Answer::Leave,
        "help" | "h" | "?" => Answer::Text(HELP.into()),
        "info" | "i" => shown(control.info()),
        "stats" => shown(control.stats()),
        "pause" | "stop" => done(control.pause(), "paused\n"),
        "resume" | "cont" => done(control.resume(), "running\n"),
        "reset" => done(control.reset(), "reset\n"),
        "powerdown" => done(control.power_button(), "the power button was pressed\n"),
        "sleep" => shown(control.sleep_button()),
        "wake" => shown(control.wake()),
        "nmi" => done(control.nmi(), "sent\n"),
        "quit" | "q" => done(control.quit(), ""),
        other if other.split_whitespace().next() == Some("device") => {
            let words: Vec<&str> = other.split_whitespace().skip(1).collect();
            match (words.as_slice(), words.get(1).and_then(|place| place.parse().ok())) {
                (["list"], _) => shown(control.devices()),
                (["add", kind], _) => shown(control.device_add(kind, "")),
                (["add", kind, option], _) => shown(control.device_add(kind, option)),
                (["change", _, file], Some(drive)) => shown(control.disc(drive, Some(file))),
                (["eject", _], Some(drive)) => shown(control.disc(drive, None)),
                (["remove", _], Some(place)) => shown(control.device_remove(place)),
                _ => Answer::Text(
                    "device: add, remove, change, eject or list; `help` tells how\n".into(),
                ),
            }
        }
        "info cpus" => shown(control.cpus_info()),
        other if other.split_whitespace().next() == Some("cpu") => {
            match other.trim_start_matches("cpu").trim().parse() {
                Ok(count) => shown(control.set_cpus(count)),
                Err(_) => Answer::Text("cpu: give a number of CPUs, such as 2\n".into()),
            }
        }
        "info memory" => shown(control.memory_info()),
        other if other.split_whitespace().next() == Some("memory") => {
            match memory_size(other.trim_start_matches("memory").trim()) {
                Some(bytes) => shown(control.set_memory(bytes)),
                None => Answer::Text("memory: give a size, such as 2048 (MiB) or 2G\n".into()),
            }
        }
        "info balloon" => shown(control.balloon_info()),
        other if other.split_whitespace().next() == Some("screendump") => {
            Answer::Text(control.screendump(other.trim_start_matches("screendump").trim()))
        }
        other if other.split_whitespace().next() == Some("sendkey") => {
            Answer::Text(control.send_keys(other.trim_start_matches("sendkey").trim()))
        }
        other if other.split_whitespace().next() == Some("balloon") => {
            match memory_size(other.trim_start_matches("balloon").trim()) {
                Some(bytes) => shown(control.balloon(bytes)),
                None => Answer::Text("balloon: give a size, such as 256 (MiB) or 1G\n".into()),
            }
        }
        other => Answer::Text(format!("no command {:?}; `help` lists them\n", other)),
    }
}

/// A size in MiB, or with a unit; whole MiB.
fn memory_size(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit());
    let text = if plain { format!("{text}M") } else { text.into() };
    vm_spec::parse_memory(&text).ok()
}

/// What a key at the prompt comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// Show this.
    Echo(String),
    /// A line is complete.
    Line(String),
    /// Back to the console.
    Leave,
}

/// The line being typed: the terminal is raw, so echo and erasure are ours.
#[derive(Debug, Default)]
pub struct Editor {
    line: String,
    escaped: bool,
}

impl Editor {
    pub fn key(&mut self, byte: u8) -> Key {
        const LINE_MAX: usize = 200;
        if std::mem::take(&mut self.escaped) {
            return match byte {
                b'c' | b'C' => Key::Leave,
                b'x' | b'X' => Key::Line("quit".into()),
                _ => Key::Echo(String::new()),
            };
        }
        match byte {
            crate::escape::ESCAPE => {
                self.escaped = true;
                Key::Echo(String::new())
            }
            b'\r' | b'\n' => Key::Line(std::mem::take(&mut self.line)),
            // Ctrl-C and Ctrl-U throw the line away.
            0x03 | 0x15 => {
                let erase = "\x08 \x08".repeat(self.line.len());
                self.line.clear();
                Key::Echo(erase)
            }
            0x04 if self.line.is_empty() => Key::Leave,
            0x08 | 0x7f => {
                let erased = self.line.pop();
                Key::Echo(if erased.is_some() { "\x08 \x08".into() } else { String::new() })
            }
            b' '..=b'~' if self.line.len() < LINE_MAX => {
                self.line.push(char::from(byte));
                Key::Echo(char::from(byte).to_string())
            }
            _ => Key::Echo(String::new()),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Remembers what was asked of it.
    #[derive(Debug, Default)]
    pub struct Recorder(pub Mutex<Vec<&'static str>>);

    impl Recorder {
        fn add(&self, what: &'static str) -> Result<(), Gone> {
            self.0.lock().unwrap().push(what);
            Ok(())
        }
    }

    impl Control for Recorder {
        fn info(&self) -> Result<String, Gone> {
            Ok("state running\n".into())
        }
        fn stats(&self) -> Result<String, Gone> {
            Ok("exits 3\n".into())
        }
        fn pause(&self) -> Result<(), Gone> {
            self.add("pause")
        }
        fn resume(&self) -> Result<(), Gone> {
            self.add("resume")
        }
        fn reset(&self) -> Result<(), Gone> {
            self.add("reset")
        }
        fn power_button(&self) -> Result<(), Gone> {
            self.add("power button")
        }
        fn sleep_button(&self) -> Result<String, Gone> {
            self.add("sleep button").map(|()| "pressed\n".into())
        }
        fn wake(&self) -> Result<String, Gone> {
            self.add("wake").map(|()| "awake\n".into())
        }
        fn nmi(&self) -> Result<(), Gone> {
            self.add("nmi")
        }
        fn screendump(&self, file: &str) -> String {
            format!("wrote {file}\n")
        }
        fn send_keys(&self, chord: &str) -> String {
            format!("sent {chord}\n")
        }
        fn quit(&self) -> Result<(), Gone> {
            Err(Gone)
        }
        fn activity(&self) -> Result<Activity, Gone> {
            Err(Gone)
        }
        fn set_cpus(&self, count: u32) -> Result<String, Gone> {
            Ok(format!("{count} in all\n"))
        }
        fn cpus_info(&self) -> Result<String, Gone> {
            Ok("all run\n".into())
        }
        fn set_memory(&self, bytes: u64) -> Result<String, Gone> {
            Ok(format!("{} MiB in all\n", bytes >> 20))
        }
        fn memory_info(&self) -> Result<String, Gone> {
            Ok("fixed\n".into())
        }
        fn balloon(&self, bytes: u64) -> Result<String, Gone> {
            Ok(format!("{} MiB\n", bytes >> 20))
        }
        fn balloon_info(&self) -> Result<String, Gone> {
            Ok("flat\n".into())
        }
        fn device_add(&self, kind: &str, option: &str) -> Result<String, Gone> {
            Ok(format!("{kind} {option}\n"))
        }
        fn disc(&self, drive: Place, file: Option<&str>) -> Result<String, Gone> {
            Ok(format!("{file:?} in {drive}\n"))
        }
        fn device_remove(&self, place: Place) -> Result<String, Gone> {
            Ok(format!("from {place}\n"))
        }
        fn devices(&self) -> Result<String, Gone> {
            Ok("none\n".into())
        }
        fn resize(&self, _: u16, _: u16) -> Result<(), Gone> {
            self.add("resize")
        }
    }

    #[test]
    fn every_command_reaches_the_machine() {
        let machine = Recorder::default();
        for line in ["pause", " resume ", "reset", "powerdown", "sleep", "wake", "nmi"] {
            assert!(matches!(execute(line, &machine), Answer::Text(t) if !t.is_empty()));
        }
        let told = ["pause", "resume", "reset", "power button", "sleep button", "wake", "nmi"];
        assert_eq!(*machine.0.lock().unwrap(), told);
        assert_eq!(execute("info", &machine), Answer::Text("state running\n".into()));
        assert_eq!(execute("stats", &machine), Answer::Text("exits 3\n".into()));
        assert_eq!(execute("quit", &machine), Answer::Text("the machine has ended\n".into()));
        assert_eq!(execute("screendump a b", &machine), Answer::Text("wrote a b\n".into()));
        assert_eq!(execute("sendkey ctrl-a", &machine), Answer::Text("sent ctrl-a\n".into()));
        assert_eq!(execute("", &machine), Answer::Leave);
        assert!(matches!(execute("help", &machine), Answer::Text(t) if t == HELP));
        assert!(matches!(execute("fly", &machine), Answer::Text(t) if t.contains("help")));
    }

    #[test]
    fn the_balloon_takes_sizes() {
        let machine = Recorder::default();
        let says = |line: &str| match execute(line, &machine) {
            Answer::Text(text) => text,
            Answer::Leave => String::new(),
        };
        assert_eq!(says("balloon 100"), "100 MiB\n");
        assert_eq!(says("balloon  1G"), "1024 MiB\n");
        assert_eq!(says("info balloon"), "flat\n");
        assert_eq!(says("memory 2G"), "2048 MiB in all\n");
        assert_eq!(says("info memory"), "fixed\n");
        assert!(says("memory").contains("give a size"));
        for wrong in ["balloon", "balloon -1", "balloon x", "balloon 1 2", "balloon 3M5"] {
            assert!(says(wrong).contains("give a size"), "{wrong}");
        }
        assert_eq!((says("cpu  3"), says("info cpus")), ("3 in all\n".into(), "all run\n".into()));
        for wrong in ["cpu", "cpu x", "cpu -1", "cpu 1 2", "cpu 4294967296"] {
            assert!(says(wrong).contains("give a number"), "{wrong}");
        }
        assert!(says("balloons").contains("no command"));
        assert_eq!(says("device  add disk a.img,readonly"), "disk a.img,readonly\n");
        assert_eq!(says("device add rng"), "rng \n");
        assert_eq!(says("device remove 3"), "from 3\n");
        assert_eq!(says("device remove 0:12"), "from 0:12\n");
        assert_eq!(says("device change 0:1 a.iso"), "Some(\"a.iso\") in 0:1\n");
        assert_eq!(says("device eject 1:0"), "None in 1:0\n");
        assert_eq!(says("device list"), "none\n");
        for wrong in ["device", "device add", "device remove", "device remove x", "device fly"] {
            assert!(says(wrong).contains("`help`"), "{wrong}");
        }
    }

    fn type_in(editor: &mut Editor, keys: &[u8]) -> (String, Vec<Key>) {
        let mut echo = String::new();
        let mut rest = Vec::new();
        for &byte in keys {
            match editor.key(byte) {
                Key::Echo(text) => echo.push_str(&text),
                other => rest.push(other),
            }
        }
        (echo, rest)
    }

    #[test]
    fn lines_can_be_edited() {
        let (echo, keys) = type_in(&mut Editor::default(), b"inx\x7ffo\r");
        assert_eq!(echo, "inx\x08 \x08fo");
        assert_eq!(keys, [Key::Line("info".into())]);
        let (_, keys) = type_in(&mut Editor::default(), b"reset\x03\r");
        assert_eq!(keys, [Key::Line(String::new())]);
        let (echo, keys) = type_in(&mut Editor::default(), b"\x7f\x1b\x80");
        assert_eq!((echo.as_str(), keys.len()), ("", 0));
    }

    #[test]
    fn there_are_ways_out() {
        assert_eq!(type_in(&mut Editor::default(), b"\x01c").1, [Key::Leave]);
        assert_eq!(type_in(&mut Editor::default(), b"\x04").1, [Key::Leave]);
        assert_eq!(type_in(&mut Editor::default(), b"\x01x").1, [Key::Line("quit".into())]);
        assert_eq!(type_in(&mut Editor::default(), &[b'a'; 1000]).0.len(), 200);
    }
}
