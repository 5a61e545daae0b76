//! Reads what a disk boots in a process of its own.
//!
//! Whoever wrote the file system may have made it so that who reads it needs more memory or time than
//! there is, or stumbles. A child has limits for both, and nothing to lose: it knows the disk only by
//! asking its parent for bytes of it, and is believed no more than the disk is.
//!
//! The child asks on its standard output and is answered on its standard input. Numbers are 8 bytes,
//! little-endian:
//!
//! | from | bytes |
//! |---|---|
//! | child | `R`, offset, length: bytes of the disk |
//! | parent | 0 and the bytes, or 1: they cannot be read |
//! | child | `F`, and four times length and bytes: kernel, initrd, command line, description |
//! | child | `E`, length and text: why there is nothing |

use crate::{BootFiles, Error, KERNEL_MAX};
use disk::{Disk, Shape};
use rustix::process::{Resource, Rlimit, setrlimit};
use std::{
    io::{self, BufReader, BufWriter, Read, Write},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

/// What the child's program has for its first argument.
pub const ARGUMENT: &str = "__read-boot-files";

/// Bytes of an initrd.
const INITRD_MAX: u64 = 1 << 30;
/// Bytes of a command line, a description and a reason.
const TEXT_MAX: u64 = 64 << 10;
/// Bytes of the disk that are asked for at once.
const PIECE: usize = 1 << 20;
/// Bytes of memory beside the files.
const MEMORY: u64 = 512 << 20;
/// Seconds of a processor.
const TIME: u64 = 20;

const READ: u8 = b'R';
const FOUND: u8 = b'F';
const NOTHING: u8 = b'E';

fn put(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(&(bytes.len() as u64).to_le_bytes())?;
    to.write_all(bytes)
}

fn number(from: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn take(from: &mut impl Read, most: u64) -> io::Result<Vec<u8>> {
    let length = number(from)?;
    if length > most {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::new();
    from.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == length { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn text(from: &mut impl Read) -> io::Result<String> {
    let text = String::from_utf8_lossy(&take(from, TEXT_MAX)?).into_owned();
    // It goes to a terminal, and into a log.
    Ok(text.replace(|c: char| c.is_control(), "?"))
}

/// As [`crate::read`], by a child that runs `program`, whose `main` calls [`serve`] where its first
/// argument is [`ARGUMENT`].
pub fn read_by(
    program: &Path,
    disk: &Arc<dyn Disk>,
    room: u64,
    name: &str,
) -> Result<BootFiles, Error> {
    let size = disk.shape().bytes.to_string();
    let mut child = Command::new(program)
        .args([ARGUMENT, &size, &room.to_string(), name])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(Error::Process)?;
    let answered = answer(&mut child, &**disk, room);
    // It has said what it had to say, or nonsense, or nothing any more.
    let _ = child.kill();
    let _ = child.wait();
    answered.unwrap_or(Err(Error::GaveUp))
}

/// Answers a child until it has a result. `Err`: it ended, or does not keep to what was agreed.
fn answer(child: &mut Child, disk: &dyn Disk, room: u64) -> io::Result<Result<BootFiles, Error>> {
    let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
    let mut to = BufWriter::with_capacity(2 * PIECE, child.stdin.take().ok_or_else(gone)?);
    let mut from = BufReader::new(child.stdout.take().ok_or_else(gone)?);
    let mut buffer = vec![0; PIECE];
    loop {
        let mut kind = [0];
        from.read_exact(&mut kind)?;
        match kind[0] {
            READ => {
                let (offset, length) = (number(&mut from)?, number(&mut from)?);
                let length = usize::try_from(length).map_err(|_| gone())?;
                let piece = buffer.get_mut(..length).ok_or_else(gone)?;
                match disk.read(offset, piece) {
                    Ok(()) => {
                        to.write_all(&[0])?;
                        to.write_all(piece)?;
                    }
                    Err(_) => to.write_all(&[1])?,
                }
                to.flush()?;
            }
            FOUND => {
                let kernel = take(&mut from, room.min(KERNEL_MAX))?;
                let initrd = take(&mut from, room.min(INITRD_MAX))?;
                let initrd = Some(initrd).filter(|bytes| !bytes.is_empty());
                let (command_line, description) = (text(&mut from)?, text(&mut from)?);
                return Ok(Ok(BootFiles { kernel, initrd, command_line, description }));
            }
            NOTHING => return Ok(Err(Error::Said(text(&mut from)?))),
            _ => return Err(gone()),
        }
    }
}

/// The disk, as the child has it.
struct Asked {
    bytes: u64,
    /// One question at a time.
    ends: Mutex<(io::Stdin, io::Stdout)>,
}

impl Asked {
    fn ask(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let (from, to) = &mut *ends;
        for (piece, at) in data.chunks_mut(PIECE).zip((offset..).step_by(PIECE)) {
            let mut request = [0; 17];
            request[0] = READ;
            request[1..9].copy_from_slice(&at.to_le_bytes());
            request[9..].copy_from_slice(&(piece.len() as u64).to_le_bytes());
            to.write_all(&request)?;
            to.flush()?;
            let mut status = [0];
            from.read_exact(&mut status)?;
            if status != [0] {
                return Err(io::Error::other("the disk cannot be read there"));
            }
            from.read_exact(piece)?;
        }
        Ok(())
    }
}

impl Disk for Asked {
    fn shape(&self) -> Shape {
        Shape { read_only: true, ..Shape::of_bytes(self.bytes) }
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), disk::Error> {
        self.shape().check(offset, data.len() as u64)?;
        self.ask(offset, data).map_err(|source| disk::Error::Io { call: "read", source })
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), disk::Error> {
        Err(disk::Error::ReadOnly)
    }

    fn flush(&self) -> Result<(), disk::Error> {
        Ok(())
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> Result<(), disk::Error> {
        Err(disk::Error::ReadOnly)
    }
}

/// Is the child, with the arguments behind [`ARGUMENT`].
pub fn serve(arguments: impl Iterator<Item = String>) -> ExitCode {
    match serve_with(&arguments.collect::<Vec<_>>()) {
        Some(()) => ExitCode::SUCCESS,
        None => ExitCode::FAILURE,
    }
}

fn serve_with(arguments: &[String]) -> Option<()> {
    let [size, room, name] = arguments else { return None };
    let (bytes, room) = (size.parse().ok()?, room.parse::<u64>().ok()?);
    // A file is in memory twice while it is handed over.
    let files = room.min(KERNEL_MAX) + room.min(INITRD_MAX);
    for (what, most) in
        [(Resource::As, MEMORY + 2 * files), (Resource::Cpu, TIME), (Resource::Core, 0)]
    {
        setrlimit(what, Rlimit { current: Some(most), maximum: Some(most) }).ok()?;
    }
    let ends = Mutex::new((io::stdin(), io::stdout()));
    let asked = Arc::new(Asked { bytes, ends });
    let disk: Arc<dyn Disk> = asked.clone();
    let found = crate::read(&disk, room, name);
    let mut ends = asked.ends.lock().unwrap_or_else(PoisonError::into_inner);
    let to = &mut ends.1;
    match found {
        Ok(BootFiles { kernel, initrd, command_line, description }) => {
            to.write_all(&[FOUND]).ok()?;
            for part in [
                &kernel,
                &initrd.unwrap_or_default(),
                command_line.as_bytes(),
                description.as_bytes(),
            ] {
                put(to, part).ok()?;
            }
        }
        Err(why) => {
            to.write_all(&[NOTHING]).ok()?;
            put(to, why.to_string().as_bytes()).ok()?;
        }
    }
    to.flush().ok()
}
