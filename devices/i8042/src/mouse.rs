//! A PS/2 mouse, with a wheel for who asks for it as Microsoft's IntelliMouse is asked.

use crate::state::MouseState;
use display::PointerEvent;

/// Bytes that wait at most. A report is made only while there are few, so that what is reported is
/// where the mouse is, not where it was.
pub(crate) const QUEUE: usize = 64;
const REPORTS: usize = 12;

const ACK: u8 = 0xfa;
const NACK: u8 = 0xfe;
const PASSED: u8 = 0xaa;

/// Rates that, set one after the other, ask for a wheel, and for more buttons.
const WHEEL: [u8; 3] = [200, 100, 80];
const FIVE_BUTTONS: [u8; 3] = [200, 200, 80];

/// How far the hand may be ahead of the reports.
const FAR: i32 = 1 << 16;

#[derive(Clone, Debug)]
pub(crate) struct Mouse(MouseState);

impl Default for Mouse {
    fn default() -> Self {
        Self(MouseState {
            queue: Vec::new(),
            reporting: false,
            remote: false,
            wrap: false,
            scaled: false,
            id: 0,
            resolution: 2,
            rate: 100,
            rates: [0; 3],
            command: None,
            buttons: 0,
            dx: 0,
            dy: 0,
            wheel: 0,
            changed: false,
            last_sent: 0,
        })
    }
}

impl Mouse {
    fn say(&mut self, bytes: &[u8]) {
        let room = QUEUE.saturating_sub(self.0.queue.len());
        self.0.queue.extend(bytes.iter().take(room));
    }

    pub(crate) fn reports(&self) -> bool {
        self.0.reporting
    }

    pub(crate) fn take(&mut self) -> Option<u8> {
        if self.0.queue.is_empty() {
            return None;
        }
        let byte = self.0.queue.remove(0);
        self.0.last_sent = byte;
        self.report_if_changed();
        Some(byte)
    }

    pub(crate) fn point(&mut self, event: PointerEvent) {
        let state = &mut self.0;
        let add = |sum: &mut i32, more: i32| *sum = sum.saturating_add(more).clamp(-FAR, FAR);
        add(&mut state.dx, event.dx);
        // Up is positive for a mouse.
        add(&mut state.dy, event.dy.saturating_neg());
        // And towards the hand.
        add(&mut state.wheel, event.wheel.saturating_neg());
        let held = event.buttons;
        let buttons = u8::from(held.left) | u8::from(held.right) << 1 | u8::from(held.middle) << 2;
        let moved = (event.dx, event.dy, event.wheel) != (0, 0, 0);
        state.changed |= moved || buttons != state.buttons;
        state.buttons = buttons;
        self.report_if_changed();
    }

    fn report_if_changed(&mut self) {
        let state = &self.0;
        let may = state.reporting && !state.remote && !state.wrap;
        if may && state.changed && state.queue.len() < REPORTS {
            self.report();
        }
    }

    /// Sends what happened since the last report, as much of it as a report holds.
    fn report(&mut self) {
        let state = &mut self.0;
        let part = |sum: &mut i32, limit: i32| {
            let part = (*sum).clamp(-limit - 1, limit);
            *sum -= part;
            part
        };
        let (dx, dy) = (part(&mut state.dx, 255), part(&mut state.dy, 255));
        let sign = |value: i32, bit: u32| u8::from(value < 0) << bit;
        let mut packet = vec![state.buttons | 8 | sign(dx, 4) | sign(dy, 5), dx as u8, dy as u8];
        match state.id {
            3 => packet.push(part(&mut state.wheel, 127) as u8),
            4 => packet.push(part(&mut state.wheel, 7) as u8 & 0xf),
            _ => state.wheel = 0,
        }
        state.changed = (state.dx, state.dy, state.wheel) != (0, 0, 0);
        self.say(&packet);
    }

    fn defaults(&mut self) {
        let state = &mut self.0;
        (state.reporting, state.remote, state.scaled) = (false, false, false);
        (state.resolution, state.rate) = (2, 100);
        (state.dx, state.dy, state.wheel, state.changed) = (0, 0, 0, false);
    }

    /// The controller sends a byte.
    pub(crate) fn receive(&mut self, byte: u8) {
        if self.0.wrap && !matches!(byte, 0xec | 0xff) {
            self.say(&[byte]);
            return;
        }
        match (self.0.command.take(), byte) {
            (Some(0xe8), resolution @ 0..=3) => {
                self.0.resolution = resolution;
                self.say(&[ACK]);
            }
            (Some(0xf3), rate @ 1..=200) => {
                self.set_rate(rate);
                self.say(&[ACK]);
            }
            (Some(_), _) => self.say(&[NACK]),
            (None, byte) => self.command(byte),
        }
    }

    fn set_rate(&mut self, rate: u8) {
        let state = &mut self.0;
        state.rate = rate;
        let [_, b, c] = state.rates;
        state.rates = [b, c, rate];
        match state.rates {
            WHEEL if state.id == 0 => state.id = 3,
            FIVE_BUTTONS if state.id == 3 => state.id = 4,
            _ => {}
        }
    }

    fn command(&mut self, byte: u8) {
        match byte {
            0xe6 | 0xe7 => self.0.scaled = byte == 0xe7,
            0xe8 | 0xf3 => self.0.command = Some(byte),
            0xe9 => {
                let state = &self.0;
                let flags = u8::from(state.remote) << 6
                    | u8::from(state.reporting) << 5
                    | u8::from(state.scaled) << 4
                    | (state.buttons & 1) << 2
                    | (state.buttons & 4) >> 1
                    | (state.buttons & 2) >> 1;
                let (resolution, rate) = (state.resolution, state.rate);
                return self.say(&[ACK, flags, resolution, rate]);
            }
            0xea => self.0.remote = false,
            0xeb => {
                self.say(&[ACK]);
                return self.report();
            }
            0xec | 0xee => self.0.wrap = byte == 0xee,
            0xf0 => self.0.remote = true,
            0xf2 => return self.say(&[ACK, self.0.id]),
            0xf4 => self.0.reporting = true,
            0xf5 => {
                self.0.reporting = false;
                self.0.queue.clear();
            }
            0xf6 => self.defaults(),
            0xfe => return self.say(&[self.0.last_sent]),
            0xff => {
                let buttons = self.0.buttons;
                *self = Self::default();
                self.0.buttons = buttons;
                return self.say(&[ACK, PASSED, 0]);
            }
            _ => return self.say(&[NACK]),
        }
        self.say(&[ACK]);
    }

    pub(crate) fn save(&self) -> MouseState {
        self.0.clone()
    }

    pub(crate) fn restore(state: MouseState) -> Result<Self, &'static str> {
        if state.queue.len() > QUEUE {
            return Err("more waits at the mouse than it holds");
        }
        if !matches!(state.id, 0 | 3 | 4) || state.buttons > 7 {
            return Err("there is no such mouse");
        }
        if [state.dx, state.dy, state.wheel].iter().any(|way| !(-FAR..=FAR).contains(way)) {
            return Err("the mouse was moved too far");
        }
        Ok(Self(state))
    }

    /// Whoever looks at bytes that wait, in order.
    #[cfg(test)]
    fn drain(&mut self) -> Vec<u8> {
        std::iter::from_fn(|| self.take()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use display::Buttons;

    fn say(mouse: &mut Mouse, bytes: &[u8]) -> Vec<u8> {
        bytes.iter().for_each(|byte| mouse.receive(*byte));
        mouse.drain()
    }

    fn by(dx: i32, dy: i32, wheel: i32) -> PointerEvent {
        PointerEvent { dx, dy, wheel, ..PointerEvent::default() }
    }

    #[test]
    fn three_bytes_say_where_it_was_moved() {
        let mut mouse = Mouse::default();
        mouse.point(by(5, 5, 0));
        assert!(mouse.drain().is_empty(), "nobody asked");
        assert_eq!(say(&mut mouse, &[0xff, 0xf4]), [ACK, PASSED, 0, ACK]);
        mouse.point(PointerEvent {
            buttons: Buttons { left: true, middle: true, right: false },
            ..by(3, 4, 1)
        });
        assert_eq!(mouse.drain(), [8 | 5 | 0x20, 3, 0xfc]);
        mouse.point(PointerEvent { buttons: Buttons::default(), ..by(0, 0, 0) });
        assert_eq!(mouse.drain(), [8, 0, 0]);
        mouse.point(by(0, 0, 0));
        assert!(mouse.drain().is_empty(), "nothing changed");
    }

    #[test]
    fn far_ways_take_several_reports_and_none_is_lost() {
        let mut mouse = Mouse::default();
        say(&mut mouse, &[0xf4]);
        (0..500).for_each(|_| mouse.point(by(2, -1, 0)));
        let sent: Vec<u8> = mouse.drain();
        let sum = |at: usize, sign: u8| -> i32 {
            let way =
                |packet: &[u8]| i32::from(packet[at]) - if packet[0] & sign != 0 { 256 } else { 0 };
            sent.chunks_exact(3).map(way).sum()
        };
        assert_eq!((sum(1, 0x10), sum(2, 0x20)), (1000, 500));
        mouse.point(by(i32::MIN, i32::MIN, i32::MIN));
        mouse.point(by(i32::MIN, i32::MAX, i32::MAX));
        assert!(mouse.drain().len() > 3);
    }

    #[test]
    fn a_wheel_is_there_for_who_asks() {
        let mut mouse = Mouse::default();
        assert_eq!(say(&mut mouse, &[0xf2]), [ACK, 0]);
        assert_eq!(say(&mut mouse, &[0xf3, 200, 0xf3, 100, 0xf3, 80, 0xf2]).last(), Some(&3));
        say(&mut mouse, &[0xf4]);
        mouse.point(by(0, 0, 2));
        assert_eq!(mouse.drain(), [8, 0, 0, 0xfe]);
        assert_eq!(say(&mut mouse, &[0xf3, 200, 0xf3, 200, 0xf3, 80, 0xf2]).last(), Some(&4));
        mouse.point(by(0, 0, 1));
        assert_eq!(mouse.drain(), [8, 0, 0, 0x0f]);
    }

    #[test]
    fn commands() {
        let mut mouse = Mouse::default();
        assert_eq!(
            say(&mut mouse, &[0xe7, 0xe8, 3, 0xf3, 40, 0xe9]),
            [ACK, ACK, ACK, ACK, ACK, ACK, 0x10, 3, 40]
        );
        assert_eq!(say(&mut mouse, &[0xe8, 9, 0x01]), [ACK, NACK, NACK]);
        assert_eq!(
            say(&mut mouse, &[0xee, 0x42, 0xec, 0xf0, 0xeb]),
            [ACK, 0x42, ACK, ACK, ACK, 8, 0, 0]
        );
        assert_eq!(say(&mut mouse, &[0xfe]), [0]);
    }
}
