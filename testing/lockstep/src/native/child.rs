//! What the child process does: it lives in its signal handler. Each signal is the end of one
//! case; its frame is read out, filled with the next case's state, and returned from.
//!
//! From [`enter`] on nothing here may use thread-local storage (FS holds the case's base),
//! allocate or panic.
#![expect(unsafe_code, reason = "signal frames, fixed mappings, segment registers")]

use super::{BATCH, confine};
use crate::{
    case::{Background, Case, Mode, Outcome, TIMED_OUT},
    layout::{AREAS, CODE, FILL, MEMORY, PAGE, WORDS},
    segments,
};
use libc::{c_int, c_void};
use std::{
    arch::asm,
    ptr::{self, null_mut},
    sync::atomic::{AtomicPtr, AtomicU32, Ordering::Relaxed},
};
use vcpu_state::SegReg;
use x86_defs::{
    exception, rflags,
    segment::{ATTR_CODE, ATTR_DB, ATTR_EC, ATTR_RW},
    xsave,
};

/// What both processes see.
#[repr(C)]
pub struct Block {
    pub background: Background,
    /// Cases to run.
    pub count: AtomicU32,
    /// Cases done.
    pub done: AtomicU32,
    pub cases: [Case; BATCH],
    pub outcomes: [Outcome; BATCH],
}

/// The file that backs all areas: [`AREAS`], then the code.
pub const FILE_LEN: usize = MEMORY + CODE.len();

/// What the child gets from its parent.
#[derive(Clone, Copy)]
pub struct Start {
    pub mode: Mode,
    pub block: *mut Block,
    pub memory: c_int,
    pub from_parent: c_int,
    pub to_parent: c_int,
}

/// What the handler works on.
struct Life {
    start: Start,
    /// The file, all of it, writable.
    alias: *mut u8,
    bases: bool,
    begun: bool,
    /// Cases of this batch that have not begun, and the one under way, are from here on.
    next: usize,
    /// Counts cases, to tell one that takes long from one that has just begun.
    serial: u64,
    ticked: u64,
}

static LIFE: AtomicPtr<Life> = AtomicPtr::new(null_mut());

/// UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS of `asm/ucontext.h`.
const STRICT_SS: u64 = 2 | 4;
/// HWCAP2_FSGSBASE.
const HWCAP2_FSGSBASE: u64 = 1 << 1;
/// RFLAGS bits of a case that may stay.
const KEPT: i32 = !(rflags::AC | rflags::NT | rflags::ID) as i32;
/// A case may take twice this.
const TICK_US: i64 = 50_000;
/// Places of RAX to R15 in encoding order in `gregs`.
const GREGS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

pub fn host_has_fsgsbase() -> bool {
    // SAFETY: getauxval only looks up a number.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & HWCAP2_FSGSBASE != 0 }
}

/// Becomes the executor. Never returns.
///
/// # Safety
/// In a child process that has just been forked, whose `start` is valid and whose block no
/// other process writes but in turn.
pub unsafe fn enter(start: Start) -> ! {
    // SAFETY: the caller vouches for `start`; nothing of this process is needed any more but
    // its code, its static data, and what is mapped here.
    unsafe {
        if prepare(start).is_some() {
            // Into the handler, which never comes back here: a later signal's frame is filled
            // with cases only.
            asm!("int3");
        }
        libc::_exit(1)
    }
}

/// # Safety
/// As [`enter`].
unsafe fn prepare(start: Start) -> Option<()> {
    // SAFETY: fixed mappings refuse to replace others; the pointers that are handed to the
    // kernel are to live objects of the right types.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &no_core);
        let alias = map(null_mut(), FILE_LEN, libc::PROT_READ | libc::PROT_WRITE, start, 0)?;
        alias.write_bytes(FILL, FILE_LEN);
        let mut offset = 0;
        for area in AREAS {
            let write = if area.writable { libc::PROT_WRITE } else { 0 };
            let at = area.linear as *mut u8;
            map(at, area.len(), libc::PROT_READ | write, start, offset)?;
            offset += area.len();
        }
        let executable = libc::PROT_READ | libc::PROT_EXEC;
        map(CODE.linear as *mut u8, CODE.len(), executable, start, offset)?;

        set_ldt(start.mode)?;

        let life = Life {
            start,
            alias,
            bases: start.mode == Mode::Long && host_has_fsgsbase(),
            begun: false,
            next: 0,
            serial: 0,
            ticked: 0,
        };
        LIFE.store(Box::into_raw(Box::new(life)), Relaxed);
        handle_signals()?;
        let tick = libc::timeval { tv_sec: 0, tv_usec: TICK_US };
        let timer = libc::itimerval { it_interval: tick, it_value: tick };
        let set = libc::syscall(libc::SYS_setitimer, libc::ITIMER_VIRTUAL, &timer, 0);
        (set == 0).then_some(())?;

        let mut filter = confine::filter(start.from_parent, start.to_parent);
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        let result: i64;
        asm!(
            "syscall",
            inlateout("rax") libc::SYS_prctl => result,
            in("rdi") libc::PR_SET_SECCOMP,
            in("rsi") libc::SECCOMP_MODE_FILTER,
            in("rdx") &program,
            lateout("rcx") _,
            lateout("r11") _,
        );
        (result == 0).then_some(())
    }
}

/// `struct user_desc` of `asm/ldt.h`.
#[repr(C)]
struct UserDesc {
    entry: u32,
    base: u32,
    limit: u32,
    flags: u32,
}

/// # Safety
/// In the child.
unsafe fn set_ldt(mode: Mode) -> Option<()> {
    /// Writes an entry in the new form.
    const WRITE: i32 = 0x11;
    if !mode.segmented() {
        return Some(());
    }
    for segment in segments::of(mode) {
        let bit = |set: bool, at: u32| u32::from(set) << at;
        let kind = segment.attr;
        let flags = bit(kind & ATTR_DB != 0, 0)
            | bit(kind & ATTR_EC != 0 && kind & ATTR_CODE == 0, 1)
            | bit(kind & ATTR_CODE != 0, 2)
            | bit(kind & ATTR_RW == 0, 3)
            // Usable.
            | bit(true, 6);
        let entry = UserDesc {
            entry: u32::from(segment.selector >> 3),
            base: segment.base as u32,
            limit: segment.limit,
            flags,
        };
        // SAFETY: the LDT is this process's; nobody uses it yet.
        let set = unsafe {
            libc::syscall(libc::SYS_modify_ldt, WRITE, &raw const entry, size_of::<UserDesc>())
        };
        // The call returns an int in a long.
        (set as i32 == 0).then_some(())?;
    }
    Some(())
}

/// A case may have changed them. FS is not libc's any more: only bare system calls from here on.
///
/// # Safety
/// In the handler.
unsafe fn load_segments(mode: Mode) {
    let [es, _, _, ds, fs, gs] = segments::of(mode).map(|segment| segment.selector);
    // SAFETY: null, the flat data segment and those of the LDT that `prepare` has set up can
    // be loaded; in 64-bit mode nothing here depends on them.
    unsafe {
        asm!(
            "mov ds, {ds:x}",
            "mov es, {es:x}",
            "mov fs, {fs:x}",
            "mov gs, {gs:x}",
            ds = in(reg) ds,
            es = in(reg) es,
            fs = in(reg) fs,
            gs = in(reg) gs,
        );
    }
}

/// # Safety
/// The range at `at`, if not null, is nobody's.
unsafe fn map(
    at: *mut u8,
    len: usize,
    prot: c_int,
    start: Start,
    offset: usize,
) -> Option<*mut u8> {
    let fixed = if at.is_null() { 0 } else { libc::MAP_FIXED_NOREPLACE };
    let flags = libc::MAP_SHARED | libc::MAP_POPULATE | fixed;
    // SAFETY: MAP_FIXED_NOREPLACE never replaces a mapping.
    let got = unsafe { libc::mmap(at.cast(), len, prot, flags, start.memory, offset as i64) };
    (got != libc::MAP_FAILED && (at.is_null() || got == at.cast())).then_some(got.cast())
}

/// # Safety
/// In the child.
unsafe fn handle_signals() -> Option<()> {
    // AVX-512 and AMX make frames of more than 10 KiB.
    const STACK: usize = 64 * PAGE;
    let (prot, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping; the structures are plain data.
    unsafe {
        let stack = libc::mmap(null_mut(), STACK, prot, flags, -1, 0);
        (stack != libc::MAP_FAILED).then_some(())?;
        let stack = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: STACK };
        (libc::sigaltstack(&stack, null_mut()) == 0).then_some(())?;
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as extern "C" fn(c_int, *mut c_void, *mut c_void) as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigfillset(&mut action.sa_mask);
        for signal in [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGFPE,
            libc::SIGILL,
            libc::SIGTRAP,
            libc::SIGVTALRM,
        ] {
            (libc::sigaction(signal, &action, null_mut()) == 0).then_some(())?;
        }
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        (libc::sigprocmask(libc::SIG_UNBLOCK, &all, null_mut()) == 0).then_some(())
    }
}

extern "C" fn handler(signal: c_int, _info: *mut c_void, context: *mut c_void) {
    // SAFETY: the kernel passes a frame of its making; LIFE is set before the first signal, and
    // signals are blocked here, so that there is one user of it at a time. RFLAGS.AC of a case
    // must not make the compiler's own accesses fault; NT and ID, which a signal's return does
    // not load, must not pass into the next case.
    unsafe {
        asm!("pushfq", "and qword ptr [rsp], {keep}", "popfq", keep = const KEPT);
        let life = &mut *LIFE.load(Relaxed);
        let frame = &mut *context.cast::<libc::ucontext_t>();
        if signal == libc::SIGVTALRM && life.begun && life.ticked != life.serial {
            life.ticked = life.serial;
            return;
        }
        if life.begun {
            take(life, frame, signal == libc::SIGVTALRM);
            life.next += 1;
            (*life.start.block).done.store(life.next as u32, Relaxed);
        }
        if !life.begun || life.next >= ((*life.start.block).count.load(Relaxed) as usize).min(BATCH)
        {
            wait(life);
        }
        life.begun = true;
        life.serial += 1;
        give(life, frame);
    }
}

/// Tells the parent that a batch is done, and waits for the next.
///
/// # Safety
/// In the handler.
unsafe fn wait(life: &mut Life) {
    // SAFETY: bare system calls on one byte of this frame.
    unsafe {
        let mut byte = 0u8;
        let at = &raw mut byte as usize;
        let told = life.begun.then(|| call(libc::SYS_write, life.start.to_parent, at, 1));
        if told.is_some_and(|n| n != 1) || call(libc::SYS_read, life.start.from_parent, at, 1) != 1
        {
            call(libc::SYS_exit_group, 0, 0, 0);
        }
    }
    life.next = 0;
}

/// # Safety
/// As the system call.
unsafe fn call(number: i64, a: c_int, b: usize, c: usize) -> i64 {
    let result: i64;
    // SAFETY: RCX and R11 are all that the kernel changes besides the result.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") i64::from(a),
            in("rsi") b,
            in("rdx") c,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// Reads out what the case left, and puts memory back.
///
/// # Safety
/// In the handler, with its frame.
unsafe fn take(life: &mut Life, frame: &libc::ucontext_t, timed_out: bool) {
    // SAFETY: `next` is below BATCH; the frame is the kernel's; the alias has FILE_LEN bytes,
    // which this thread alone touches.
    unsafe {
        let block = life.start.block;
        let case = &raw const (*block).cases[life.next % BATCH];
        let out = &mut (*block).outcomes[life.next % BATCH];
        let gregs = &frame.uc_mcontext.gregs;
        for (to, from) in out.gpr.iter_mut().zip(GREGS) {
            *to = gregs[from as usize] as u64;
        }
        out.rip = gregs[libc::REG_RIP as usize] as u64;
        out.rflags = gregs[libc::REG_EFL as usize] as u64;
        out.vector = gregs[libc::REG_TRAPNO as usize] as u32;
        out.error = gregs[libc::REG_ERR as usize] as u32;
        out.cr2 = gregs[libc::REG_CR2 as usize] as u64;
        if out.vector != u32::from(exception::PF) {
            out.cr2 = 0;
        }
        if timed_out {
            out.vector = TIMED_OUT;
        }
        (out.fs_base, out.gs_base) = (0, 0);
        if life.bases {
            asm!("rdfsbase {}", out(reg) out.fs_base);
            asm!("rdgsbase {}", out(reg) out.gs_base);
        }
        take_fpu(frame.uc_mcontext.fpregs.cast(), &mut out.fpu);

        out.written_count = 0;
        let memory = life.alias.cast::<u64>();
        let background = (&raw const (*block).background).cast::<u64>();
        for word in 0..WORDS {
            let (now, before) = (memory.add(word).read(), background.add(word).read());
            if now != before {
                out.push(word, now);
                memory.add(word).write(before);
            }
        }
        let (at, len) = ((*case).at as usize, (*case).code_len as usize);
        for byte in at..(at + len).min(CODE.len()) {
            life.alias.add(MEMORY + byte).write(FILL);
        }
    }
}

/// # Safety
/// `from` is the XSAVE area of a signal frame.
unsafe fn take_fpu(from: *const u8, out: &mut [u8; xsave::LEN]) {
    // SAFETY: the legacy region and the header are always there when the frame says that it is
    // extended; AVX's part if XSTATE_BV has it.
    unsafe {
        ptr::copy_nonoverlapping(from, out.as_mut_ptr(), xsave::XMM + 256);
        let at = out.as_mut_ptr();
        ptr::write_bytes(at.add(xsave::XMM + 256), 0, xsave::LEN - xsave::XMM - 256);
        let present = from.add(xsave::XSTATE_BV).cast::<u64>().read_unaligned();
        if present & 4 != 0 {
            ptr::copy_nonoverlapping(from.add(xsave::YMM_HI), at.add(xsave::YMM_HI), 256);
        }
    }
}

/// Fills the frame with the next case.
///
/// # Safety
/// In the handler, with its frame.
unsafe fn give(life: &mut Life, frame: &mut libc::ucontext_t) {
    // SAFETY: as `take`. The case's state can be loaded whatever it is, but for MXCSR and the
    // bases, which its maker keeps valid; if not, the process dies, and the parent sees it.
    unsafe {
        let block = life.start.block;
        let case = &(*block).cases[life.next % BATCH];
        if life.next == 0 {
            let background = (&raw const (*block).background).cast::<u8>();
            ptr::copy_nonoverlapping(background, life.alias, MEMORY);
        }
        for (byte, at) in case.code.iter().take(case.code_len as usize).zip(case.at as usize..) {
            if at < CODE.len() {
                life.alias.add(MEMORY + at).write(*byte);
            }
        }
        let gregs = &mut frame.uc_mcontext.gregs;
        for (from, to) in case.gpr.iter().zip(GREGS) {
            gregs[to as usize] = *from as i64;
        }
        gregs[libc::REG_RIP as usize] = case.rip(life.start.mode) as i64;
        gregs[libc::REG_EFL as usize] = case.rflags as i64;
        let segments = segments::of(life.start.mode);
        let selector = |which: SegReg| i64::from(segments[which as usize].selector);
        gregs[libc::REG_CSGSFS as usize] = selector(SegReg::Cs) | selector(SegReg::Ss) << 48;
        frame.uc_flags |= STRICT_SS;
        frame.uc_sigmask = std::mem::zeroed();

        let fpu = frame.uc_mcontext.fpregs.cast::<u8>();
        ptr::copy_nonoverlapping(case.fpu.as_ptr(), fpu, xsave::XMM + 256);
        let present = fpu.add(xsave::XSTATE_BV).cast::<u64>();
        present.write_unaligned(7);
        present.add(1).write_unaligned(0);
        ptr::copy_nonoverlapping(case.fpu.as_ptr().add(xsave::YMM_HI), fpu.add(xsave::YMM_HI), 256);
        load_segments(life.start.mode);
        if life.bases {
            asm!("wrfsbase {}", in(reg) case.fs_base);
            asm!("wrgsbase {}", in(reg) case.gs_base);
        }
    }
}
