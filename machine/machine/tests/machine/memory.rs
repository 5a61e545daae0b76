//! Memory that comes and goes, and the balloon in it.

use crate::{common::*, guests};
use engine::Engine;
use machine::{Machine, MemoryInfo, engines};
use saved_state::{Part, Reader, Schema, Writer};
use std::sync::Arc;
use virtio_mem::MemState;
use vm_spec::VmSpec;

const MIB: u64 = 1 << 20;
/// Of the memory that can come, what the guest has.
const PLUGGED: u64 = 64 * MIB;

fn build(engine: &dyn Engine, spec: &VmSpec) -> Machine {
    let console = Arc::new(Console::default());
    Machine::build(engine, spec, parts(elf(guests::COUNTS), &console)).unwrap()
}

/// As if the guest had plugged so many bytes of memory.
pub fn plug(machine: &Machine, bytes: u64) {
    let handle = machine.handle();
    let mut parts = handle.save().unwrap().unwrap();
    let at = parts.iter().position(|part| part.kind == MemState::KIND).unwrap();
    let part: Part = parts.remove(at);
    let instance = part.instance;
    let mut state: MemState = Reader::new(vec![part]).unwrap().take(instance).unwrap();
    state.requested = bytes;
    state.plugged = vec![(0, bytes / virtio_mem::BLOCK)];
    let mut writer = Writer::default();
    writer.put(instance, &state);
    parts.extend(writer.finish());
    handle.restore(parts).unwrap().unwrap();
}

#[test]
fn a_balloon_leaves_what_is_asked_of_all_memory() {
    for kind in kinds() {
        let memory = spec(kind).memory;
        let most = memory + 128 * MIB;
        let spec = VmSpec { memory_max: Some(most), balloon: true, ..spec(kind) };
        let engine = engines::open(kind).unwrap();
        let machine = build(&*engine, &spec);
        let handle = machine.handle();
        // The memory of the guest, and what it is to give up.
        let balloon = |left: u64| {
            assert!(handle.balloon(left).unwrap());
            let info = handle.balloon_info().unwrap().unwrap();
            (info.memory, info.target)
        };
        assert_eq!(balloon(10 * MIB), (memory, memory - 10 * MIB));
        // A wish alone is no memory.
        assert_eq!(handle.set_memory(memory + PLUGGED), Ok(true));
        let wanted = memory + PLUGGED;
        let info = MemoryInfo { start: memory, most, wanted, now: memory };
        assert_eq!(handle.memory_info().unwrap(), Some(info));
        assert_eq!(balloon(memory), (memory, 0));
        plug(&machine, PLUGGED);
        let now = memory + PLUGGED;
        let info = MemoryInfo { start: memory, most, wanted: now, now };
        assert_eq!(handle.memory_info().unwrap(), Some(info));
        assert_eq!(balloon(now), (now, 0));
        assert_eq!(balloon(10 * MIB), (now, now - 10 * MIB), "{kind:?}");
        // A reset takes the memory away, and what the balloon was to take of it.
        handle.reset().unwrap();
        let info = handle.balloon_info().unwrap().unwrap();
        assert_eq!((info.memory, info.target), (memory, memory - 10 * MIB), "{kind:?}");
    }
}

#[test]
fn without_the_devices_nothing_is_asked() {
    for kind in kinds() {
        let engine = engines::open(kind).unwrap();
        let machine = build(&*engine, &spec(kind));
        let handle = machine.handle();
        assert_eq!((handle.set_memory(64 * MIB), handle.balloon(MIB)), (Ok(false), Ok(false)));
        assert_eq!((handle.memory_info(), handle.balloon_info()), (Ok(None), Ok(None)));
    }
}
