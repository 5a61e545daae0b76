//! A guest of which nothing runs in ring 0: all that would need it comes to the host. Without
//! /dev/kvm the tests are skipped, with the reason printed.

use engine::*;
use engine_kvm::KvmEngine;
use guest_mem::{Change, Memfd, Slot};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};
use vcpu_state::{MpState, SegReg, Segment, Table, VcpuState};
use x86_defs::{
    cr::{cr0, cr4, efer},
    exception::{BP, DB, GP, PF, UD},
    gpr::RCX,
    msr,
    paging::{A, D, P, RW, US},
    segment::{ATTR_L, ATTR_P, system_type},
};

const RAM: u64 = 4 << 20;
const CODE: u64 = 0x8000;
/// Page 0x19 may be read only, and 0x1a is not there.
const READ_ONLY: u64 = 0x19000;
const RING0: Ring0 = Ring0 { gpa: 0x11_0000, linear: SUPERVISOR + 0x1000, pages: 3, code: 0x8 };
const SUPERVISOR: u64 = 0xffff_8080_0000_0000;

#[derive(Default)]
struct Host {
    /// Cause, and RIP of what follows.
    traps: Vec<(Cause, u64)>,
    asked: bool,
    next: Option<u64>,
}

impl VcpuHost for Host {
    fn pio_in(&mut self, _: u16, _: usize, _: &mut [u8]) -> Flow {
        Flow::Stop
    }
    fn pio_out(&mut self, _: u16, _: usize, _: &[u8]) -> Flow {
        Flow::Stop
    }
    fn mmio_read(&mut self, _: u64, _: &mut [u8]) -> Flow {
        Flow::Stop
    }
    fn mmio_write(&mut self, _: u64, _: &[u8]) -> Flow {
        Flow::Stop
    }
    fn pending(&self) -> Option<Pending> {
        self.asked.then_some(Pending::Personality)
    }
    fn ack(&mut self, _: Pending) -> Option<u8> {
        None
    }
    fn tsc(&mut self) -> u64 {
        0
    }
    fn trap(&mut self, trap: Trap, cpu: &mut dyn CpuView) -> Flow {
        assert_eq!(cpu.segment(SegReg::Cs).selector, 0x33);
        assert_eq!(cpu.segment(SegReg::Ss).selector, 0x2b);
        self.asked = false;
        self.traps.push((trap.cause, trap.next));
        if let Some(next) = self.next.take() {
            cpu.regs().rip = next;
            return Flow::Continue;
        }
        cpu.halt();
        Flow::Stop
    }
}

fn guest() -> Option<(Arc<dyn Vm>, Box<dyn Vcpu>)> {
    let engine = KvmEngine::open().inspect_err(|why| println!("skipped: {why}")).ok()?;
    let intercepts = Intercepts { exceptions: !0, syscall: true, cpuid: false };
    let config = VmConfig { intercepts, ring0: Some(RING0), memory: RAM, ..VmConfig::default() };
    let vm = engine.create_vm(&config).unwrap();
    let mem = Memfd::new(RAM).unwrap();
    let slot = Slot { id: 0, gpa: 0, mem, offset: 0, len: RAM, writable: true };
    vm.set_layout(&[Change::Map(slot)]).unwrap();
    let put = |at: u64, value: u64| vm.memory().write(at, &value.to_le_bytes()).unwrap();
    // 4 levels from 0x1000 on for the program, and from 0x5000 on for the shim.
    for (at, to) in [(0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000)] {
        put(at, to | P | RW | US | A);
    }
    for (at, to) in [(0x1000 + 257 * 8, 0x5000), (0x5000, 0x6000), (0x6000, 0x7000)] {
        put(at, to | P | RW | A);
    }
    for page in [CODE, 0x9000, READ_ONLY] {
        let rights = if page == READ_ONLY { 0 } else { RW };
        put(0x4000 + page / 4096 * 8, page | P | US | A | D | rights);
    }
    // The GDT, and behind it the shim.
    for page in 0..1 + RING0.pages {
        put(0x7000 + page * 8, (0x10_f000 + page * 4096) | P | RW | A | D);
    }
    for (index, descriptor) in
        [(1, 0x00af_9b00_0000_ffff), (5, 0x00cf_f300_0000_ffff), (6, 0x00af_fb00_0000_ffff)]
    {
        put(0x10_f000 + index * 8, descriptor);
    }
    let vcpu = vm.create_vcpu(0).unwrap();
    Some((vm, vcpu))
}

fn state() -> VcpuState {
    let mut state = VcpuState::reset(0);
    let flat = |selector, attr| Segment { selector, base: 0, limit: u32::MAX, attr };
    for which in [SegReg::Ds, SegReg::Es, SegReg::Fs, SegReg::Gs, SegReg::Ldtr] {
        *state.segment_mut(which) = Segment::default();
    }
    *state.segment_mut(SegReg::Cs) = flat(0x33, 0x80fb | ATTR_L);
    *state.segment_mut(SegReg::Ss) = flat(0x2b, 0xc0f3);
    let busy = ATTR_P | system_type::TSS_BUSY;
    *state.segment_mut(SegReg::Tr) = Segment { attr: busy, ..Segment::default() };
    state.segments.gdtr = Table { base: SUPERVISOR, limit: 0xfff };
    state.segments.idtr = Table { base: 0, limit: 0 };
    state.control.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::PG;
    state.control.cr3 = 0x1000;
    state.control.cr4 = cr4::PAE | cr4::OSFXSR;
    state.control.efer = efer::SCE | efer::LME | efer::LMA | efer::NXE;
    state.regs.rip = CODE;
    state.regs.gpr[4] = 0xa000;
    state.regs.rflags = 0x202;
    state
}

/// What an instruction raises: vector, error code, address, and how far behind it RIP is.
fn raised(code: &[u8]) -> Option<(Cause, u64)> {
    let (vm, mut vcpu) = guest()?;
    vm.memory().write(CODE, code).unwrap();
    vcpu.set_state(&state()).unwrap();
    let mut host = Host::default();
    assert_eq!(vcpu.run(&mut host).unwrap(), Exit::Stopped);
    assert_eq!(host.traps.len(), 1, "{:?}", host.traps);
    host.traps.pop()
}

fn exception(cause: Cause) -> (u8, Option<u32>, u64) {
    let Cause::Exception(e) = cause else { panic!("{cause:?}") };
    (e.vector, e.error, e.payload)
}

#[test]
fn exceptions_and_system_calls_come_to_the_host() {
    // The kernel may say that entries are reserved which it keeps to itself.
    const RSVD: u32 = 8;
    let store = [0x48, 0x89, 0x04, 0x25, 0x00, 0x90, 0x01, 0x00];
    let load = [0x48, 0x8b, 0x04, 0x25, 0x08, 0xa0, 0x01, 0x00];
    let gp = (GP, Some(0), 0);
    for (code, wanted, behind) in [
        (&[0x0f, 0x0b][..], (UD, None, 0), 0),
        (&store, (PF, Some(7), READ_ONLY), 0),
        (&load, (PF, Some(4), 0x1a008), 0),
        (&[0xe6, 0x80], gp, 0),
        (&[0xe4, 0x80], gp, 0),
        (&[0xfa], gp, 0),
        (&[0xf4], gp, 0),
        (&[0x0f, 0x22, 0xd8], gp, 0),
        (&[0xcc], (BP, None, 0), 1),
        // PUSHF; OR DWORD [RSP], 0x100; POPF; NOP.
        (&[0x9c, 0x81, 0x0c, 0x24, 0, 1, 0, 0, 0x9d, 0x90], (DB, None, 1 << 14), 10),
    ] {
        let Some((cause, next)) = raised(code) else { return };
        assert_eq!((exception(cause), next), (wanted, CODE + behind), "{code:x?}");
    }
    assert_eq!(raised(&[0x0f, 0x05]).unwrap(), (Cause::Syscall, CODE + 2));
    // The shim is out of reach: MOV RAX, imm64; MOV RAX, [RAX].
    let at = RING0.linear.to_le_bytes();
    let (cause, next) = raised(&[&[0x48, 0xb8][..], &at, &[0x48, 0x8b, 0x00]].concat()).unwrap();
    let (vector, error, address) = exception(cause);
    assert_eq!((vector, error.unwrap() & !RSVD, address), (PF, 5, RING0.linear));
    assert_eq!(next, CODE + 10);
}

#[test]
fn an_address_that_is_none_raises_what_a_fetch_there_would() {
    let Some((vm, mut vcpu)) = guest() else { return };
    vm.memory().write(CODE, &[0x0f, 0x0b]).unwrap();
    vcpu.set_state(&state()).unwrap();
    let mut host = Host { next: Some(1 << 47), ..Host::default() };
    assert_eq!(vcpu.run(&mut host).unwrap(), Exit::Stopped);
    assert_eq!(exception(host.traps[1].0), (GP, Some(0), 0));
    let bad = VcpuState { regs: vcpu_state::Regs { rip: 1 << 47, ..state().regs }, ..state() };
    assert!(vcpu.set_state(&bad).is_err());
}

#[test]
fn a_state_has_nothing_of_the_shim() {
    let Some((vm, mut vcpu)) = guest() else { return };
    // JMP to itself.
    vm.memory().write(CODE, &[0xeb, 0xfe]).unwrap();
    let mut given = state();
    given.regs.gpr[RCX] = 5;
    vcpu.set_state(&given).unwrap();
    let same = |state: &VcpuState| {
        assert_eq!(state.regs, given.regs);
        assert_eq!(state.segments, given.segments);
        assert_eq!(state.control, given.control);
        assert_eq!(state.msrs.get(msr::LSTAR), None);
    };
    same(&vcpu.state().unwrap());
    let mut host = Host { asked: true, ..Host::default() };
    assert_eq!(vcpu.run(&mut host).unwrap(), Exit::Stopped);
    assert_eq!(host.traps, [(Cause::Asked, CODE)]);
    let halted = vcpu.state().unwrap();
    assert_eq!(halted.mp, MpState::Halted);
    same(&halted);
    assert_eq!(vcpu.run(&mut host).unwrap(), Exit::Idle);
    vcpu.set_state(&given).unwrap();
    // In the middle of the loop.
    let kick = vcpu.kicker();
    let kicker = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        kick.stop();
    });
    assert_eq!(vcpu.run(&mut host).unwrap(), Exit::Stopped);
    kicker.join().unwrap();
    same(&vcpu.state().unwrap());
}

/// Counts breakpoints as the guest does in RCX, while it is asked to look all the time.
struct Counting {
    asked: Arc<AtomicBool>,
    looks: u64,
    breakpoints: u64,
    until: u64,
}

impl VcpuHost for Counting {
    fn pio_in(&mut self, _: u16, _: usize, _: &mut [u8]) -> Flow {
        Flow::Stop
    }
    fn pio_out(&mut self, _: u16, _: usize, _: &[u8]) -> Flow {
        Flow::Stop
    }
    fn mmio_read(&mut self, _: u64, _: &mut [u8]) -> Flow {
        Flow::Stop
    }
    fn mmio_write(&mut self, _: u64, _: &[u8]) -> Flow {
        Flow::Stop
    }
    fn pending(&self) -> Option<Pending> {
        self.asked.load(SeqCst).then_some(Pending::Personality)
    }
    fn ack(&mut self, _: Pending) -> Option<u8> {
        None
    }
    fn tsc(&mut self) -> u64 {
        0
    }
    fn trap(&mut self, trap: Trap, cpu: &mut dyn CpuView) -> Flow {
        if trap.cause == Cause::Asked {
            self.asked.store(false, SeqCst);
            self.looks += 1;
            return Flow::Continue;
        }
        assert_eq!(exception(trap.cause).0, BP);
        self.breakpoints += 1;
        assert_eq!(cpu.regs().gpr[RCX], self.breakpoints, "of {} looks", self.looks);
        if self.breakpoints < self.until { Flow::Continue } else { Flow::Stop }
    }
}

/// The kernel does not say that an INT3 is on its way, and its RIP may be behind the instruction
/// already: a look at the vCPU at that moment must not be taken for one between instructions.
#[test]
fn no_breakpoint_is_lost_to_a_kick() {
    let Some((vm, mut vcpu)) = guest() else { return };
    // INC RCX; INT3; JMP.
    vm.memory().write(CODE, &[0x48, 0xff, 0xc1, 0xcc, 0xeb, 0xfa]).unwrap();
    vcpu.set_state(&state()).unwrap();
    let (asked, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (kick, ask, until) = (vcpu.kicker(), asked.clone(), done.clone());
    let kicker = std::thread::spawn(move || {
        while !until.load(SeqCst) {
            ask.store(true, SeqCst);
            kick.notify();
            // The guest is to get on, too.
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
    });
    let mut host = Counting { asked, looks: 0, breakpoints: 0, until: 5_000 };
    let exit = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| vcpu.run(&mut host)));
    done.store(true, SeqCst);
    kicker.join().unwrap();
    assert_eq!(exit.unwrap().unwrap(), Exit::Stopped);
}

/// One that has been taken is not on its way any more: a kick stops what follows.
#[test]
fn a_kick_stops_a_guest_behind_a_breakpoint() {
    let Some((vm, mut vcpu)) = guest() else { return };
    // INC RCX; INT3; JMP to itself.
    vm.memory().write(CODE, &[0x48, 0xff, 0xc1, 0xcc, 0xeb, 0xfe]).unwrap();
    vcpu.set_state(&state()).unwrap();
    let kick = vcpu.kicker();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut host = Counting { asked: Arc::default(), looks: 0, breakpoints: 0, until: 2 };
        let exit = vcpu.run(&mut host).unwrap();
        tell.send((exit, host.breakpoints)).unwrap();
    });
    std::thread::sleep(std::time::Duration::from_millis(100));
    kick.stop();
    let stopped = told.recv_timeout(std::time::Duration::from_secs(20));
    assert_eq!(stopped, Ok((Exit::Stopped, 1)));
}
