//! SYSCALL and SYSRET again and again, with something odd on the way: whichever way an engine
//! executes them, interpreted or translated, the guest is in the same state afterwards.

use conformance::*;
use engine::{Flow, Pending};
use vcpu_state::VcpuState;
use x86_defs::{
    cr::{cr0, cr4},
    gpr, msr, rflags,
};

const KERNEL: u64 = 0x3000;
/// Of so many system calls, this one is odd.
const CALLS: u64 = 12;
const ODD: u8 = 5;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }

    fn one_of(&mut self, all: &[u64]) -> u64 {
        all[self.below(all.len() as u64) as usize]
    }

    /// One time out of `n`, a value; else 0.
    fn seldom(&mut self, n: u64, value: u64) -> u64 {
        if self.below(n) == 0 { value } else { 0 }
    }
}

/// What the odd system call does beside the others.
#[derive(Clone, Copy, Debug)]
enum Odd {
    Nothing,
    /// Writes an MSR.
    Write(u32, u64),
    /// Toggles EFER.SCE.
    Toggle,
    /// Has an interrupt wait.
    Interrupt,
    /// Returns in another way.
    Iret,
    /// Reloads CR3, and invalidates a page of code.
    Flush,
    /// Opens the window for interrupts before it returns.
    Sti,
}

#[derive(Clone, Debug)]
struct Case {
    odd: Odd,
    /// What changes in R11 and RCX.
    r11: u64,
    rcx: u64,
    flags: u64,
    star: u64,
    sfmask: u64,
    lstar: u64,
    cr0: u64,
    cr4: u64,
    dr7: u64,
    /// The counter is read in between.
    tsc: bool,
}

fn case(rng: &mut Rng) -> Case {
    let word = rng.next();
    let usual = u64::from(Mode::CODE64) << 32 | u64::from(Mode::CODE64 | 3) << 48;
    let kernel_mask = 0x25_7fd5;
    let some = [msr::STAR, msr::LSTAR, msr::SFMASK, msr::TSC_AUX];
    let odd = match rng.below(9) {
        0 => Odd::Toggle,
        1 => Odd::Interrupt,
        2 => Odd::Iret,
        3 => Odd::Flush,
        4 => Odd::Sti,
        5 => Odd::Write(msr::SFMASK, rng.one_of(&[0, kernel_mask, rflags::AC, rflags::STATUS])),
        6 => Odd::Write(some[rng.below(4) as usize], word & 0xffff_ffff),
        7 => Odd::Write(msr::LSTAR, KERNEL + 0x100),
        _ => Odd::Nothing,
    };
    let flags = rflags::STATUS | rflags::DF | rflags::ID;
    // Where nothing is mapped, or not canonical.
    let (bit, breakpoint) = (1 << (21 + rng.below(43)), rng.one_of(&[1, 2, 0x2000]));
    let r11 = [0, rflags::TF, rflags::AC, rflags::IF, rflags::NT, rflags::RF, rflags::VM, word];
    Case {
        odd,
        r11: rng.one_of(&r11),
        rcx: rng.seldom(6, bit),
        flags: word & flags | rng.seldom(3, rflags::AC) | rng.seldom(9, rflags::TF),
        star: rng.one_of(&[usual, usual, usual, word << 32, 0x10 << 48]),
        sfmask: rng.one_of(&[kernel_mask, kernel_mask, rflags::IF, 0, 0xffff_ffff, word >> 32]),
        lstar: rng.one_of(&[KERNEL, KERNEL, KERNEL, KERNEL, 0x3800, 0xffff_8000_0000_0000]),
        cr0: rng.seldom(3, cr0::AM),
        cr4: rng.seldom(6, cr4::TSD),
        dr7: rng.seldom(12, breakpoint),
        tsc: rng.below(2) == 0,
    }
}

/// `mov ecx, index; mov eax, low; mov edx, high; wrmsr`, with RCX as it was.
fn write_msr(index: u32, value: u64) -> Vec<u8> {
    let parts: [&[u8]; 6] = [
        &[0x49, 0x89, 0xcf, 0xb9],
        &index.to_le_bytes(),
        &[0xb8],
        &(value as u32).to_le_bytes(),
        &[0xba],
        &((value >> 32) as u32).to_le_bytes(),
    ];
    [&parts.concat()[..], &[0x0f, 0x30, 0x4c, 0x89, 0xf9]].concat()
}

fn odd_code(odd: Odd) -> Vec<u8> {
    match odd {
        Odd::Nothing => vec![],
        Odd::Write(index, value) => write_msr(index, value),
        // mov r15, rcx; mov ecx, EFER; rdmsr; xor eax, 1; wrmsr; mov rcx, r15
        Odd::Toggle => vec![
            0x49, 0x89, 0xcf, 0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32, 0x83, 0xf0, 1, 0x0f, 0x30, 0x4c,
            0x89, 0xf9,
        ],
        // out 0x10, al
        Odd::Interrupt => vec![0xe6, 0x10],
        // mov rax, rsp; push SS; push rax; push r11; push CS; push rcx; iretq
        Odd::Iret => vec![
            0x48,
            0x89,
            0xe0,
            0x6a,
            Mode::USER_DATA as u8,
            0x50,
            0x41,
            0x53,
            0x6a,
            Mode::USER_CODE64 as u8,
            0x51,
            0x48,
            0xcf,
        ],
        // mov rax, cr3; mov cr3, rax; invlpg [CODE]
        Odd::Flush => vec![0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, 0x0f, 1, 0x3c, 0x25, 0, 0x10, 0, 0],
        // out 0x10, al; sti; nop; cli
        Odd::Sti => vec![0xe6, 0x10, 0xfb, 0x90, 0xfa],
    }
}

/// The state at the end of this case, and what the machine saw.
fn run(e: &UnderTest, case: &Case) -> (VcpuState, Vec<Event>) {
    // l: syscall; mov eax, cs; add r9, rax; mov eax, ss; add r9, rax; [rdtscp; lea r8, [r8 + rax * 2]; rdtsc; rdpid r10; add r8, rdx; add r8, r10]
    // dec ebx; jnz l
    let tsc: &[u8] = &[
        0x0f, 1, 0xf9, 0x4d, 0x8d, 4, 0x40, 0x0f, 0x31, 0xf3, 0x49, 0x0f, 0xc7, 0xfa, 0x49, 1,
        0xd0, 0x4d, 1, 0xd0,
    ];
    let mut user = vec![0x0f, 5, 0x8c, 0xc8, 0x49, 1, 0xc1, 0x8c, 0xd0, 0x49, 1, 0xc1];
    user.extend(if case.tsc { tsc } else { &[] });
    user.extend([0xff, 0xcb, 0x75]);
    user.push((user.len() as u8 + 1).wrapping_neg());
    let mut g = Guest::new(e, Mode::User, &user);
    // pushfq; pop rax; add r14, rax; mov eax, cs; add r12, rax; mov eax, ss; add r13, rax
    // cmp ebx, ODD; jne over; xor r11, rdi; xor rcx, rsi; (odd); over: sysretq
    let mut kernel = vec![
        0x9c, 0x58, 0x49, 1, 0xc6, 0x8c, 0xc8, 0x49, 1, 0xc4, 0x8c, 0xd0, 0x49, 1, 0xc5, 0x83,
        0xfb, ODD, 0x75,
    ];
    let odd = [&[0x49, 0x31, 0xfb, 0x48, 0x31, 0xf1], &odd_code(case.odd)[..]].concat();
    kernel.push(odd.len() as u8);
    kernel.extend(odd);
    kernel.extend([0x48, 0x0f, 7]);
    g.write(KERNEL, &kernel);
    // inc r15; sysretq
    g.write(KERNEL + 0x100, &[0x49, 0xff, 0xc7, 0x48, 0x0f, 7]);
    g.set(|s| {
        s.msrs.set(msr::STAR, case.star);
        s.msrs.set(msr::LSTAR, case.lstar);
        s.msrs.set(msr::SFMASK, case.sfmask);
        s.regs.rflags |= case.flags | rflags::IF;
        s.regs.gpr[gpr::RBX] = CALLS;
        (s.regs.gpr[gpr::RDI], s.regs.gpr[gpr::RSI]) = (case.r11, case.rcx);
        s.control.cr0 |= case.cr0;
        s.control.cr4 |= case.cr4;
        (s.debug.dr[0], s.debug.dr7) = (KERNEL, s.debug.dr7 | case.dr7);
    });
    let line = g.bus.line.clone();
    g.bus.hook = Some(Box::new(move |event| {
        if matches!(event, Event::Out(0x10, _)) {
            *line.lock().unwrap() = Some((Pending::Interrupt, 0x21));
        }
        Flow::Continue
    }));
    g.run();
    (g.state(), g.bus.take())
}

#[test]
fn system_calls_leave_the_same_state_on_each_engine() {
    let mut rng = Rng(0x1234_5678_9abc_def1);
    let cases: Vec<Case> = (0..400).map(|_| case(&mut rng)).collect();
    let first = std::sync::Mutex::new(Vec::new());
    each_engine(|e| {
        // Other processors may differ in what manuals leave open.
        if !e.name().contains("translate") {
            return;
        }
        let ends: Vec<_> = cases.iter().map(|case| run(e, case)).collect();
        let mut first = first.lock().unwrap();
        if first.is_empty() {
            *first = ends;
            return;
        }
        for ((case, want), got) in cases.iter().zip(first.iter()).zip(&ends) {
            assert_eq!(got.1, want.1, "{case:x?}");
            assert_eq!(format!("{:#x?}", got.0), format!("{:#x?}", want.0), "{case:x?}");
        }
        let faults = ends.iter().filter(|(_, log)| matches!(log.last(), Some(Event::Vector(_))));
        let faults = faults.count();
        assert!((40..360).contains(&faults), "{faults} of them fault");
    });
}
