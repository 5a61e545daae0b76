use super::*;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

fn slot(id: SlotId, gpa: u64, mem: &Arc<Memfd>, offset: u64, len: u64) -> Change {
    Change::Map(Slot { id, gpa, mem: mem.clone(), offset, len, writable: true })
}

fn space() -> (Arc<GuestMem>, Arc<Memfd>) {
    let ram = Memfd::new(0x4000).unwrap();
    let mem = GuestMem::new(0x10000).unwrap();
    mem.update(&[slot(0, 0x1000, &ram, 0, 0x4000)], |_, _| Ok(())).unwrap();
    (mem, ram)
}

#[test]
fn what_is_written_is_read_and_only_memory_is_memory() {
    let (mem, _ram) = space();
    mem.write(0x1ffe, &[1, 2, 3, 4]).unwrap();
    let mut out = [0; 4];
    mem.read(0x1ffe, &mut out).unwrap();
    assert_eq!(out, [1, 2, 3, 4]);
    assert!(matches!(mem.write(0x4fff, &[1, 2]), Err(Error::NotMemory(0x5000))));
    mem.read(0x4fff, &mut out[..1]).unwrap();
    assert_eq!(out[0], 0, "a refused write wrote nothing");
    assert!(mem.read(0, &mut out).is_err());
}

#[test]
fn two_slots_of_one_memory_are_the_same_bytes() {
    let (mem, ram) = space();
    mem.update(&[slot(1, 0x10_0000, &ram, 0x1000, 0x1000)], |_, _| Ok(())).unwrap();
    mem.write(0x2008, &[7]).unwrap();
    let mut out = [0];
    mem.read(0x10_0008, &mut out).unwrap();
    assert_eq!(out, [7]);
}

#[test]
fn changes_apply_all_or_none() {
    let (mem, ram) = space();
    let both = [slot(1, 0x10_0000, &ram, 0, 0x1000), slot(2, 0x4000, &ram, 0, 0x1000)];
    assert!(matches!(mem.update(&both, |_, _| Ok(())), Err(Error::Overlap(2))));
    assert!(mem.layout().find(0x10_0000).is_none());
    assert!(mem.update(&both[..1], |_, _| Err(Error::Engine("no".into()))).is_err());
    assert!(mem.layout().find(0x10_0000).is_none());
    let beyond = slot(3, 0x20_0000, &ram, 0x1000, 0x4000);
    assert!(matches!(mem.update(&[beyond], |_, _| Ok(())), Err(Error::BadRange(3))));
    let big = Memfd::new(0x10000).unwrap();
    let full = slot(4, 0x20_0000, &big, 0, 0x10000);
    assert!(matches!(mem.update(&[full], |_, _| Ok(())), Err(Error::NoRoom(4))));
    mem.update(&[Change::Unmap(0)], |_, _| Ok(())).unwrap();
    assert!(mem.layout().regions().is_empty());
}

#[test]
fn an_offset_that_outlives_its_slot_is_harmless() {
    let (mem, _ram) = space();
    mem.write(0x1000, &[9]).unwrap();
    let at = mem.layout().find(0x1000).map(|(r, o)| r.arena_at(o)).unwrap();
    assert_eq!(mem.arena().load::<u8>(at), 9);
    mem.update(&[Change::Unmap(0)], |_, _| Ok(())).unwrap();
    mem.arena().store::<u8>(at, 1);
    assert_eq!(mem.arena().load::<u64>(ArenaOffset(usize::MAX)), 0);
    mem.arena().store::<u64>(ArenaOffset(usize::MAX), 1);
    mem.arena().store::<u8>(ArenaOffset(0xffff), 3);
    assert_eq!(mem.arena().load::<u8>(ArenaOffset(0xffff)), 3);
    assert_eq!(mem.arena().load::<u16>(ArenaOffset(0xffff)), 0);
}

#[test]
fn single_instruction_accesses() {
    let (mem, _ram) = space();
    let (arena, at) = (mem.arena(), mem.layout().regions()[0].arena_at(0x20));
    arena.store::<u64>(at, 0x1122_3344_5566_7788);
    assert_eq!(arena.load::<u32>(at), 0x5566_7788);
    assert_eq!(arena.load::<u16>(at), 0x7788);
    assert_eq!(arena.compare_exchange::<u8>(at, 0x88, 1), 0x88);
    assert_eq!(arena.compare_exchange::<u16>(at, 0, 1), 0x7701);
    assert_eq!(arena.exchange::<u32>(at, 5), 0x5566_7701);
    assert_eq!(
        arena.compare_exchange_16(at, 0x1122_3344_0000_0005, 1 << 64 | 2),
        0x1122_3344_0000_0005
    );
    assert_eq!((arena.load::<u64>(at), arena.load::<u64>(ArenaOffset(at.0 + 8))), (2, 1));
    assert_eq!(arena.compare_exchange_16(ArenaOffset(at.0 + 1), 0, 1), 0);
    arena.fill(at, 3, 0xee);
    assert_eq!(arena.load::<u32>(at), 0xee_eeee);
}

#[test]
fn dma_tells_the_planes_when_it_completes() {
    #[derive(Default)]
    struct Seen(AtomicU64);
    impl CodeWatch for Seen {
        fn invalidate(&self, gpa: Range<u64>) {
            self.0.store(gpa.start, SeqCst);
        }
    }
    let (mem, _ram) = space();
    let seen = Arc::new(Seen::default());
    let watch: Arc<dyn CodeWatch> = seen.clone();
    mem.watch_code(&watch);
    mem.set_log_dirty(true);
    let layout = mem.layout();
    let region = &layout.regions()[0];
    drop(mem.dma(0x2000, 16).unwrap());
    assert_eq!(seen.0.load(SeqCst), 0, "no code there");
    assert!(region.code().set(1));
    let mut buf = mem.dma(0x2010, 4).unwrap();
    buf.write(&[1; 8]);
    assert_eq!(seen.0.load(SeqCst), 0, "not complete");
    drop(buf);
    assert_eq!(seen.0.load(SeqCst), 0x2010);
    let mut out = PageBitmap::for_len(region.slot.len);
    region.take_dirty(&mut out);
    assert_eq!(out.pages().collect::<Vec<_>>(), [1]);
    let mut bytes = [0; 5];
    mem.read(0x2010, &mut bytes).unwrap();
    assert_eq!(bytes, [1, 1, 1, 1, 0], "no more than the buffer");
    assert!(mem.dma(0x4ff0, 0x20).is_none());
}

#[test]
fn discarded_pages_are_zero_and_not_allocated() {
    struct Seen(AtomicU64);
    impl CodeWatch for Seen {
        fn invalidate(&self, gpa: Range<u64>) {
            self.0.fetch_add(gpa.end - gpa.start, SeqCst);
        }
    }
    let (mem, ram) = space();
    let seen = Arc::new(Seen(AtomicU64::new(0)));
    let watch: Arc<dyn CodeWatch> = seen.clone();
    mem.watch_code(&watch);
    // Another slot behind a gap.
    let more = Memfd::new(0x2000).unwrap();
    mem.update(&[slot(1, 0x8000, &more, 0, 0x2000)], |_, _| Ok(())).unwrap();
    mem.write(0x1000, &[5; 0x4000]).unwrap();
    mem.write(0x8000, &[5; 0x2000]).unwrap();
    mem.layout().regions()[0].code().set(2);
    assert_eq!(mem.discard(0x1001, 0x1ffe), 0, "no whole page");
    assert_eq!(mem.discard(0x2800, 0x7000), 0x2000 + 0x1000);
    let byte = |at| {
        let mut out = [0];
        mem.read(at, &mut out).unwrap();
        out[0]
    };
    let bytes = [0x2fff, 0x3000, 0x4fff, 0x8fff, 0x9000].map(byte);
    assert_eq!(bytes, [5, 0, 0, 0, 5]);
    assert_eq!(seen.0.load(SeqCst), 0x2000, "there was code");
    assert_eq!(ram.discard(0, 0x4000).map_err(|e| e.kind()), Ok(()));
    for (at, len) in [(0, 0), (u64::MAX, 1), (u64::MAX - 4095, u64::MAX), (0x5000, 0x3000)] {
        assert_eq!(mem.discard(at, len), 0);
    }
    mem.write(0x3000, &[6]).unwrap();
    assert_eq!(byte(0x3000), 6);
}
