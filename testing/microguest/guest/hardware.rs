//! Ports, memory-mapped registers, interrupts: what of the guest needs `unsafe`.
#![expect(unsafe_code, reason = "a guest has nobody below it who would do this safely")]

use core::{
    arch::{asm, global_asm},
    mem::size_of,
    ptr,
    sync::atomic::{AtomicU32, Ordering::SeqCst},
};

global_asm!(include_str!("boot.s"));

unsafe extern "C" {
    static vectors: u8;
    static last_vector: AtomicU32;
    static vector_counts: [AtomicU32; 256];
    static trampoline: u8;
    static trampoline_end: u8;
    static image_end: u8;
}

#[unsafe(no_mangle)]
extern "C" fn guest_main(kind: u32, info: u64) -> ! {
    crate::start(kind, info)
}

#[unsafe(no_mangle)]
extern "C" fn application_main() {
    crate::apic::application_processor();
    crate::traffic::on_second_processor();
}

/// `frame` is at the error code, or at RIP where the exception has none.
#[unsafe(no_mangle)]
extern "C" fn exception(vector: u32, frame: *const u64) -> ! {
    let has_error = matches!(vector, 8 | 10..=14 | 17 | 21);
    let cr2: u64;
    // SAFETY: the processor has pushed the frame; CR2 can be read at ring 0.
    let rip = unsafe {
        asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack));
        frame.add(usize::from(has_error)).read()
    };
    crate::died(vector, rip, cr2)
}

/// core's prebuilt code names it; nothing unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

macro_rules! ports {
    ($in:ident $out:ident $ty:ty, $reg:tt) => {
        pub fn $in(port: u16) -> $ty {
            let value: $ty;
            // SAFETY: what devices do to memory in answer is the guest's own wish.
            unsafe {
                asm!(concat!("in ", $reg, ", dx"), in("dx") port, out($reg) value,
                    options(nostack, preserves_flags));
            }
            value
        }

        pub fn $out(port: u16, value: $ty) {
            // SAFETY: as above.
            unsafe {
                asm!(concat!("out dx, ", $reg), in("dx") port, in($reg) value,
                    options(nostack, preserves_flags));
            }
        }
    };
}

ports!(in8 out8 u8, "al");
ports!(in16 out16 u16, "ax");
ports!(in32 out32 u32, "eax");

/// A load that the compiler leaves alone, from anywhere in the low 4 GiB.
pub fn load<T: Copy>(at: u64) -> T {
    // SAFETY: all of the low 4 GiB is mapped, and any bytes are a value of the integers and
    // arrays that this is called for.
    unsafe { ptr::read_volatile(at as *const T) }
}

/// # Panics
/// Never; but a store to the guest's own image breaks the guest, so callers give addresses of
/// devices or of memory beyond [`image_ends`].
pub fn store<T: Copy>(at: u64, value: T) {
    // SAFETY: as said above.
    unsafe { ptr::write_volatile(at as *mut T, value) }
}

pub fn image_ends() -> u64 {
    (&raw const image_end) as u64
}

/// Copies the application processors' first instructions to where they start.
pub fn place_trampoline(at: u64) {
    let (from, to) = ((&raw const trampoline) as u64, (&raw const trampoline_end) as u64);
    for offset in 0..to - from {
        store(at + offset, load::<u8>(from + offset));
    }
}

pub fn rdtsc() -> u64 {
    // SAFETY: has no preconditions at ring 0.
    unsafe { core::arch::x86_64::_rdtsc() }
}

pub fn rdmsr(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: an MSR that does not exist ends the guest with a message.
    unsafe {
        asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high, options(nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

pub fn wrmsr(index: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: callers write APIC registers only.
    unsafe {
        asm!("wrmsr", in("ecx") index, in("eax") low, in("edx") high, options(nostack));
    }
}

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

static mut IDT: [[u64; 2]; 256] = [[0; 2]; 256];

fn load_idt(base: u64, limit: u16) {
    let pointer = TablePointer { limit, base };
    // SAFETY: the table is static, or meant to be none.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(nostack)) }
}

/// Every vector has its handler from here on; interrupts stay off but in [`wait`].
pub fn set_interrupts_up() {
    let base = (&raw const vectors) as u64;
    for vector in 0..256u64 {
        // As far apart as boot.s aligns them.
        let handler = base + vector * 32;
        let gate = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
        // SAFETY: nobody reads the table yet, and this is the only writer.
        unsafe { (&raw mut IDT[vector as usize]).write([gate, handler >> 32]) }
    }
    use_interrupts();
}

/// The calling processor has the handlers, too.
pub fn use_interrupts() {
    load_idt((&raw const IDT) as u64, (size_of::<[[u64; 2]; 256]>() - 1) as u16);
}

/// Halts until an interrupt has come, and returns its vector.
pub fn wait() -> u32 {
    halt();
    // SAFETY: the only other accesses are the handlers', each of one instruction.
    unsafe { last_vector.swap(0, SeqCst) }
}

/// Halts until interrupts have come. They are on nowhere else, so that no handler finds anything
/// in the red zone.
pub fn halt() {
    // SAFETY: the handlers touch nothing but `last_vector` and `vector_counts`, and the block may
    // use the stack.
    unsafe { asm!("sti", "hlt", "cli") }
}

/// The interrupts of one vector, which are counted where they come.
pub struct Vector {
    number: u8,
    seen: u32,
}

impl Vector {
    pub fn new(number: u8) -> Self {
        Self { number, seen: Self::count(number) }
    }

    fn count(number: u8) -> u32 {
        // SAFETY: as that of `last_vector`.
        unsafe { vector_counts[usize::from(number)].load(SeqCst) }
    }

    /// Those that have come since this was asked last.
    pub fn fresh(&mut self) -> u32 {
        let now = Self::count(self.number);
        now.wrapping_sub(core::mem::replace(&mut self.seen, now))
    }
}

static PAGES: AtomicU32 = AtomicU32::new(0);

/// A page of zeroes behind the image, for ever.
pub fn claim_page() -> u64 {
    let number = PAGES.fetch_add(1, SeqCst);
    let at = image_ends().next_multiple_of(4096) + u64::from(number) * 4096;
    (at..at + 4096).step_by(8).for_each(|at| store(at, 0u64));
    at
}

/// ACPI S5: PM1a control, SLP_TYP 5 and SLP_EN.
pub fn power_off() -> ! {
    out16(0x604, 5 << 10 | 1 << 13);
    loop {
        // SAFETY: interrupts are off, so this waits for ever.
        unsafe { asm!("cli", "hlt") }
    }
}

/// The reset register of the FADT.
pub fn reset() -> ! {
    out8(0xcf9, 0x06);
    loop {
        // SAFETY: see above.
        unsafe { asm!("cli", "hlt") }
    }
}

/// An exception without a table to deliver it by.
pub fn triple_fault() -> ! {
    load_idt(0, 0);
    // SAFETY: ends the guest.
    unsafe { asm!("ud2", options(noreturn)) }
}

/// Goes on with page tables at an address of which nothing good is known.
pub fn load_page_tables(root: u64) {
    // SAFETY: ends the guest sooner or later, as the caller wants.
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack)) }
}
