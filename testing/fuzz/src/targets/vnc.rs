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
struct Changing {
    turn: AtomicU32,
    size: (u16, u16),
    resizes: bool,
}

impl Screen for Changing {
    fn render(&self, frame: &mut Frame) {
        let turn = self.turn.fetch_add(1, SeqCst);
        let wide = self.resizes && turn % 8 > 4;
        let (width, height) = self.size;
        frame.resize(if wide { 200 } else { width }, height);
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

/// Screens whose last tiles are narrow, or low.
const SIZES: [(u16, u16); 6] = [(130, 70), (65, 70), (129, 65), (67, 64), (3, 1), (68, 129)];
/// Raw, ZRLE, and those that are no pictures.
const ENCODINGS: [i32; 7] = [0, 16, 16, 16, -223, -257, -258];

/// Messages that are in order, or nearly.
fn messages(input: &mut Input<'_>) -> Vec<u8> {
    let mut sends = Vec::new();
    while !input.is_empty() && sends.len() < 0x1000 {
        match input.u8() & 15 {
            // SetPixelFormat (RFC 6143, 7.5.1): those that clients have.
            0 | 1 => {
                let (bits, depth, most, shifts) = input.pick(&[
                    (32u8, 24u8, [255u16; 3], [16u8, 8, 0]),
                    (32, 24, [255; 3], [24, 16, 8]),
                    (16, 16, [31, 63, 31], [11, 5, 0]),
                    (16, 15, [31; 3], [10, 5, 0]),
                    (8, 8, [7, 7, 3], [0, 3, 6]),
                ]);
                sends.extend([0, 0, 0, 0, bits, depth, input.u8() & 1, 1]);
                sends.extend(most.iter().flat_map(|most| most.to_be_bytes()));
                sends.extend(shifts);
                sends.extend([0; 3]);
            }
            // SetEncodings (7.5.2).
            2 | 3 => {
                let count = 1 + (input.u8() & 3);
                sends.extend([2, 0, 0, count]);
                (0..count).for_each(|_| sends.extend(input.pick(&ENCODINGS).to_be_bytes()));
            }
            // FramebufferUpdateRequest (7.5.3): all of it, or a part.
            4..=11 => {
                sends.extend([3, input.u8() & 1]);
                let places = match input.u8() & 3 {
                    0 | 1 => [0, 0, 256, 256],
                    _ => [0, 0, 0, 0].map(|_: u16| u16::from(input.u8())),
                };
                sends.extend(places.iter().flat_map(|place| place.to_be_bytes()));
            }
            12 => sends.extend([[4, input.u8() & 1, 0, 0], input.u32().to_be_bytes()].concat()),
            13 => sends.extend([5, input.u8(), 0, input.u8(), 0, input.u8()]),
            14 => {
                let text = input.some(40);
                sends.extend([[6, 0, 0, 0], (text.len() as u32).to_be_bytes()].concat());
                sends.extend(text);
            }
            _ => sends.extend(input.some(20)),
        }
    }
    sends
}

/// The first byte says what the seat is, whether the client begins with a good handshake, and whether
/// what follows are messages or bytes; the next one how large the screen is.
pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let what = input.u8();
    let size = input.pick(&SIZES);
    let screen = (what & 0x10 == 0)
        .then(|| Changing { turn: 0.into(), size, resizes: what & 1 != 0 })
        .map(|screen| Arc::new(screen) as Arc<dyn Screen>);
    let pointer = Arc::new(Deaf(what & 2 != 0));
    let seat = Seat::new(screen, vec![Arc::new(Deaf(false))], vec![pointer]);
    let password = (what & 0xc == 0xc).then(|| Password::new(b"secret").expect("a password"));
    let mut sends = if what & 0x20 == 0 { b"RFB 003.008\n\x01\x01".to_vec() } else { Vec::new() };
    if what & 0x40 == 0 {
        sends.extend(messages(&mut input));
    }
    sends.extend(input.rest());
    let mut client = Client(&sends, 0);
    drop(vnc_server::by_hand::session(&mut client, password.as_ref(), &seat));
}
