//! Slots that come and go, read-only memory, dirty pages, code that others change.

use conformance::*;
use engine::Flow;
use guest_mem::{Change, Memfd, PageBitmap, Slot};

const HIGH: u64 = 0x40_0000;

/// mov al, [HIGH]; out 0x10, al; mov byte [HIGH], 0x99
const TOUCH: &[u8] =
    &[0x8a, 0x04, 0x25, 0, 0, 0x40, 0, 0xe6, 0x10, 0xc6, 0x04, 0x25, 0, 0, 0x40, 0, 0x99];

fn guest(e: &UnderTest, code: &[u8]) -> Guest {
    let g = Guest::new(e, Mode::Long, code);
    g.write(0xa010, &(HIGH | 0x87).to_le_bytes());
    g
}

#[test]
fn slots_come_and_go() {
    each_engine(|e| {
        let mut g = guest(e, TOUCH);
        let high = Memfd::new(0x1000).unwrap();
        g.vm.set_layout(&[Change::Map(slot(7, HIGH, &high))]).unwrap();
        g.write(HIGH, &[0x31]);
        g.finish();
        assert_eq!(g.bus.take(), [Event::Out(0x10, vec![0x31]), Event::Out(0xf4, vec![0x31])]);
        assert_eq!(g.read(HIGH), [0x99]);
        let generation = g.vm.set_layout(&[Change::Unmap(7)]).unwrap();
        assert!(g.vm.settled(generation));
        g.cpu.set_state(&Mode::Long.state()).unwrap();
        g.finish();
        let log = g.bus.take();
        assert_eq!(log[0], Event::Read(HIGH, 1), "not memory any more");
        assert_eq!(log[2], Event::Write(HIGH, vec![0x99]));
        g.vm.set_layout(&[Change::Map(slot(7, HIGH, &high))]).unwrap();
        assert_eq!(g.read(HIGH), [0x99], "the memory was kept");
    });
}

#[test]
fn a_layout_is_applied_whole_or_not_at_all() {
    each_engine(|e| {
        let mut g = guest(e, TOUCH);
        let high = Memfd::new(0x1000).unwrap();
        let overlapping = slot(8, 0x1000, &high);
        let changes = [Change::Map(slot(7, HIGH, &high)), Change::Map(overlapping)];
        assert!(g.vm.set_layout(&changes).is_err());
        g.finish();
        assert_eq!(g.bus.log[0], Event::Read(HIGH, 1));
    });
}

#[test]
fn a_layout_can_change_from_a_callback() {
    each_engine(|e| {
        // out 0x20, al before touching it
        let mut g = guest(e, &[&[0xe6, 0x20][..], TOUCH].concat());
        let high = Memfd::new(0x1000).unwrap();
        let (vm, map) = (g.vm.clone(), slot(7, HIGH, &high));
        g.bus.hook = Some(Box::new(move |event| {
            if matches!(event, Event::Out(0x20, _)) {
                vm.set_layout(&[Change::Map(map.clone())]).unwrap();
                vm.memory().write(HIGH, &[0x44]).unwrap();
            }
            Flow::Continue
        }));
        g.finish();
        assert_eq!(g.bus.log[1], Event::Out(0x10, vec![0x44]));
    });
}

#[test]
fn writes_to_read_only_memory_are_mmio() {
    each_engine(|e| {
        let mut g = guest(e, TOUCH);
        let high = Memfd::new(0x1000).unwrap();
        g.vm.set_layout(&[Change::Map(Slot { writable: false, ..slot(7, HIGH, &high) })]).unwrap();
        g.write(HIGH, &[0x12]);
        g.finish();
        let want = [
            Event::Out(0x10, vec![0x12]),
            Event::Write(HIGH, vec![0x99]),
            Event::Out(0xf4, vec![0x12]),
        ];
        assert_eq!(g.bus.log, want);
        assert_eq!(g.read(HIGH), [0x12]);
    });
}

#[test]
fn one_memory_can_be_at_two_addresses() {
    each_engine(|e| {
        // mov byte [HIGH], 0x66; mov al, [HIGH + 0x1000]; out 0x10, al
        let code =
            [0xc6, 0x04, 0x25, 0, 0, 0x40, 0, 0x66, 0x8a, 0x04, 0x25, 0, 0x10, 0x40, 0, 0xe6, 0x10];
        let mut g = guest(e, &code);
        let mem = Memfd::new(0x1000).unwrap();
        let maps = [(7, HIGH), (8, HIGH + 0x1000)].map(|(id, at)| Change::Map(slot(id, at, &mem)));
        g.vm.set_layout(&maps).unwrap();
        g.finish();
        assert_eq!(g.bus.log[0], Event::Out(0x10, vec![0x66]));
    });
}

#[test]
fn dirty_pages_are_those_that_the_guest_and_devices_wrote() {
    each_engine(|e| {
        for mode in [Mode::Real, Mode::Long] {
            // mov [0x4000], al; out 0x20, al; mov [0x5000], al
            let code: &[u8] = if mode == Mode::Real {
                &[0xa2, 0, 0x40, 0xe6, 0x20, 0xa2, 0, 0x50]
            } else {
                &[0x88, 0x04, 0x25, 0, 0x40, 0, 0, 0xe6, 0x20, 0x88, 0x04, 0x25, 0, 0x50, 0, 0]
            };
            let mut g = Guest::new(e, mode, code);
            g.vm.log_dirty(true).unwrap();
            let take = |g: &Guest| {
                let mut out = PageBitmap::for_len(RAM);
                g.vm.take_dirty(0, &mut out).unwrap();
                // Page tables: accessed and dirty bits.
                out.pages().filter(|p| !(8..12).contains(p)).collect::<Vec<_>>()
            };
            g.bus.hook = Some(Box::new(|e| match e {
                Event::Out(0x20, _) => Flow::Stop,
                _ => Flow::Continue,
            }));
            assert_eq!(g.run(), engine::Exit::Stopped);
            assert_eq!(take(&g), [4], "{mode:?}");
            g.write(0xd123, &[1]);
            g.finish();
            assert_eq!(take(&g), [5, 0xd], "{mode:?}");
            assert_eq!(take(&g), [0; 0], "{mode:?}");
            // Off and on again: what is written then is logged.
            g.vm.log_dirty(false).unwrap();
            g.vm.log_dirty(true).unwrap();
            g.cpu.set_state(&mode.state()).unwrap();
            g.bus.hook = None;
            g.finish();
            let again = take(&g);
            assert!(again.contains(&4) && again.contains(&5), "{mode:?}: {again:?}");
        }
    });
}

#[test]
fn code_that_a_device_changes_is_executed_as_changed() {
    each_engine(|e| {
        // l: mov al, 1; out 0x20, al; jmp l
        let mut g = Guest::new(e, Mode::Long, &[0xb0, 1, 0xe6, 0x20, 0xeb, 0xfa]);
        let vm = g.vm.clone();
        let mut count = 0;
        g.bus.hook = Some(Box::new(move |_| {
            count += 1;
            if count == 3 {
                vm.memory().write(CODE + 1, &[2]).unwrap();
            }
            if count == 4 {
                let mut dma = vm.memory().dma(CODE + 1, 1).unwrap();
                dma.write(&[3]);
            }
            if count == 5 { Flow::Stop } else { Flow::Continue }
        }));
        assert_eq!(g.run(), engine::Exit::Stopped);
        let values: Vec<_> =
            g.bus.log.iter().map(|e| if let Event::Out(_, b) = e { b[0] } else { 0 }).collect();
        assert_eq!(values, [1, 1, 1, 2, 3]);
    });
}

#[test]
fn code_that_changes_itself_is_executed_as_changed() {
    each_engine(|e| {
        // mov ecx, 3; l: mov al, 1 (its operand at CODE+6); out 0x20, al;
        // inc byte [CODE + 6]; dec ecx; jnz l
        let operand = (CODE as u32 + 6).to_le_bytes();
        let code = [
            &[0xb9, 3, 0, 0, 0, 0xb0, 1, 0xe6, 0x20, 0xfe, 0x04, 0x25][..],
            &operand,
            &[0xff, 0xc9, 0x75, 0xf1],
        ]
        .concat();
        let mut g = Guest::new(e, Mode::Long, &code);
        g.finish();
        let want: Vec<_> = (1..4).map(|v| Event::Out(0x20, vec![v])).collect();
        assert_eq!(g.bus.log[..3], want);
    });
}
