//! Root ports: what is behind them comes and goes.

mod common;

use common::{Board, ECAM, WINDOW};
use pci::{Bar, BarKind, Function, FunctionConfig, MsixConfig, PlugError};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

/// Of the port's capability, behind the message table's.
const EXPRESS: u64 = 0x4c;
const LINK: u64 = EXPRESS + 0x10;
const SLOT: u64 = EXPRESS + 0x18;
const CHILD: u64 = ECAM + (1 << 20);
/// All events interrupt, and the slot has power, or not.
const ON: u32 = 0x1029;
const OFF: u32 = ON | 1 << 10;

#[derive(Debug, Default)]
struct Card {
    resets: AtomicUsize,
}

impl Function for Card {
    fn read(&self, _: usize, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }
    fn write(&self, _: usize, _: u64, _: &[u8]) {}
    fn bus_reset(&self) {
        self.resets.fetch_add(1, SeqCst);
    }
}

fn card() -> FunctionConfig {
    FunctionConfig {
        vendor: 0x1af4,
        device: 0x1042,
        class: 0x01_00_00,
        bars: vec![Bar { index: 0, kind: BarKind::Memory32, prefetchable: false, size: 0x4000 }],
        msix: Some(MsixConfig { vectors: 1, bar: 0, table: 0x1000, pba: 0x2000 }),
        interrupt_pin: true,
        ..FunctionConfig::default()
    }
}

fn plug(board: &Board) -> Result<Arc<Card>, PlugError> {
    board.pci.plug(0, &card(), |_| Arc::default())
}

/// A board with a port in slot 1, as firmware leaves it.
fn board() -> (Board, Arc<AtomicUsize>) {
    let board = Board::without_firmware(0);
    board.pci.add_port(&board.wiring);
    board.pci.assign();
    let ejected = Arc::new(AtomicUsize::new(0));
    let count = ejected.clone();
    board.pci.on_eject(move |port| {
        count.fetch_add(1 + port, SeqCst);
    });
    (board, ejected)
}

fn status(board: &Board) -> u32 {
    board.config(1, SLOT) >> 16
}

fn control(board: &Board, value: u32) {
    board.write(ECAM + (1 << 15) + SLOT, &(value as u16).to_le_bytes());
}

fn clear(board: &Board) {
    board.write(ECAM + (1 << 15) + SLOT + 2, &[0xff, 0xff]);
}

#[test]
fn a_port_is_a_bridge_with_a_slot() {
    let (board, _) = board();
    assert_eq!(board.config(1, 0), 0x000c_1b36);
    assert_eq!(board.config(1, 8) >> 8, 0x06_04_00);
    assert_eq!(board.config(1, 0xc) >> 16 & 0xff, 1);
    assert_eq!(board.config(1, 0x18) & 0xff_ffff, 0x01_01_00);
    let (base, limit) = (board.config(1, 0x20) & 0xffff, board.config(1, 0x20) >> 16);
    assert_eq!(limit - base, 0x10, "two MiB");
    assert!(u64::from(base) << 16 >= WINDOW.start);
    assert_eq!(board.config(1, EXPRESS) >> 16, 0x0142);
    assert_eq!(board.config(1, LINK) >> 16, 0x0011, "no link");
    assert_eq!((status(&board), board.pci.ports()), (0, vec![false]));
    assert_eq!(board.read(CHILD, 4), 0xffff_ffff);
    // It has no bar behind the first two, and no subsystem.
    for at in [0x18, 0x1c, 0x24, 0x28, 0x2c, 0x38] {
        board.config_write(1, at, 0xffff_ffff);
    }
    assert_eq!(board.config(1, 0x24), 0);
    assert_eq!(board.config(1, 0x2c), 0);
}

#[test]
fn a_card_is_plugged_and_unplugged() {
    let (board, ejected) = board();
    control(&board, OFF);
    plug(&board).unwrap();
    assert_eq!(plug(&board).unwrap_err(), PlugError::Occupied);
    assert_eq!(
        board.pci.plug(1, &card(), |_| Arc::<Card>::default()).unwrap_err(),
        PlugError::NoPort
    );
    assert_eq!(status(&board), 1 << 6 | 1 << 3 | 1, "present, changed, and the button");
    assert!(board.lines[17].level(), "by pin");
    assert_eq!(board.read(CHILD, 4), 0xffff_ffff, "without power");
    clear(&board);
    assert!(!board.lines[17].level());

    control(&board, ON);
    assert_eq!(status(&board), 1 << 6 | 1 << 8, "a link");
    assert_eq!(board.config(1, LINK) >> 16, 0x2011);
    clear(&board);
    assert_eq!(board.read(CHILD, 4), 0x1042_1af4);
    assert_eq!(board.read(CHILD + (1 << 15), 4), 0xffff_ffff, "one device only");
    // Its memory answers where the bridge passes it on.
    let base = u64::from(board.config(1, 0x20) & 0xffff) << 16;
    board.write(CHILD + 0x10, &(base as u32 + 0x8000).to_le_bytes());
    board.write(CHILD + 4, &[2, 0]);
    assert_eq!(board.read(base + 0x8021, 1), 0x21);
    board.write(CHILD + 0x10, &(base as u32 - 0x8000).to_le_bytes());
    assert_eq!(board.read(base - 0x8000 + 0x21, 1), 0xff, "outside");
    board.write(CHILD + 0x10, &(base as u32).to_le_bytes());
    board.config_write(1, 4, 0);
    assert_eq!(board.read(base + 0x21, 1), 0xff, "the bridge passes nothing on");
    board.config_write(1, 4, 2);
    assert_eq!(board.read(base + 0x21, 1), 0x21);
    // The bus behind it has another number.
    board.config_write(1, 0x18, 0x05_05_00);
    assert_eq!(board.read(CHILD, 4), 0xffff_ffff);
    assert_eq!(board.read(ECAM + (5 << 20), 4), 0x1042_1af4);

    assert!(board.pci.ask_unplug(0) && !board.pci.ask_unplug(1));
    assert_eq!(status(&board), 1 << 6 | 1, "the button");
    assert!(board.lines[17].level());
    clear(&board);
    control(&board, OFF);
    assert_eq!((ejected.load(SeqCst), board.pci.ports()), (1, vec![false]));
    assert_eq!(status(&board), 1 << 3 | 1 << 8);
    assert_eq!(board.read(ECAM + (5 << 20), 4), 0xffff_ffff);
    assert_eq!(board.read(base + 0x21, 1), 0xff);
    assert!(!board.pci.ask_unplug(0), "nothing is there");
    control(&board, ON);
    assert_eq!(ejected.load(SeqCst), 1);
    plug(&board).unwrap();
}

#[test]
fn messages_tell_of_changes_once() {
    let (board, _) = board();
    let bar = u64::from(board.config(1, 0x10));
    board.config_write(1, 4, 6);
    board.config_write(1, 0x40, 0x8000_0000);
    board.write(bar, &0xfee0_0000u64.to_le_bytes());
    board.write(bar + 8, &0x55u64.to_le_bytes());
    control(&board, OFF);
    plug(&board).unwrap();
    assert_eq!(board.sink.take_messages().len(), 1);
    control(&board, ON);
    assert!(board.sink.take_messages().is_empty(), "the first change is still there");
    clear(&board);
    board.pci.ask_unplug(0);
    assert_eq!(board.sink.take_messages().len(), 1);
    assert!(!board.lines[17].level());
}

#[test]
fn a_bus_reset_reaches_the_card() {
    let (board, _) = board();
    let card = plug(&board).unwrap();
    board.write(CHILD + 4, &[6, 0]);
    board.config_write(1, 0x3c, 1 << 22);
    board.config_write(1, 0x3c, 1 << 22);
    assert_eq!((card.resets.load(SeqCst), board.read(CHILD + 4, 2)), (1, 0));
    // The machine's reset leaves it where it is, with power.
    control(&board, ON);
    board.reset();
    board.pci.assign();
    assert_eq!((status(&board), board.pci.ports()), (1 << 6, vec![true]));
    assert_eq!(board.read(CHILD + 4, 2), 2);
}

#[test]
fn a_slots_state_is_saved() {
    let (board, _) = board();
    control(&board, OFF);
    plug(&board).unwrap();
    let parts = board.save();
    let (empty, _) = self::board();
    assert!(empty.restore(&parts).is_err(), "there is nothing in its slot");
    let (other, _) = self::board();
    plug(&other).unwrap();
    other.restore(&parts).unwrap();
    assert_eq!(other.save(), parts);
    assert_eq!(status(&other), 1 << 6 | 1 << 3 | 1);
    control(&other, ON);
    assert_eq!(other.read(CHILD, 4), 0x1042_1af4);
    assert!(board.restore(&self::board().0.save()).is_err());
}

#[test]
fn noise_in_a_ports_registers_breaks_nothing() {
    let (board, ejected) = board();
    let mut state = 0x1234_5678_9abc_def1u64;
    for _ in 0..20_000 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let at = state >> 8 & 0xfff;
        let bus = (state >> 40 & 1) << 20;
        let slot = (state >> 41 & 1) << 15;
        let len = 1 + (state >> 44 & 3) as usize;
        board.write(ECAM + bus + slot + at, &state.to_le_bytes()[..len]);
        match state >> 50 & 0xf {
            0 => drop(plug(&board)),
            1 => drop(board.pci.ask_unplug(0)),
            2 => board.pci.pull(0),
            3 => drop(board.read(WINDOW.start + (state >> 20 & 0xff_ffff), 4)),
            _ => {}
        }
    }
    assert!(ejected.load(SeqCst) > 0);
    let parts = board.save();
    assert_eq!(board.restore(&parts).map_err(|e| e.to_string()), Ok(()));
}
