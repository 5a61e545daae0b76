//! What a VNC client sends: the handshake, messages, and how it is served.

use crate::input::Input;
use display::{Frame, Key, Keyboard, Pointer, PointerEvent, Screen, Seat};
use std::{
    io::{self, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
};
use vnc_server::Password;

/// What a client sends, and how much it was sent.
struct Client<'a>(&'a [u8], usize);

impl Read for Client<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out)
    }
}

/// More than it can ask for in one input; without an end, a few bytes would ask for gigabytes.
const SENT_MAX: usize = 64 << 20;

impl Write for Client<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1 += bytes.len();
        if self.1 > SENT_MAX { Err(io::ErrorKind::WriteZero.into()) } else { Ok(bytes.len()) }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A screen that changes a little, and sometimes its size.
struct Changing(AtomicU32, bool);

impl Screen for Changing {
    fn render(&self, frame: &mut Frame) {
        let turn = self.0.fetch_add(1, SeqCst);
        let wide = self.1 && turn % 8 > 4;
        frame.resize(if wide { 200 } else { 130 }, 70);
        for (row, pixels) in (0u32..).zip(frame.rows_mut()) {
            for (column, pixel) in (0u32..).zip(pixels) {
                *pixel = match column {
                    0..=63 => (row * column).wrapping_mul(0x9e37_79b1) >> 8,
                    64..=127 => column % 3 * 0x40_4040,
                    _ => turn / 2,
                };
            }
        }
    }
}

struct Deaf(bool);

impl Keyboard for Deaf {
    fn listens(&self) -> bool {
        true
    }
    fn key(&self, _: Key, _: bool) {}
}

impl Pointer for Deaf {
    fn listens(&self) -> bool {
        true
    }
    fn is_absolute(&self) -> bool {
        self.0
    }
    fn point(&self, event: PointerEvent) {
        assert!(event.x <= PointerEvent::END && event.y <= PointerEvent::END);
    }
}

/// The first byte says what the seat is and whether the client begins with a good handshake.
pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let what = input.u8();
    let seat = Seat {
        screen: (what & 0x10 == 0)
            .then(|| Arc::new(Changing(0.into(), what & 1 != 0)) as Arc<dyn Screen>),
        keyboards: vec![Arc::new(Deaf(false))],
        pointers: vec![Arc::new(Deaf(what & 2 != 0))],
    };
    let password = (what & 0xc == 0xc).then(|| Password::new(b"secret").expect("a password"));
    let mut sends = if what & 0x20 == 0 { b"RFB 003.008\n\x01\x01".to_vec() } else { Vec::new() };
    sends.extend(input.rest());
    let mut client = Client(&sends, 0);
    drop(vnc_server::by_hand::session(&mut client, password.as_ref(), &seat));
}
