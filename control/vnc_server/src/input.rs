//! One client's hands: keys that it holds, and where its pointer is.

use crate::keysym;
use display::{Buttons, Key, PointerEvent, Seat};
use std::collections::BTreeSet;

/// Where a pointer that tells ways rests (QEMU's extension): further right is to the right.
const REST: i32 = 0x7fff;
const SHIFTS: [Key; 2] = [Key::LEFT_SHIFT, Key::RIGHT_SHIFT];

#[derive(Debug)]
pub(crate) struct Hands {
    seat: Seat,
    /// What goes up when the client goes.
    held: BTreeSet<Key>,
    /// In pixels of the client's picture.
    place: Option<(u16, u16)>,
    /// The same as the guest was told it.
    told: (u16, u16),
    buttons: u8,
}

impl Drop for Hands {
    fn drop(&mut self) {
        self.held.iter().for_each(|key| self.seat.key(*key, false));
        if self.buttons != 0 {
            self.seat.point(PointerEvent { buttons: Buttons::default(), ..self.at_rest() });
        }
    }
}

impl Hands {
    pub(crate) fn new(seat: Seat) -> Self {
        Self { seat, held: BTreeSet::new(), place: None, told: (0, 0), buttons: 0 }
    }

    fn at_rest(&self) -> PointerEvent {
        let (x, y) = self.told;
        PointerEvent { x, y, ..PointerEvent::default() }
    }

    fn press(&mut self, key: Key, down: bool) {
        if down {
            self.held.insert(key);
        } else {
            self.held.remove(&key);
        }
        self.seat.key(key, down);
    }

    /// A key by what is printed on it. Where the guest's keyboard, which is taken for a US one,
    /// needs Shift for it and the client's did not, or the other way round, Shift is pressed or
    /// let go for the moment.
    pub(crate) fn key(&mut self, keysym: u32, down: bool) {
        let Some((key, shift)) = keysym::key(keysym) else { return };
        let held: Vec<Key> = SHIFTS.into_iter().filter(|key| self.held.contains(key)).collect();
        match shift {
            Some(true) if down && held.is_empty() => {
                self.seat.key(Key::LEFT_SHIFT, true);
                self.press(key, true);
                self.seat.key(Key::LEFT_SHIFT, false);
            }
            Some(false) if down && !held.is_empty() => {
                held.iter().for_each(|shift| self.seat.key(*shift, false));
                self.press(key, true);
                held.iter().for_each(|shift| self.seat.key(*shift, true));
            }
            _ => self.press(key, down),
        }
    }

    /// A key by its place: its scan code, with 0x80 where 0xe0 comes first. By its name where
    /// there is no such code.
    pub(crate) fn scan_code(&mut self, keysym: u32, code: u32, down: bool) {
        let low = (code & 0x7f) as u16;
        let scan = match code {
            // Alt with Print.
            0x54 => 0xe037,
            0..=0x7f => low,
            0x80..=0xff => 0xe000 | low,
            _ => 0,
        };
        match Key::from_scan_code(scan) {
            Some(key) => self.press(key, down),
            None => self.key(keysym, down),
        }
    }

    /// `size` is that of the client's picture; `moves` says that the client tells ways.
    pub(crate) fn point(&mut self, buttons: u8, x: u16, y: u16, size: (u16, u16), moves: bool) {
        let part = |at: u16, size: u16| {
            let last = u32::from(size.max(2)) - 1;
            (u32::from(at).min(last) * u32::from(PointerEvent::END) / last) as u16
        };
        let way = |to: u16, from: u16| i32::from(to) - i32::from(from);
        let mut event = PointerEvent { wheel: self.wheel(buttons), ..self.at_rest() };
        if moves {
            (event.dx, event.dy) = (i32::from(x) - REST, i32::from(y) - REST);
        } else {
            if let Some((old_x, old_y)) = self.place {
                (event.dx, event.dy) = (way(x, old_x), way(y, old_y));
            }
            self.place = Some((x, y));
            self.told = (part(x, size.0), part(y, size.1));
            (event.x, event.y) = self.told;
        }
        let is = |bit: u8| buttons >> bit & 1 != 0;
        event.buttons = Buttons { left: is(0), middle: is(1), right: is(2) };
        self.buttons = buttons;
        self.seat.point(event);
    }

    /// Buttons 4 and 5 are the wheel's notches.
    fn wheel(&self, buttons: u8) -> i32 {
        let pressed = |bit: u8| i32::from(buttons & !self.buttons & 1 << bit != 0);
        pressed(3) - pressed(4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use display::{Keyboard, Pointer};
    use std::sync::{Arc, Mutex};

    #[derive(Default)]
    struct Log(Mutex<Vec<(u16, bool)>>, Mutex<Vec<PointerEvent>>);

    impl Keyboard for Log {
        fn listens(&self) -> bool {
            true
        }
        fn key(&self, key: Key, down: bool) {
            self.0.lock().unwrap().push((key.code(), down));
        }
    }

    impl Pointer for Log {
        fn listens(&self) -> bool {
            true
        }
        fn is_absolute(&self) -> bool {
            false
        }
        fn point(&self, event: PointerEvent) {
            self.1.lock().unwrap().push(event);
        }
    }

    fn hands() -> (Hands, Arc<Log>) {
        let log = Arc::new(Log::default());
        let seat = Seat::new(None, vec![log.clone()], vec![log.clone()]);
        (Hands::new(seat), log)
    }

    fn keys(log: &Log) -> Vec<(u16, bool)> {
        std::mem::take(&mut log.0.lock().unwrap())
    }

    #[test]
    fn shift_is_as_the_character_needs_it() {
        let (mut hands, log) = hands();
        hands.key(u32::from('A'), true);
        hands.key(u32::from('A'), false);
        assert_eq!(keys(&log), [(42, true), (30, true), (42, false), (30, false)]);
        hands.key(0xffe2, true);
        hands.key(u32::from('A'), true);
        hands.key(u32::from('/'), true);
        assert_eq!(keys(&log), [(54, true), (30, true), (54, false), (53, true), (54, true)]);
        drop(hands);
        let mut up = keys(&log);
        up.sort_unstable();
        assert_eq!(up, [(30, false), (53, false), (54, false)], "what was held goes up");
    }

    #[test]
    fn scan_codes_are_places() {
        let (mut hands, log) = hands();
        hands.scan_code(u32::from('q'), 30, true);
        hands.scan_code(0, 0xc8, true);
        hands.scan_code(0xff0d, 0, true);
        hands.scan_code(0, 0xffff, true);
        assert_eq!(keys(&log), [(30, true), (103, true), (28, true)]);
    }

    #[test]
    fn a_pointer_has_a_place_and_a_way() {
        let (mut hands, log) = hands();
        hands.point(0, 10, 10, (101, 101), false);
        hands.point(1 | 8, 100, 0, (101, 101), false);
        hands.point(0, 0x7fff + 3, 0x7fff - 4, (101, 101), true);
        hands.point(0, u16::MAX, u16::MAX, (0, 0), false);
        let events = log.1.lock().unwrap();
        assert_eq!((events[0].x, events[0].dx), (0x7fff / 10, 0));
        let left = Buttons { left: true, ..Buttons::default() };
        let second = PointerEvent { x: 0x7fff, y: 0, dx: 90, dy: -10, wheel: 1, buttons: left };
        assert_eq!(events[1], second);
        assert_eq!((events[2].dx, events[2].dy), (3, -4));
        assert_eq!(events[3].x, 0x7fff);
    }

    #[test]
    fn a_button_is_let_go_where_the_pointer_was() {
        let (mut hands, log) = hands();
        hands.point(1, 100, 50, (101, 101), false);
        drop(hands);
        let events = log.1.lock().unwrap();
        let place = (0x7fff, 0x7fff / 2);
        assert_eq!(events.iter().map(|e| (e.x, e.y)).collect::<Vec<_>>(), [place, place]);
        assert_eq!(events[1].buttons, Buttons::default());
    }
}
