//! Every target on its kept corpus and on inputs made at random, without libFuzzer.
//!
//! A file of the corpus that is named after a fault is what found it.

use fuzz::{TARGETS, Target};
use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

/// Inputs for each target beside the corpus; a hundred times as many with `SARANG_LONG=1`.
const RANDOM: u64 = 100;
/// Bytes of an input at most, as for libFuzzer.
const LENGTH: u64 = 2048;

fn folder(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder(target))
        .into_iter()
        .flatten()
        .map(|entry| entry.expect("a folder's entry").path())
        .map(|path| (path.display().to_string(), fs::read(&path).expect("a file")))
        .collect();
    files.sort();
    files
}

/// Marsaglia's xorshift: the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    fn below(&mut self, limit: u64) -> usize {
        (self.next() % limit.max(1)) as usize
    }

    /// One of the corpus with changes, two of it joined, or bytes of noise.
    fn input(&mut self, corpus: &[(String, Vec<u8>)]) -> Vec<u8> {
        let count = corpus.len() as u64;
        let of = |index: usize| corpus.get(index).map(|(_, bytes)| bytes.clone());
        let mut bytes = of(self.below(count)).unwrap_or_default();
        if bytes.is_empty() || self.below(4) == 0 {
            bytes = (0..self.below(LENGTH)).map(|_| self.next() as u8).collect();
        }
        if self.below(3) == 0 {
            let other = of(self.below(count)).unwrap_or_default();
            bytes.truncate(self.below(bytes.len() as u64 + 1));
            bytes.extend(other.iter().skip(self.below(other.len() as u64 + 1)));
        }
        for _ in 0..self.below(8) {
            let at = self.below(bytes.len() as u64);
            let value = match self.below(4) {
                0 => 0,
                1 => 0xff,
                _ => self.next() as u8,
            };
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes.truncate(LENGTH as usize);
        bytes
    }
}

/// Only a hang takes so long.
const LIMIT: Duration = Duration::from_secs(120);

/// What runs, and since when.
static NOW: Mutex<Option<(Instant, &Target, Vec<u8>)>> = Mutex::new(None);

/// Keeps an input that failed, and says where.
fn keep(target: &Target, data: &[u8]) -> String {
    let file = std::env::temp_dir().join(format!("sarang-fuzz-{}", target.name));
    match fs::write(&file, data) {
        Ok(()) => format!("it is in {}", file.display()),
        Err(e) => format!("{}: {e}", file.display()),
    }
}

/// Ends the program when an input hangs.
fn watch() {
    thread::spawn(|| {
        loop {
            thread::sleep(Duration::from_secs(1));
            let now = NOW.lock().expect("no panic");
            if let Some((_, target, data)) = now.as_ref().filter(|now| now.0.elapsed() > LIMIT) {
                eprintln!("{} hangs on an input: {}", target.name, keep(target, data));
                std::process::abort();
            }
        }
    });
}

fn survives(target: &'static Target, what: &str, data: &[u8]) {
    *NOW.lock().expect("no panic") = Some((Instant::now(), target, data.to_vec()));
    if catch_unwind(AssertUnwindSafe(|| target.run(data))).is_err() {
        panic!("{} failed on {what}: {}", target.name, keep(target, data));
    }
}

/// One thread after the other: a panic of any thread is counted as the running target's.
#[test]
fn targets_survive_their_corpus_and_noise() {
    watch();
    let times = if std::env::var_os("SARANG_LONG").is_some() { 100 } else { 1 };
    for target in TARGETS {
        let corpus = corpus(target);
        assert!(!corpus.is_empty(), "{} has no corpus", target.name);
        for (name, data) in &corpus {
            survives(target, name, data);
        }
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for index in 0..RANDOM * times {
            let data = random.input(&corpus);
            survives(target, &format!("random input {index}"), &data);
        }
    }
    *NOW.lock().expect("no panic") = None;
}

/// A file in a folder of a target that is not there is never run.
#[test]
fn every_folder_of_the_corpus_has_its_target() {
    let folders = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus"));
    for entry in folders.expect("the corpus") {
        let name = entry.expect("a folder's entry").file_name().to_string_lossy().into_owned();
        assert!(Target::find(&name).is_some(), "corpus/{name} is of no target");
    }
}
