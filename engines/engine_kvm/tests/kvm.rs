//! What only this engine has: the kernel's APICs and what hangs on them. The rest is in the
//! conformance suite. Without /dev/kvm these tests are skipped, with the reason printed.

use engine::*;
use engine_kvm::{HostKvm, KvmEngine};
use guest_mem::{Change, Memfd, PageBitmap, Slot};
use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, FromRawFd, OwnedFd},
    sync::{Arc, Mutex},
};
use vcpu_state::{MpState, SegReg, Tsc, VcpuState};

#[derive(Default)]
struct Bus {
    log: Vec<String>,
    line: Arc<Mutex<Option<(Pending, u8)>>>,
}

impl Bus {
    fn saw(&mut self, access: String) -> Flow {
        let stop = access.starts_with("out 0xf4");
        self.log.push(access);
        if stop { Flow::Stop } else { Flow::Continue }
    }
}

impl VcpuHost for Bus {
    fn pio_in(&mut self, port: u16, size: usize, data: &mut [u8]) -> Flow {
        data.fill(7);
        self.saw(format!("in {port:#x} {size}"))
    }
    fn pio_out(&mut self, port: u16, _: usize, data: &[u8]) -> Flow {
        self.saw(format!("out {port:#x} {data:?}"))
    }
    fn mmio_read(&mut self, gpa: u64, data: &mut [u8]) -> Flow {
        data.fill(0x5a);
        self.saw(format!("read {gpa:#x} {}", data.len()))
    }
    fn mmio_write(&mut self, gpa: u64, data: &[u8]) -> Flow {
        self.saw(format!("write {gpa:#x} {data:x?}"))
    }
    fn pending(&self) -> Option<Pending> {
        self.line.lock().unwrap().map(|(what, _)| what)
    }
    fn ack(&mut self, what: Pending) -> Option<u8> {
        let taken = self.line.lock().unwrap().take();
        taken.filter(|(pending, _)| *pending == what).map(|(_, vector)| vector)
    }
    fn eoi(&mut self, vector: u8) -> Flow {
        self.saw(format!("eoi {vector:#x}"))
    }
    fn tsc(&mut self) -> u64 {
        0
    }
}

struct Guest {
    vm: Arc<dyn Vm>,
    cpu: Box<dyn Vcpu>,
    bus: Bus,
}

const RAM: u64 = 16 << 20;

/// out 0x99, al; iret: no EOI
const HANDLER: &[u8] = &[0xe6, 0x99, 0xcf];
/// out 0xf4, al; jmp $
const END: &[u8] = &[0xe6, 0xf4, 0xeb, 0xfe];

/// Real mode: 16 MiB at 0, code at 0x1000, vectors 2, 0x20 and 0x30 lead to a handler.
fn guest(code: &[u8]) -> Option<Guest> {
    guest_of(KvmEngine::open(), code)
}

fn guest_of(engine: Result<KvmEngine, Error>, code: &[u8]) -> Option<Guest> {
    let engine = match engine {
        Ok(engine) => engine,
        Err(e) => {
            println!("skipped: {e}");
            return None;
        }
    };
    let vm = engine.create_vm(&VmConfig { memory: RAM, ..VmConfig::default() }).unwrap();
    let mem = Memfd::new(RAM).unwrap();
    let slot = Slot { id: 0, gpa: 0, mem, offset: 0, len: RAM, writable: true };
    vm.set_layout(&[Change::Map(slot)]).unwrap();
    for vector in [2, 0x20, 0x30] {
        vm.memory().write(vector * 4, &[0x00, 0x20, 0, 0]).unwrap();
    }
    vm.memory().write(0x2000, HANDLER).unwrap();
    vm.memory().write(0x1000, &[code, END].concat()).unwrap();
    let mut cpu = vm.create_vcpu(0).unwrap();
    cpu.set_state(&start(0)).unwrap();
    Some(Guest { vm, cpu, bus: Bus::default() })
}

fn start(id: u32) -> VcpuState {
    let mut state = VcpuState::reset(id);
    let cs = state.segment_mut(SegReg::Cs);
    (cs.selector, cs.base) = (0, 0);
    state.regs.rip = 0x1000;
    state.regs.gpr[4] = 0x7000;
    // The APIC is software-enabled, and LINT0 takes the PIC's interrupts.
    state.apic.regs[0xf] = 0x1ff;
    state.apic.regs[0x35] = 0x700;
    state
}

impl Guest {
    fn run(&mut self) -> Exit {
        self.cpu.run(&mut self.bus).unwrap()
    }
}

#[expect(unsafe_code, reason = "std cannot make eventfds")]
fn eventfd() -> File {
    // SAFETY: has no preconditions; the result is checked, and owned by nobody else.
    let fd = unsafe {
        let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
        assert!(fd >= 0);
        OwnedFd::from_raw_fd(fd)
    };
    File::from(fd)
}

#[test]
fn reset_is_restoring_the_reset_values() {
    let Some(mut g) = guest(&[0xb0, 5]) else { return };
    assert_eq!(g.run(), Exit::Stopped);
    let mut ap = g.vm.create_vcpu(1).unwrap();
    for (id, cpu) in [(0, &mut g.cpu), (1, &mut ap)] {
        cpu.set_state(&VcpuState::reset(id)).unwrap();
        let state = cpu.state().unwrap();
        assert_eq!(VcpuState { tsc: Tsc::default(), ..state }, VcpuState::reset(id));
    }
}

#[test]
fn ports_and_mmio_are_finished_before_a_stop() {
    // in al, 0x10; mov [fs:0x8000], al with FS beyond RAM
    let code = [0xe4, 0x10, 0x64, 0xa2, 0, 0x80];
    let Some(mut g) = guest(&code) else { return };
    let mut state = start(0);
    state.segment_mut(SegReg::Fs).base = 0x500_0000;
    g.cpu.set_state(&state).unwrap();
    assert_eq!(g.run(), Exit::Stopped);
    assert_eq!(g.bus.log, ["in 0x10 1", "write 0x5008000 [7]", "out 0xf4 [7]"]);
    assert_eq!(g.cpu.state().unwrap().regs.rip, 0x1000 + code.len() as u64 + 2);
}

#[test]
fn a_message_interrupts() {
    // sti; hlt
    let Some(mut g) = guest(&[0xfb, 0xf4]) else { return };
    g.vm.signal_msi(Msi { address: 0xfee0_0000, data: 0x30 }).unwrap();
    assert_eq!(g.run(), Exit::Stopped);
    assert_eq!(g.bus.log, ["out 0x99 [0]", "out 0xf4 [0]"]);
    let isr = g.cpu.state().unwrap().apic.regs[0x11];
    if engine_kvm::probe() == HostKvm::SoftwareOnly {
        println!("skipped: the software KVM ends interrupts in real mode as it delivers them");
    } else {
        assert_eq!(isr, 1 << 16, "in service until its EOI");
    }
}

#[test]
fn the_pics_interrupt_waits_for_its_window_and_wakes_a_halt() {
    // out 1, al; sti; out 2, al; hlt
    let Some(mut g) = guest(&[0xe6, 1, 0xfb, 0xe6, 2, 0xf4]) else { return };
    *g.bus.line.lock().unwrap() = Some((Pending::Interrupt, 0x20));
    let (kick, line) = (g.cpu.kicker(), g.bus.line.clone());
    std::thread::scope(|s| {
        s.spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            *line.lock().unwrap() = Some((Pending::Interrupt, 0x20));
            kick.notify();
        });
        assert_eq!(g.run(), Exit::Stopped);
    });
    let want = ["out 0x1 [0]", "out 0x2 [0]", "out 0x99 [0]", "out 0x99 [0]", "out 0xf4 [0]"];
    assert_eq!(g.bus.log, want);
}

#[test]
fn an_irqfd_interrupts_unless_masked() {
    let Some(mut g) = guest(&[0xfb, 0xf4]) else { return };
    let mut event = eventfd();
    let msi = |vector| Msi { address: 0xfee0_0000, data: vector };
    let irq = g.vm.irqfd(msi(0x31), event.as_fd()).unwrap();
    irq.mask(true).unwrap();
    irq.update(msi(0x30)).unwrap();
    event.write_all(&1u64.to_le_bytes()).unwrap();
    assert_eq!(g.cpu.state().unwrap().apic.regs[0x21], 0, "collected, not delivered");
    irq.mask(false).unwrap();
    assert_eq!(g.run(), Exit::Stopped);
    assert_eq!(g.bus.log, ["out 0x99 [0]", "out 0xf4 [0]"]);
    drop(irq);
    event.write_all(&1u64.to_le_bytes()).unwrap();
    assert_eq!(g.cpu.state().unwrap().apic.regs[0x21], 0, "unbound");
}

#[test]
fn a_doorbell_rings_without_a_callback() {
    // mov al, 1; out 0x40, al; mov al, 2; out 0x40, al
    let Some(mut g) = guest(&[0xb0, 1, 0xe6, 0x40, 0xb0, 2, 0xe6, 0x40]) else { return };
    let mut event = eventfd();
    let at = Doorbell { at: DoorbellAddress::Port(0x40), len: 1, datamatch: Some(1) };
    let bell = g.vm.doorbell(&at, event.as_fd()).unwrap();
    assert_eq!(g.run(), Exit::Stopped);
    assert_eq!(g.bus.log, ["out 0x40 [2]", "out 0xf4 [2]"]);
    let mut count = [0; 8];
    event.read_exact(&mut count).unwrap();
    assert_eq!(u64::from_le_bytes(count), 1);
    drop(bell);
    g.cpu.set_state(&start(0)).unwrap();
    g.bus.log.clear();
    assert_eq!(g.run(), Exit::Stopped);
    assert_eq!(g.bus.log, ["out 0x40 [1]", "out 0x40 [2]", "out 0xf4 [2]"]);
}

#[test]
fn the_end_of_a_level_triggered_interrupt_is_told() {
    // sti; hlt; mov [fs:0xb0], eax with FS at the APIC's page
    let code = [0xfb, 0xf4, 0x64, 0x66, 0xa3, 0xb0, 0];
    let Some(mut g) = guest(&code) else { return };
    let level = Msi { address: 0xfee0_0000, data: 1 << 15 | 1 << 14 | 0x30 };
    g.vm.set_pin_routes(&[None, Some(level)]).unwrap();
    let mut state = start(0);
    state.segment_mut(SegReg::Fs).base = 0xfee0_0000;
    g.cpu.set_state(&state).unwrap();
    g.vm.signal_msi(level).unwrap();
    assert_eq!(g.run(), Exit::Stopped);
    assert_eq!(g.bus.log, ["out 0x99 [0]", "eoi 0x30", "out 0xf4 [0]"]);
}

#[test]
fn init_and_sipi_are_the_kernels() {
    // mov al, 5
    let Some(mut g) = guest(&[0xb0, 5]) else { return };
    let mut ap = g.vm.create_vcpu(1).unwrap();
    assert_eq!(ap.state().unwrap().mp, MpState::WaitForSipi);
    // SIPI to APIC 1 with vector 1, through the ICR.
    let mut state = start(0);
    state.segment_mut(SegReg::Fs).base = 0xfee0_0000;
    state.regs.gpr[0] = 1 << 24;
    state.regs.gpr[3] = 0x4601;
    g.cpu.set_state(&state).unwrap();
    // mov [fs:0x310], eax; mov [fs:0x300], ebx
    let code = [0x64, 0x66, 0xa3, 0x10, 3, 0x64, 0x66, 0x89, 0x1e, 0, 3];
    g.vm.memory().write(0x3000, &[&code, END].concat()).unwrap();
    state.regs.rip = 0x3000;
    g.cpu.set_state(&state).unwrap();
    assert_eq!(g.run(), Exit::Stopped);
    let mut bus = Bus::default();
    assert_eq!(ap.run(&mut bus).unwrap(), Exit::Stopped);
    assert_eq!(bus.log, ["out 0xf4 [5]"]);
}

#[test]
fn dirty_pages_are_the_guests_and_the_devices() {
    // mov [0x3000], al
    let Some(mut g) = guest(&[0xa2, 0, 0x30]) else { return };
    g.vm.log_dirty(true).unwrap();
    assert_eq!(g.run(), Exit::Stopped);
    g.vm.memory().write(0x5000, &[1]).unwrap();
    let mut out = PageBitmap::for_len(RAM);
    g.vm.take_dirty(0, &mut out).unwrap();
    assert_eq!(out.pages().collect::<Vec<_>>(), [3, 5]);
    let mut again = PageBitmap::for_len(RAM);
    g.vm.take_dirty(0, &mut again).unwrap();
    assert_eq!(again.pages().count(), 0);
}

#[test]
fn dirty_rings_tell_the_same_and_never_overflow() {
    const PAGES: u32 = 3000;
    // mov ecx, 3000; mov ebx, 0x100000; l: mov [ebx], al; out 0x50, al; add ebx, 4096;
    // dec ecx; jnz l. The exits are for the software KVM, which emulates many instructions
    // between two looks at the ring, and overruns it.
    let code = [
        &[0x66, 0xb9][..],
        &PAGES.to_le_bytes(),
        &[0x66, 0xbb, 0, 0, 0x10, 0, 0x67, 0x88, 0x03, 0xe6, 0x50, 0x66, 0x81, 0xc3, 0, 0x10, 0, 0],
        &[0x66, 0x49, 0x75, 0xf0],
    ]
    .concat();
    let Some(mut g) = guest_of(KvmEngine::with_dirty_rings(1024), &code) else { return };
    let mut state = start(0);
    let ds = state.segment_mut(SegReg::Ds);
    (ds.limit, ds.attr) = (!0, 0x8093);
    g.cpu.set_state(&state).unwrap();
    g.vm.log_dirty(true).unwrap();
    assert_eq!(g.run(), Exit::Stopped);
    g.vm.memory().write(0x5000, &[1]).unwrap();
    let mut out = PageBitmap::for_len(RAM);
    g.vm.take_dirty(0, &mut out).unwrap();
    let expected = std::iter::once(5).chain(256..256 + PAGES as usize);
    assert!(out.pages().eq(expected), "{:?}", out.pages().count());
    let mut again = PageBitmap::for_len(RAM);
    g.vm.take_dirty(0, &mut again).unwrap();
    assert_eq!(again.pages().count(), 0);
    assert!(KvmEngine::with_dirty_rings(1000).is_err());
}

#[test]
fn what_the_machine_cannot_have_is_refused() {
    let Some(mut g) = guest(&[]) else { return };
    let mut bad = start(0);
    bad.tsc.khz = 1;
    assert!(matches!(g.cpu.set_state(&bad), Err(Error::State(_))));
    let mut bad = start(0);
    bad.msrs.set(0x1234_5678, 1);
    assert!(matches!(g.cpu.set_state(&bad), Err(Error::State(_))));
    let mut bad = start(0);
    bad.control.cr4 = 1 << 30;
    assert!(matches!(g.cpu.set_state(&bad), Err(Error::State(_))));
    assert!(g.vm.set_pin_routes(&[None; 25]).is_err());
}
