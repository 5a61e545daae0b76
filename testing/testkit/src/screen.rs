//! The guest's screen through VNC, read and typed at as a person does.

use crate::Guest;
use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

/// The font of guests that are started without firmware: 256 glyphs of 16 lines.
const FONT: &[u8; 4096] = include_bytes!("../../../devices/vga/src/font_8x16.bin");
/// The size of a text screen of 80 by 25 characters.
const TEXT: (usize, usize) = (720, 400);
/// Lines of a character, on a text screen and on one that a kernel draws.
const LINES: usize = 16;

/// A client of the guest's VNC server.
#[derive(Debug)]
pub struct Screen {
    stream: TcpStream,
    width: usize,
    height: usize,
    /// `0x00RRGGBB`, row by row.
    pixels: Vec<u32>,
    glyphs: HashMap<[u8; 16], char>,
}

fn lost(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Screen {
    /// The screen of a guest, whose address `sarang` says.
    ///
    /// # Errors
    /// When it says none, or there is no such server.
    pub fn of(guest: &Guest) -> io::Result<Self> {
        let limit = Instant::now() + crate::COMMAND;
        loop {
            let said = guest.said();
            let address = said.split_once("the screen is at ").and_then(|(_, rest)| {
                let (address, _) = rest.split_once(' ')?;
                address.parse().ok()
            });
            if let Some(address) = address {
                return Self::connect(address);
            }
            if Instant::now() > limit {
                return Err(lost(&format!("no screen: {said}")));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Connects to a server that asks for no password.
    ///
    /// # Errors
    /// When it cannot, or the server speaks another protocol.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(crate::COMMAND))?;
        let glyphs = FONT.chunks_exact(16).enumerate().rev().filter_map(|(code, glyph)| {
            let c = char::from_u32(code as u32).filter(char::is_ascii_graphic)?;
            Some((glyph.try_into().ok()?, c))
        });
        let glyphs = glyphs.collect();
        let mut screen = Self { stream, width: 0, height: 0, pixels: Vec::new(), glyphs };
        if screen.bytes::<12>()? != *b"RFB 003.008\n" {
            return Err(lost("another version"));
        }
        screen.stream.write_all(b"RFB 003.008\n")?;
        let [kinds] = screen.bytes()?;
        let mut offered = vec![0; kinds.into()];
        screen.stream.read_exact(&mut offered)?;
        screen.stream.write_all(&[1])?;
        if screen.bytes()? != [0; 4] {
            return Err(lost("not let in"));
        }
        screen.stream.write_all(&[1])?;
        let [a, b, c, d] = screen.bytes()?;
        let _format: [u8; 16] = screen.bytes()?;
        let length = u32::from_be_bytes(screen.bytes()?);
        let mut name = vec![0; length as usize];
        screen.stream.read_exact(&mut name)?;
        screen.resize(u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        // Raw, and new sizes.
        let encodings = [0i32, -223].map(i32::to_be_bytes).concat();
        screen.stream.write_all(&[&[2, 0, 0, 2], &*encodings].concat())?;
        Ok(screen)
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn resize(&mut self, width: u16, height: u16) {
        (self.width, self.height) = (width.into(), height.into());
        self.pixels = vec![0; self.width * self.height];
    }

    /// Looks at the whole screen.
    ///
    /// # Errors
    /// When the server is gone.
    pub fn look(&mut self) -> io::Result<()> {
        loop {
            self.stream.write_all(&[3, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff])?;
            if self.update()? {
                return Ok(());
            }
        }
    }

    /// Takes an update; false if it only told a new size.
    fn update(&mut self) -> io::Result<bool> {
        let [kind, _, high, low] = self.bytes()?;
        if kind != 0 {
            return Err(lost("a message that was not asked for"));
        }
        let mut drawn = true;
        for _ in 0..u16::from_be_bytes([high, low]) {
            let place: [u8; 8] = self.bytes()?;
            let [x, y, width, height] =
                [0, 2, 4, 6].map(|at| u16::from_be_bytes([place[at], place[at + 1]]));
            match i32::from_be_bytes(self.bytes()?) {
                0 => self.draw(x.into(), y.into(), width.into(), height.into())?,
                -223 => {
                    self.resize(width, height);
                    drawn = false;
                }
                other => return Err(lost(&format!("encoding {other}"))),
            }
        }
        Ok(drawn)
    }

    fn draw(&mut self, x: usize, y: usize, width: usize, height: usize) -> io::Result<()> {
        let mut line = vec![0; 4 * width];
        for row in y..y + height {
            self.stream.read_exact(&mut line)?;
            let at = row * self.width + x;
            let to = self.pixels.get_mut(at..at + width).ok_or_else(|| lost("outside"))?;
            for (pixel, bytes) in to.iter_mut().zip(line.chunks_exact(4)) {
                *pixel = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]);
            }
        }
        Ok(())
    }

    /// The server's port.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn port(&self) -> io::Result<u16> {
        self.stream.peer_addr().map(|address| address.port())
    }

    /// The screen's width and height, and its pixels.
    pub fn picture(&self) -> (usize, usize, &[u32]) {
        (self.width, self.height, &self.pixels)
    }

    /// The width of a character: on a text screen nine dots, of which eight are the font's.
    fn cell(&self) -> usize {
        if (self.width, self.height) == TEXT { 9 } else { 8 }
    }

    /// Takes the letters of another font from the screen's first lines, which show this text;
    /// false if they show another, where two letters would look the same.
    pub fn learn(&mut self, text: &str) -> bool {
        let mut font = HashMap::new();
        for (row, line) in text.lines().enumerate() {
            for (column, c) in line.chars().enumerate() {
                let glyph = self.glyph(column, row);
                if glyph == [0; 16] || *font.entry(glyph).or_insert(c) != c {
                    return false;
                }
            }
        }
        self.glyphs.extend(font);
        true
    }

    /// What can be read on a screen of text, line by line; what is no character is `?`.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for y in 0..self.height / LINES {
            let line: String =
                (0..self.width / self.cell()).map(|x| self.character(x, y)).collect();
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    fn glyph(&self, column: usize, row: usize) -> [u8; 16] {
        let pixel = |x: usize, y: usize| {
            let at = (row * LINES + y) * self.width + column * self.cell() + x;
            self.pixels.get(at).copied().unwrap_or(0)
        };
        // The last dot of the first line is the background's, but for lines.
        let back = pixel(self.cell() - 1, 0);
        std::array::from_fn(|y| (0..8).fold(0, |bits, x| bits << 1 | u8::from(pixel(x, y) != back)))
    }

    fn character(&self, column: usize, row: usize) -> char {
        let glyph = self.glyph(column, row);
        if glyph == [0; 16] || glyph == [0xff; 16] {
            return ' ';
        }
        // The cursor covers the lowest lines of its cell.
        let mut bare = glyph;
        let covered = bare[13..15] == [0xff; 2];
        if covered {
            bare[13..15].fill(0);
        }
        match self.glyphs.get(&glyph).or_else(|| self.glyphs.get(&bare)) {
            Some(c) => *c,
            None if covered && bare == [0; 16] => ' ',
            None => '?',
        }
    }

    /// Looks until this text can be read; all of the screen's.
    ///
    /// # Errors
    /// When it does not come in time, with what is there.
    pub fn expect(&mut self, text: &str, timeout: Duration) -> io::Result<String> {
        let deadline = Instant::now() + timeout;
        loop {
            self.look()?;
            let seen = self.text();
            if seen.contains(text) {
                return Ok(seen);
            }
            if Instant::now() > deadline {
                return Err(lost(&format!("no `{text}` on the screen:\n{seen}")));
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Presses a key, by its keysym, and lets it go.
    ///
    /// # Errors
    /// When the server is gone.
    pub fn press(&mut self, keysym: u32) -> io::Result<()> {
        for down in [1, 0] {
            let key = [&[4, down, 0, 0], &keysym.to_be_bytes()[..]].concat();
            self.stream.write_all(&key)?;
        }
        // A keyboard's buffer is small.
        thread::sleep(Duration::from_millis(20));
        Ok(())
    }

    /// Moves the pointer to a place of the picture, with these of its buttons down: bit 0 is the left one.
    ///
    /// # Errors
    /// When the server is gone.
    pub fn point(&mut self, buttons: u8, x: u16, y: u16) -> io::Result<()> {
        self.stream.write_all(&[&[5, buttons], &x.to_be_bytes()[..], &y.to_be_bytes()].concat())
    }

    /// Types a line.
    ///
    /// # Errors
    /// When the server is gone.
    pub fn type_line(&mut self, line: &str) -> io::Result<()> {
        line.chars().try_for_each(|c| self.press(c.into()))?;
        self.press(0xff0d)
    }
}
