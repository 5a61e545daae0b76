//! What the monitor prompt does with the guest's screen and keyboard.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use display::{Frame, Key, Seat, parse_chord};

use crate::report;

const NO_SCREEN: &str = "the machine has no screen; start it with --display\n";
const NO_KEYBOARD: &str =
    "the machine has no keyboard; start it with --display or --input, or `device add keyboard`\n";
/// So many keys may be pressed together.
const CHORD_MAX: usize = 16;

/// Writes what the screen shows to a PNG file; what came of it.
pub fn dump(seat: &Seat, path: &str) -> String {
    if seat.screen.is_none() {
        return NO_SCREEN.into();
    }
    if path.is_empty() {
        return "screendump: give the name of a PNG file to write\n".into();
    }
    let mut frame = Frame::default();
    seat.render(&mut frame);
    let size = format!("{} x {} pixels\n", frame.width(), frame.height());
    match write_png(&frame, Path::new(path)) {
        Ok(()) => format!("wrote {path}, {size}"),
        Err(error) => format!("screendump: {path}: {}\n", report::os_reason(&error)),
    }
}

fn write_png(frame: &Frame, path: &Path) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut encoder = png::Encoder::new(&mut file, frame.width().into(), frame.height().into());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    let pixel = |pixel: &u32| {
        let [_, r, g, b] = pixel.to_be_bytes();
        [r, g, b]
    };
    let bytes: Vec<u8> = frame.pixels().iter().flat_map(pixel).collect();
    writer.write_image_data(&bytes)?;
    writer.finish()?;
    file.flush()
}

/// Presses keys together and lets them go in the other order; what came of it.
pub fn send_keys(seat: &Seat, chord: &str) -> String {
    if !seat.has_keyboard() {
        return NO_KEYBOARD.into();
    }
    let keys: Vec<Key> = match parse_chord(chord) {
        Ok(keys) if keys.len() <= CHORD_MAX => keys,
        Ok(_) => return format!("sendkey: press at most {CHORD_MAX} keys together\n"),
        Err(unknown) => {
            return format!("sendkey: {unknown}; give names such as ctrl-alt-delete, a or ret\n");
        }
    };
    keys.iter().for_each(|key| seat.key(*key, true));
    keys.iter().rev().for_each(|key| seat.key(*key, false));
    "sent\n".into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use display::{Keyboard, Screen};
    use std::sync::{Arc, Mutex};

    #[derive(Default)]
    struct Guest(Mutex<Vec<(u16, bool)>>);

    impl Screen for Guest {
        fn render(&self, frame: &mut Frame) {
            frame.resize(3, 2);
            frame.rows_mut().for_each(|row| row.copy_from_slice(&[0x01_0203, 0, 0xff_ffff]));
        }
    }

    impl Keyboard for Guest {
        fn listens(&self) -> bool {
            true
        }
        fn key(&self, key: Key, down: bool) {
            self.0.lock().unwrap().push((key.code(), down));
        }
    }

    fn seat() -> (Seat, Arc<Guest>) {
        let guest = Arc::new(Guest::default());
        let seat = Seat::new(Some(guest.clone()), vec![guest.clone()], Vec::new());
        (seat, guest)
    }

    #[test]
    fn a_dump_is_what_the_screen_shows() {
        let (seat, _) = seat();
        let path = std::env::temp_dir().join(format!("sarang-dump-{}.png", std::process::id()));
        let said = dump(&seat, path.to_str().unwrap());
        assert!(said.ends_with("3 x 2 pixels\n"), "{said}");
        let file = std::io::BufReader::new(File::open(&path).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut bytes = vec![0; 100];
        let info = reader.next_frame(&mut bytes).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!((info.width, info.height), (3, 2));
        assert_eq!(bytes[..10], [1, 2, 3, 0, 0, 0, 0xff, 0xff, 0xff, 1]);
    }

    #[test]
    fn what_is_wrong_is_one_line() {
        let (seat, _) = seat();
        for said in [
            dump(&seat, ""),
            dump(&seat, "/nonexistent/x.png"),
            dump(&Seat::default(), "x.png"),
            send_keys(&seat, "hyper"),
            send_keys(&seat, &"a-".repeat(20)),
            send_keys(&Seat::default(), "a"),
        ] {
            assert!(
                said.ends_with('\n') && said.lines().count() == 1 && said != "sent\n",
                "{said}"
            );
        }
    }

    #[test]
    fn keys_go_up_in_the_other_order() {
        let (seat, guest) = seat();
        assert_eq!(send_keys(&seat, "ctrl-a"), "sent\n");
        assert_eq!(*guest.0.lock().unwrap(), [(29, true), (30, true), (30, false), (29, false)]);
    }
}
