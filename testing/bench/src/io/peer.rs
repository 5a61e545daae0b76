//! The other end of the stream, on the host: see `guest/s_io.c`.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    thread,
};

/// What the stream repeats.
const STREAM: usize = 1 << 20;
const SEED: u64 = 4711;
/// What a caller says first.
const READS: u8 = b'R';
const WRITES: u8 = b'W';

/// Serves all who call, as long as this process lives; the port.
pub fn start() -> io::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let stream = stream();
    thread::spawn(move || {
        for caller in listener.incoming().flatten() {
            let stream = stream.clone();
            // A caller that reads goes when it has enough.
            thread::spawn(move || drop(serve(caller, &stream)));
        }
    });
    Ok(port)
}

fn serve(mut caller: TcpStream, stream: &[u8]) -> io::Result<()> {
    let mut what = [0];
    caller.read_exact(&mut what)?;
    match what {
        [READS] => loop {
            caller.write_all(stream)?;
        },
        [WRITES] => {
            let came = take(&mut caller, stream)?;
            caller.write_all(&came.to_le_bytes())
        }
        _ => Ok(()),
    }
}

/// How many bytes come up to the end; none if one of them is wrong.
fn take(caller: &mut impl Read, stream: &[u8]) -> io::Result<u64> {
    let (mut buffer, mut at, mut right) = (vec![0; 1 << 16], 0, true);
    loop {
        let n = caller.read(&mut buffer)?;
        if n == 0 {
            return Ok(if right { at } else { 0 });
        }
        let mut rest = &buffer[..n];
        while !rest.is_empty() {
            let want = &stream[at as usize % stream.len()..];
            let (now, later) = rest.split_at(rest.len().min(want.len()));
            right &= want.starts_with(now);
            at += now.len() as u64;
            rest = later;
        }
    }
}

/// The same numbers as the guest's.
fn stream() -> Vec<u8> {
    let mut state = SEED;
    let next = |_| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(2_685_821_657_736_338_717)
    };
    (0..STREAM / 8).map(next).flat_map(u64::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_what_it_is_to_be() {
        let stream = stream();
        let mut twice = [&stream[..], &stream[..1000]].concat();
        assert_eq!(take(&mut &twice[..], &stream).unwrap(), twice.len() as u64);
        twice[STREAM + 7] ^= 1;
        assert_eq!(take(&mut &twice[..], &stream).unwrap(), 0);
    }

    #[test]
    fn callers_read_and_write() {
        let (port, stream) = (start().unwrap(), stream());
        let call = |what| {
            let mut caller = TcpStream::connect(("127.0.0.1", port)).unwrap();
            caller.write_all(&[what]).unwrap();
            caller
        };
        let mut got = vec![0; STREAM + 5];
        call(READS).read_exact(&mut got).unwrap();
        assert!(got[..STREAM] == stream && got[STREAM..] == stream[..5]);
        let mut caller = call(WRITES);
        caller.write_all(&got).unwrap();
        caller.shutdown(std::net::Shutdown::Write).unwrap();
        let mut came = [0; 8];
        caller.read_exact(&mut came).unwrap();
        assert_eq!(u64::from_le_bytes(came), got.len() as u64);
    }
}
