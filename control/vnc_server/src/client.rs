//! One client: the thread that reads what it wants, and the one that sends it.

use crate::{
    HANDSHAKE, STALL,
    encode::{self, Pixels, Zrle},
    handshake,
    input::Hands,
    picture::{Picture, Seen},
    server::{Shared, State, Wishes},
    wire::{self, Encodings, Message, Rect, encoding},
};
use std::{
    io::{self, BufReader, Read, Write},
    net::TcpStream,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// Who guesses passwords waits between two guesses.
const WRONG: Duration = Duration::from_secs(1);

/// Bytes of an update that are sent together, if the next rectangle does not make them more.
const BATCH: usize = 64 << 10;

/// A stream on which all reads together take no longer than this.
struct Until<'a>(&'a TcpStream, Instant);

impl Read for Until<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = self.1.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.0.set_read_timeout(Some(left))?;
        self.0.read(out)
    }
}

impl Write for Until<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Serves the client to its end.
pub(crate) fn serve(shared: &Arc<Shared>, id: u64, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(STALL))?;
    let size = shared.size();
    let until = Instant::now().checked_add(HANDSHAKE).unwrap_or_else(Instant::now);
    let met = handshake::perform(
        &mut Until(&stream, until),
        shared.password.as_ref(),
        &shared.name,
        size,
    );
    if let Err(error) = met {
        if error.kind() == io::ErrorKind::PermissionDenied {
            thread::sleep(WRONG);
        }
        return Err(error);
    }
    stream.set_read_timeout(None)?;
    if let Some(client) = shared.lock().clients.get_mut(&id) {
        client.known = true;
    }
    let mut writer = Writer::new(shared.clone(), id, stream.try_clone()?, size);
    thread::Builder::new().name("vnc writer".into()).spawn(move || {
        // A client that takes nothing any more: its reader ends with it.
        drop(writer.run());
        writer.shared.remove(id);
    })?;
    read(shared, id, &stream)
}

fn read(shared: &Arc<Shared>, id: u64, stream: &TcpStream) -> io::Result<()> {
    let mut hands = Hands::new(shared.seat.clone());
    let mut from = BufReader::new(stream);
    loop {
        let message = wire::message(&mut from)?;
        match message {
            Message::Key { down, keysym } => hands.key(keysym, down),
            Message::ExtendedKey { down, keysym, code } => hands.scan_code(keysym, code, down),
            Message::Pointer { buttons, x, y } => {
                let mut state = shared.lock();
                let size = state.picture.size();
                let moves =
                    state.clients.get_mut(&id).is_some_and(|c| c.wishes.encodings.pointer_motion);
                drop(state);
                hands.point(buttons, x, y, size, moves && !shared.seat.is_absolute());
            }
            Message::CutText => {}
            Message::SetPixelFormat(_)
            | Message::SetEncodings(_)
            | Message::UpdateRequest { .. } => {
                let mut state = shared.lock();
                let Some(client) = state.clients.get_mut(&id) else { return Ok(()) };
                client.wishes.wish(message);
                drop(state);
                shared.notify();
            }
        }
    }
}

/// The smallest rectangle with both in it.
fn both(a: Rect, b: Rect) -> Rect {
    let (x, y) = (a.x.min(b.x), a.y.min(b.y));
    let end = |at: u16, len: u16| at.saturating_add(len);
    let right = end(a.x, a.width).max(end(b.x, b.width));
    let bottom = end(a.y, a.height).max(end(b.y, b.height));
    Rect { x, y, width: right - x, height: bottom - y }
}

impl Wishes {
    pub(crate) fn wish(&mut self, message: Message) {
        let add = |to: &mut Option<Rect>, area| *to = Some(to.map_or(area, |old| both(old, area)));
        match message {
            Message::SetPixelFormat(format) => (self.format, self.map) = (format, true),
            Message::SetEncodings(encodings) => self.encodings = encodings,
            Message::UpdateRequest { incremental, area } => {
                add(&mut self.request, area);
                if !incremental {
                    add(&mut self.anew, area);
                }
            }
            _ => {}
        }
    }
}

/// What the client was told of extensions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    extended_key: bool,
    /// Whether its pointer shall tell places.
    absolute: Option<bool>,
}

/// An update, taken out of the shared state.
#[derive(Debug, Default)]
pub(crate) struct Update {
    pub(crate) wishes: Wishes,
    size: Option<(u16, u16)>,
    extended_key: bool,
    absolute: Option<bool>,
    /// Their pixels are copied one after the other as they are sent, so that a client that reads
    /// slowly has no picture of its own here.
    pub(crate) parts: Vec<Rect>,
}

struct Writer {
    shared: Arc<Shared>,
    id: u64,
    stream: TcpStream,
    painter: Painter,
}

/// What is known of what a client knows.
pub(crate) struct Painter {
    seen: Seen,
    told: Told,
    zrle: Zrle,
}

impl Writer {
    fn new(shared: Arc<Shared>, id: u64, stream: TcpStream, size: (u16, u16)) -> Self {
        Self { shared, id, stream, painter: Painter::new(size) }
    }

    fn run(&mut self) -> io::Result<()> {
        let (mut pixels, mut bytes) = (Vec::new(), Vec::new());
        while let Some(update) = self.next() {
            begin(&update, &mut bytes)?;
            for part in &update.parts {
                // What changed since it was found to have changed is sent again later.
                self.shared.lock().picture.copy(*part, &mut pixels);
                self.painter.encode(*part, &pixels, &update.wishes, &mut bytes)?;
                if bytes.len() >= BATCH {
                    self.stream.write_all(&bytes)?;
                    bytes.clear();
                }
            }
            self.stream.write_all(&bytes)?;
            bytes.clear();
        }
        Ok(())
    }

    /// Waits for something to send; `None` when it is over.
    fn next(&mut self) -> Option<Update> {
        let shared = self.shared.clone();
        let absolute = || shared.seat.is_absolute();
        let mut state = shared.lock();
        loop {
            if state.stop {
                return None;
            }
            if let Some(update) = self.take(&mut state, absolute)? {
                return Some(update);
            }
            state = shared.wait(state);
        }
    }

    /// `None` if the client is gone, `Some(None)` if there is nothing to send yet.
    fn take(&mut self, state: &mut State, absolute: impl Fn() -> bool) -> Option<Option<Update>> {
        let State { picture, clients, .. } = state;
        Some(self.painter.take(&mut clients.get_mut(&self.id)?.wishes, picture, absolute))
    }
}

impl Painter {
    pub(crate) fn new((width, height): (u16, u16)) -> Self {
        let (told, zrle) = (Told::default(), Zrle::default());
        Self { seen: Seen::nothing(width, height), told, zrle }
    }

    /// What is to be sent, if there is something.
    pub(crate) fn take(
        &mut self,
        wishes: &mut Wishes,
        picture: &Picture,
        absolute: impl Fn() -> bool,
    ) -> Option<Update> {
        let area = wishes.request?;
        let mut update = Update { wishes: *wishes, ..Update::default() };
        let Encodings { desktop_size, pointer_motion, extended_key, .. } = wishes.encodings;
        if desktop_size && self.seen.size() != picture.size() {
            let (width, height) = picture.size();
            self.seen = Seen::nothing(width, height);
            update.size = Some((width, height));
            // The client asks again for what it then lacks.
            (wishes.request, wishes.anew) = (None, None);
            return Some(update);
        }
        update.extended_key = extended_key && !self.told.extended_key;
        let absolute = pointer_motion.then(absolute);
        if absolute != self.told.absolute {
            update.absolute = absolute;
        }
        if let Some(anew) = wishes.anew.take() {
            self.seen.forget(anew);
        }
        update.parts = self.seen.take_changes(picture, area);
        if update.parts.is_empty() && !update.extended_key && update.absolute.is_none() {
            return None;
        }
        self.told = Told { extended_key: self.told.extended_key || extended_key, absolute };
        (wishes.request, wishes.map) = (None, false);
        Some(update)
    }

    pub(crate) fn encode(
        &mut self,
        rect: Rect,
        pixels: &[u32],
        wishes: &Wishes,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let pixels = Pixels { width: rect.width.into(), pixels };
        if wishes.encodings.zrle {
            put_header(rect, encoding::ZRLE, out);
            return self.zrle.encode(pixels, &wishes.format, out);
        }
        put_header(rect, encoding::RAW, out);
        encode::raw(pixels, &wishes.format, out);
        Ok(())
    }
}

/// What comes before an update's pixels.
pub(crate) fn begin(update: &Update, out: &mut Vec<u8>) -> io::Result<()> {
    if update.wishes.map
        && let Some(map) = update.wishes.format.color_map()
    {
        out.extend(map);
    }
    let mut pseudo = Vec::new();
    if let Some((width, height)) = update.size {
        pseudo.push((Rect { width, height, ..Rect::default() }, encoding::DESKTOP_SIZE));
    }
    if update.extended_key {
        pseudo.push((Rect::default(), encoding::EXTENDED_KEY));
    }
    if let Some(absolute) = update.absolute {
        let x = u16::from(absolute);
        pseudo.push((Rect { x, ..Rect::default() }, encoding::POINTER_MOTION));
    }
    let count = u16::try_from(pseudo.len() + update.parts.len()).map_err(io::Error::other)?;
    out.extend([0, 0]);
    out.extend(count.to_be_bytes());
    for (rect, encoding) in pseudo {
        put_header(rect, encoding, out);
    }
    Ok(())
}

fn put_header(rect: Rect, encoding: i32, out: &mut Vec<u8>) {
    for part in [rect.x, rect.y, rect.width, rect.height] {
        out.extend(part.to_be_bytes());
    }
    out.extend(encoding.to_be_bytes());
}
