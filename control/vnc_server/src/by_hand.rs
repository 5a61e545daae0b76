//! One client's session without threads and sockets: for tests that give it any bytes.

use crate::{
    auth::Password,
    client::{self, Painter},
    handshake,
    input::Hands,
    picture::Picture,
    server::Wishes,
    wire::{self, Message},
};
use display::{Frame, Seat};
use std::io::{self, Read, Write};

/// Serves what comes from the stream to its end; the screen is drawn after each message.
///
/// # Errors
/// When the stream ends, or says what is no message.
pub fn session(
    stream: &mut (impl Read + Write),
    password: Option<&Password>,
    seat: &Seat,
) -> io::Result<()> {
    let (mut picture, mut frame) = (Picture::default(), Frame::default());
    seat.render(&mut frame);
    picture.update(&mut frame);
    handshake::perform(stream, password, "vm", picture.size())?;
    let (mut hands, mut wishes) = (Hands::new(seat.clone()), Wishes::default());
    let mut painter = Painter::new(picture.size());
    let (mut pixels, mut bytes) = (Vec::new(), Vec::new());
    loop {
        match wire::message(stream)? {
            Message::Key { down, keysym } => hands.key(keysym, down),
            Message::ExtendedKey { down, keysym, code } => hands.scan_code(keysym, code, down),
            Message::Pointer { buttons, x, y } => {
                let moves = wishes.encodings.pointer_motion && !seat.is_absolute();
                hands.point(buttons, x, y, picture.size(), moves);
            }
            Message::CutText => {}
            message => wishes.wish(message),
        }
        seat.render(&mut frame);
        picture.update(&mut frame);
        while let Some(update) = painter.take(&mut wishes, &picture, || seat.is_absolute()) {
            client::begin(&update, &mut bytes)?;
            for part in &update.parts {
                picture.copy(*part, &mut pixels);
                painter.encode(*part, &pixels, &update.wishes, &mut bytes)?;
            }
            stream.write_all(&bytes)?;
            bytes.clear();
        }
    }
}
