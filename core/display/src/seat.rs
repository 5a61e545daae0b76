//! A screen with the keyboards and pointers that belong to it.

use crate::{Frame, Key, Screen};
use std::{fmt, sync::Arc};

/// A keyboard of the guest.
pub trait Keyboard: Send + Sync {
    /// Its driver listens, so that keys are not lost on it.
    fn listens(&self) -> bool;
    /// A key goes down, again while it is held, or up.
    fn key(&self, key: Key, down: bool);
}

/// Buttons of a pointer that are down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buttons {
    pub left: bool,
    pub middle: bool,
    pub right: bool,
}

/// What a hand did. A tablet takes the place, a mouse the way there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PointerEvent {
    /// The place, 0 to [`PointerEvent::END`] from the left, and from the top.
    pub x: u16,
    pub y: u16,
    /// Pixels to the right, and down, since the last event.
    pub dx: i32,
    pub dy: i32,
    /// Notches of the wheel, away from the hand being positive.
    pub wheel: i32,
    pub buttons: Buttons,
}

impl PointerEvent {
    /// The last place: the right side, or the bottom.
    pub const END: u16 = 0x7fff;
}

/// A mouse or a tablet of the guest.
pub trait Pointer: Send + Sync {
    /// Its driver listens.
    fn listens(&self) -> bool;
    /// It takes places rather than ways.
    fn is_absolute(&self) -> bool;
    fn point(&self, event: PointerEvent);
}

/// What one person in front of the guest has.
#[derive(Clone, Default)]
pub struct Seat {
    pub screen: Option<Arc<dyn Screen>>,
    /// In the order of preference; the last one gets what none listens to.
    pub keyboards: Vec<Arc<dyn Keyboard>>,
    /// The same.
    pub pointers: Vec<Arc<dyn Pointer>>,
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat")
            .field("screen", &self.screen.is_some())
            .field("keyboards", &self.keyboards.len())
            .field("pointers", &self.pointers.len())
            .finish()
    }
}

impl Seat {
    /// Draws the screen; black where there is none.
    pub fn render(&self, frame: &mut Frame) {
        match &self.screen {
            Some(screen) => screen.render(frame),
            None => {
                *frame = {
                    let mut black = Frame::default();
                    black.resize(640, 400);
                    black
                }
            }
        }
    }

    pub fn key(&self, key: Key, down: bool) {
        let listening = self.keyboards.iter().find(|keyboard| keyboard.listens());
        if let Some(keyboard) = listening.or(self.keyboards.last()) {
            keyboard.key(key, down);
        }
    }

    pub fn point(&self, event: PointerEvent) {
        if let Some(pointer) = self.pointer() {
            pointer.point(event);
        }
    }

    /// Whether the guest takes the pointer's place, rather than its way.
    pub fn is_absolute(&self) -> bool {
        self.pointer().is_some_and(|pointer| pointer.is_absolute())
    }

    fn pointer(&self) -> Option<&Arc<dyn Pointer>> {
        self.pointers.iter().find(|pointer| pointer.listens()).or(self.pointers.last())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    };

    #[derive(Default)]
    struct Device(AtomicBool, Mutex<Vec<u16>>, bool);

    impl Keyboard for Device {
        fn listens(&self) -> bool {
            self.0.load(SeqCst)
        }
        fn key(&self, key: Key, _: bool) {
            self.1.lock().unwrap().push(key.code());
        }
    }

    impl Pointer for Device {
        fn listens(&self) -> bool {
            self.0.load(SeqCst)
        }
        fn is_absolute(&self) -> bool {
            self.2
        }
        fn point(&self, event: PointerEvent) {
            self.1.lock().unwrap().push(event.x);
        }
    }

    #[test]
    fn events_go_to_who_listens() {
        let tablet = Arc::new(Device(false.into(), Mutex::default(), true));
        let mouse = Arc::new(Device::default());
        let seat = Seat {
            screen: None,
            keyboards: vec![tablet.clone(), mouse.clone()],
            pointers: vec![tablet.clone(), mouse.clone()],
        };
        seat.key(Key::LEFT_ALT, true);
        assert!(!seat.is_absolute());
        tablet.0.store(true, SeqCst);
        seat.point(PointerEvent { x: 7, ..PointerEvent::default() });
        assert!(seat.is_absolute());
        assert_eq!((&*mouse.1.lock().unwrap(), &*tablet.1.lock().unwrap()), (&vec![56], &vec![7]));
        Seat::default().key(Key::LEFT_ALT, true);
        Seat::default().point(PointerEvent::default());
    }
}
