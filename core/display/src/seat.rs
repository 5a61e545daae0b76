//! A screen with the keyboards and pointers that belong to it.

use crate::{Frame, Key, Screen};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

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

/// What one person in front of the guest has. Clones are the same seat: what comes to one or leaves
/// it does so for all.
#[derive(Clone, Default)]
pub struct Seat {
    pub screen: Option<Arc<dyn Screen>>,
    hands: Arc<Mutex<Hands>>,
}

/// What there is to type on and to point with, and what is down on it.
#[derive(Default)]
struct Hands {
    /// In the order of preference; the last one gets what none listens to.
    keyboards: Vec<Arc<dyn Keyboard>>,
    /// The same.
    pointers: Vec<Arc<dyn Pointer>>,
    /// Where each key that is down went down: there it goes up, too.
    held: BTreeMap<u16, Arc<dyn Keyboard>>,
    /// Where buttons are down.
    pressed: Option<Arc<dyn Pointer>>,
}

impl Hands {
    /// Whose a key is.
    fn keyboard(&mut self, key: Key, down: bool) -> Option<Arc<dyn Keyboard>> {
        let code = key.code();
        if !down && let Some(keyboard) = self.held.remove(&code) {
            return Some(keyboard);
        }
        let holds = self.held.get(&code).filter(|keyboard| keyboard.listens());
        let listening = || self.keyboards.iter().find(|keyboard| keyboard.listens());
        let keyboard = holds.or_else(listening).or(self.keyboards.last())?.clone();
        if down {
            self.held.insert(code, keyboard.clone());
        }
        Some(keyboard)
    }

    fn pointer(&self) -> Option<&Arc<dyn Pointer>> {
        self.pointers.iter().find(|pointer| pointer.listens()).or(self.pointers.last())
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hands = self.lock();
        f.debug_struct("Seat")
            .field("screen", &self.screen.is_some())
            .field("keyboards", &hands.keyboards.len())
            .field("pointers", &hands.pointers.len())
            .finish()
    }
}

impl Seat {
    /// Keyboards and pointers are in the order of preference; the last one of each gets what none
    /// listens to.
    pub fn new(
        screen: Option<Arc<dyn Screen>>,
        keyboards: Vec<Arc<dyn Keyboard>>,
        pointers: Vec<Arc<dyn Pointer>>,
    ) -> Self {
        let hands = Hands { keyboards, pointers, ..Hands::default() };
        Self { screen, hands: Arc::new(Mutex::new(hands)) }
    }

    fn lock(&self) -> MutexGuard<'_, Hands> {
        self.hands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before the others.
    pub fn add_keyboard(&self, keyboard: Arc<dyn Keyboard>) {
        self.lock().keyboards.insert(0, keyboard);
    }

    /// The same.
    pub fn add_pointer(&self, pointer: Arc<dyn Pointer>) {
        self.lock().pointers.insert(0, pointer);
    }

    /// What is down on it is of no matter any more.
    pub fn remove_keyboard(&self, keyboard: &Arc<dyn Keyboard>) {
        let mut hands = self.lock();
        hands.keyboards.retain(|other| !Arc::ptr_eq(other, keyboard));
        hands.held.retain(|_, other| !Arc::ptr_eq(other, keyboard));
    }

    /// The same.
    pub fn remove_pointer(&self, pointer: &Arc<dyn Pointer>) {
        let mut hands = self.lock();
        hands.pointers.retain(|other| !Arc::ptr_eq(other, pointer));
        hands.pressed.take_if(|other| Arc::ptr_eq(other, pointer));
    }

    pub fn has_keyboard(&self) -> bool {
        !self.lock().keyboards.is_empty()
    }

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
        // Not under the lock, which is for moments.
        let keyboard = self.lock().keyboard(key, down);
        if let Some(keyboard) = keyboard {
            keyboard.key(key, down);
        }
    }

    pub fn point(&self, event: PointerEvent) {
        let mut hands = self.lock();
        let Some(pointer) = hands.pointer().cloned() else { return };
        let presses = event.buttons != Buttons::default();
        let before = std::mem::replace(&mut hands.pressed, presses.then(|| pointer.clone()));
        drop(hands);
        if let Some(before) = before.filter(|before| !Arc::ptr_eq(before, &pointer)) {
            // Its buttons would stay down for ever.
            before.point(PointerEvent { x: event.x, y: event.y, ..PointerEvent::default() });
        }
        pointer.point(event);
    }

    /// Whether the guest takes the pointer's place, rather than its way.
    pub fn is_absolute(&self) -> bool {
        self.lock().pointer().is_some_and(|pointer| pointer.is_absolute())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    #[derive(Default)]
    struct Device(AtomicBool, Mutex<Vec<u16>>, bool);

    impl Device {
        fn got(&self) -> Vec<u16> {
            std::mem::take(&mut self.1.lock().unwrap())
        }
    }

    impl Keyboard for Device {
        fn listens(&self) -> bool {
            self.0.load(SeqCst)
        }
        fn key(&self, key: Key, down: bool) {
            self.1.lock().unwrap().push(key.code() + 1000 * u16::from(down));
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
            self.1.lock().unwrap().push(event.x + 1000 * u16::from(event.buttons.left));
        }
    }

    fn seat(devices: [&Arc<Device>; 2]) -> Seat {
        let keyboards = devices.map(|device| device.clone() as Arc<dyn Keyboard>).into();
        let pointers = devices.map(|device| device.clone() as Arc<dyn Pointer>).into();
        Seat::new(None, keyboards, pointers)
    }

    fn left(x: u16, left: bool) -> PointerEvent {
        PointerEvent { x, buttons: Buttons { left, ..Buttons::default() }, ..Default::default() }
    }

    #[test]
    fn events_go_to_who_listens() {
        let tablet = Arc::new(Device(false.into(), Mutex::default(), true));
        let mouse = Arc::new(Device::default());
        let seat = seat([&tablet, &mouse]);
        seat.key(Key::LEFT_ALT, true);
        assert!(!seat.is_absolute());
        tablet.0.store(true, SeqCst);
        seat.point(left(7, false));
        assert!(seat.is_absolute());
        assert_eq!((mouse.got(), tablet.got()), (vec![1056], vec![7]));
        Seat::default().key(Key::LEFT_ALT, true);
        Seat::default().point(PointerEvent::default());
    }

    #[test]
    fn what_goes_down_goes_up_at_the_same_place() {
        let (new, old) = (Arc::new(Device::default()), Arc::new(Device::default()));
        let seat = seat([&new, &old]);
        seat.key(Key::LEFT_ALT, true);
        seat.point(left(1, true));
        assert_eq!(old.got(), [1056, 1001]);
        new.0.store(true, SeqCst);
        seat.key(Key::LEFT_SHIFT, true);
        seat.key(Key::LEFT_ALT, false);
        seat.key(Key::LEFT_ALT, true);
        seat.point(left(2, true));
        seat.point(left(3, false));
        assert_eq!(old.got(), [56, 2], "the key and the button that were down on it");
        assert_eq!(new.got(), [1042, 1056, 1002, 3]);
        // Its driver is gone: what goes down again does so elsewhere.
        new.0.store(false, SeqCst);
        seat.key(Key::LEFT_ALT, true);
        seat.key(Key::LEFT_ALT, false);
        assert_eq!((old.got(), new.got()), (vec![1056, 56], vec![]));
    }

    #[test]
    fn devices_come_and_go_for_all_clones() {
        let (old, new) = (Arc::new(Device::default()), Arc::new(Device::default()));
        new.0.store(true, SeqCst);
        let (keyboard, pointer): (Arc<dyn Keyboard>, Arc<dyn Pointer>) = (new.clone(), new.clone());
        let seat = Seat::new(None, vec![old.clone()], vec![old.clone()]);
        let clone = seat.clone();
        seat.add_keyboard(keyboard.clone());
        seat.add_pointer(pointer.clone());
        clone.key(Key::LEFT_ALT, true);
        clone.point(left(1, true));
        assert_eq!((old.got(), new.got()), (vec![], vec![1056, 1001]));
        seat.remove_keyboard(&keyboard);
        seat.remove_pointer(&pointer);
        clone.key(Key::LEFT_ALT, false);
        clone.point(left(2, false));
        assert_eq!((old.got(), new.got()), (vec![56, 2], vec![]));
        drop((keyboard, pointer));
        assert_eq!(Arc::strong_count(&new), 1, "nobody keeps it");
        assert!(clone.has_keyboard() && !Seat::default().has_keyboard());
    }
}
