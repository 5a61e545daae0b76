//! A domain whose vCPU has no engine, for calls one at a time.

use engine::{Cause, ClockSample, CpuView, Flow, Roots, TableChanges, Trap};
use guest_mem::{Change, GuestMem, Memfd, PAGE, Slot};
use saved_state::{Part, Reader, Writer};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering::SeqCst},
};
use vcpu_state::{Exception, Regs, SegReg, Segment};
use x86_defs::{
    gpr::{R8, R10, RAX, RDI, RDX, RSI, RSP},
    paging::{ADDRESS, P, RW, US},
    segment::{ATTR_L, ATTR_P},
};
use xen_pv::{Board, Built, Config, Layout, XenPv};

/// Frames of RAM: tables in the first, the rest is mapped for writing from 0 on.
pub const RAM: u64 = 64;
pub const L4: u64 = 1;
pub const DATA: u64 = 16;
/// IA32_ARCH_CAPABILITIES.
pub const CAPABILITIES: u64 = 0x4000_0000_0b00_e17b;

#[derive(Default)]
pub struct Around {
    pub timer: Mutex<Option<u64>>,
    pub ended: Mutex<Option<u32>>,
    pub said: Mutex<Vec<u8>>,
}

impl Board for Around {
    fn wake(&self, _: u32) {}

    /// The first vCPU's.
    fn set_timer(&self, vcpu: u32, deadline_ns: Option<u64>) {
        if vcpu == 0 {
            *self.timer.lock().unwrap() = deadline_ns;
        }
    }

    fn console(&self, text: &[u8]) {
        self.said.lock().unwrap().extend(text);
    }

    fn shutdown(&self, reason: u32) {
        *self.ended.lock().unwrap() = Some(reason);
    }

    fn notify(&self, _: u32) {}
}

/// A vCPU without an engine: it walks the domain's tables.
pub struct Cpu {
    pub memory: Arc<GuestMem>,
    pub regs: Regs,
    pub segments: [Segment; 8],
    pub root: u64,
    pub roots: Roots,
    pub in_kernel: bool,
    pub halted: bool,
}

impl Cpu {
    pub fn load(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        let _ = self.memory.read(address, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    pub fn walk(&self, linear: u64, write: bool) -> Option<u64> {
        let mut table = self.root & ADDRESS;
        for shift in [39, 30, 21, 12] {
            let entry = self.load(table + (linear >> shift & 511) * 8);
            if entry & P == 0 || (write && entry & RW == 0) {
                return None;
            }
            table = entry & ADDRESS;
        }
        Some(table + linear % PAGE)
    }

    fn each(&self, at: u64, len: usize, write: bool) -> Result<Vec<u64>, Exception> {
        let fault = Exception { vector: 14, error: Some(0), payload: at };
        let byte = |n: u64| at.checked_add(n).and_then(|at| self.walk(at, write)).ok_or(fault);
        (0..len as u64).map(byte).collect()
    }
}

impl CpuView for Cpu {
    fn regs(&mut self) -> &mut Regs {
        &mut self.regs
    }

    fn segment(&mut self, which: SegReg) -> &mut Segment {
        &mut self.segments[which as usize]
    }

    fn root(&self) -> u64 {
        self.root
    }

    fn set_roots(&mut self, roots: Roots, _: bool) {
        self.roots = roots;
        self.enter(self.in_kernel);
    }

    fn roots(&self) -> Option<Roots> {
        Some(self.roots)
    }

    fn enter(&mut self, kernel: bool) {
        self.in_kernel = kernel;
        self.root = if kernel { self.roots.kernel } else { self.roots.program };
    }

    fn tables_changed(&mut self, _: TableChanges) {}

    fn forget_own(&mut self) {}

    fn forget_writes(&mut self, _: u64) {}

    fn read_virt(&mut self, gva: u64, out: &mut [u8]) -> Result<(), Exception> {
        for (at, byte) in self.each(gva, out.len(), false)?.into_iter().zip(out) {
            self.memory.read(at, std::slice::from_mut(byte)).unwrap();
        }
        Ok(())
    }

    fn write_virt(&mut self, gva: u64, data: &[u8]) -> Result<(), Exception> {
        for (at, byte) in self.each(gva, data.len(), true)?.into_iter().zip(data) {
            self.memory.write(at, &[*byte]).unwrap();
        }
        Ok(())
    }

    fn cpuid(&self, _: u32, _: u32) -> [u32; 4] {
        [0; 4]
    }

    fn gdt_base(&self) -> u64 {
        Layout::gdt_linear(0)
    }

    fn set_task_switched(&mut self, _: bool) {}

    fn set_xcr0(&mut self, _: u64) {}

    fn halt(&mut self) {
        self.halted = true;
    }

    fn deliver(&mut self, _: Exception) {}

    fn flush_tlb(&mut self, _: u64, _: Option<u64>) {}
}

pub struct Guest {
    pub xen: Arc<XenPv>,
    pub around: Arc<Around>,
    pub now: Arc<AtomicU64>,
    pub layout: Layout,
    pub cpu: Cpu,
}

impl Guest {
    pub fn new() -> Self {
        let layout = Layout::new(RAM * PAGE);
        let memory = GuestMem::new(layout.end()).unwrap();
        let mem = Memfd::new(layout.end()).unwrap();
        let len = layout.end();
        let slot = Slot { id: 0, gpa: 0, mem, offset: 0, len, writable: true };
        memory.update(&[Change::Map(slot)], |_, _| Ok(())).unwrap();
        let put = |at: u64, value: u64| memory.write(at, &value.to_le_bytes()).unwrap();
        for table in L4..L4 + 3 {
            put(table * PAGE, ((table + 1) * PAGE) | P | RW | US);
        }
        for frame in 0..RAM {
            let writable = if (L4..L4 + 4).contains(&frame) { 0 } else { RW };
            put((L4 + 3) * PAGE + frame * 8, (frame * PAGE) | P | US | writable);
        }
        let (around, now) = (Arc::new(Around::default()), Arc::new(AtomicU64::new(1000)));
        let clock = {
            let now = now.clone();
            Arc::new(move || {
                let guest_ns = now.load(SeqCst);
                ClockSample { guest_ns, tsc: guest_ns, khz: 1_000_000, realtime_ns: guest_ns }
            })
        };
        let xen = XenPv::new(Config {
            memory: memory.clone(),
            layout,
            vcpus: 2,
            clock,
            board: around.clone(),
            arch_capabilities: Some(CAPABILITIES),
        });
        let (store_frame, console_frame) = (RAM - 1, RAM - 2);
        xen.start(&Built { root: L4 * PAGE, store_frame, console_frame }).unwrap();
        let mut cpu = Cpu {
            memory,
            regs: Regs::default(),
            segments: [Segment::default(); 8],
            root: L4 * PAGE,
            roots: Roots { kernel: L4 * PAGE, program: 0 },
            in_kernel: true,
            halted: false,
        };
        cpu.segment(SegReg::Cs).attr = ATTR_P | ATTR_L;
        cpu.regs.gpr[RSP] = (DATA + 8) * PAGE;
        Self { xen, around, now, layout, cpu }
    }

    pub fn put(&mut self, at: u64, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.cpu.memory.write(at, &bytes).unwrap();
    }

    pub fn call(&mut self, number: u64, args: &[u64]) -> u64 {
        let rip = self.cpu.regs.rip;
        self.cpu.regs.gpr[RAX] = number;
        for (register, value) in [RDI, RSI, RDX, R10, R8].into_iter().zip(args) {
            self.cpu.regs.gpr[register] = *value;
        }
        self.go_on(rip)
    }

    /// Executes SYSCALL until it is complete.
    pub fn go_on(&mut self, rip: u64) -> u64 {
        loop {
            let trap = Trap { cause: Cause::Syscall, next: rip + 2 };
            let flow = self.xen.trap(0, trap, &mut self.cpu);
            if flow == Flow::Stop || self.cpu.regs.rip != rip {
                return self.cpu.regs.gpr[RAX];
            }
        }
    }

    pub fn save(&self) -> Vec<Part> {
        let mut writer = Writer::default();
        self.xen.save(&mut writer);
        writer.finish()
    }

    pub fn restore(&self, parts: Vec<Part>) -> Result<(), String> {
        let mut reader = Reader::new(parts).unwrap();
        self.xen.restore(&mut reader).map_err(|error| error.to_string())?;
        reader.finish().map_err(|error| error.to_string())
    }

    pub fn shared(&self, offset: usize) -> u64 {
        self.cpu.load(self.layout.shared_info() + offset as u64)
    }
}
