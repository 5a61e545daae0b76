//! Exceptions, system calls and hypercalls as they come from the engine.

use crate::{
    Domain, XenPv,
    bounce::{Bounce, Own},
    events, guest, lock,
    tables::Level,
    vcpus::{Vcpu, Wait},
};
use engine::{Cause, CpuView, Flow, Trap};
use guest_mem::PAGE;
use std::sync::atomic::Ordering::SeqCst;
use vcpu_state::{Exception, SegReg};
use x86_defs::{
    exception::{DB, GP, NMI, PF, UD, selector_error},
    gpr::{R11, RAX, RCX},
    segment::ATTR_L,
};
use xen_abi::{errno::Errno, hypercall, sched::reason};

/// Bits of a page fault's error code.
const PF_PRESENT: u32 = 1 << 0;
const PF_WRITE: u32 = 1 << 1;
const PF_USER: u32 = 1 << 2;
const PF_RESERVED: u32 = 1 << 3;

impl XenPv {
    pub(crate) fn handle(&self, id: u32, trap: Trap, cpu: &mut dyn CpuView) -> Flow {
        let Some(own) = self.vcpus.get(id as usize) else { return Flow::Stop };
        let mut vcpu = lock(own);
        let done = match self.quickly(&mut vcpu, trap, cpu) {
            None => self.with_domain(&mut vcpu, trap, cpu),
            Some(done) => done,
        };
        if done.is_ok() {
            return Flow::Continue;
        }
        // As Xen does where a frame cannot be delivered.
        self.board.shutdown(reason::CRASH);
        cpu.halt();
        Flow::Stop
    }

    /// What needs nothing but the vCPU's own: system calls, and the way back. All vCPUs do them at
    /// once.
    fn quickly(
        &self,
        vcpu: &mut Vcpu,
        trap: Trap,
        cpu: &mut dyn CpuView,
    ) -> Option<Result<(), Errno>> {
        let info = self.infos.get(vcpu.id as usize)?.load(SeqCst);
        let known = info != 0 && cpu.roots() == Some(vcpu.roots());
        let call = trap.cause == Cause::Syscall && vcpu.is_quick(cpu);
        if !known || !call {
            return None;
        }
        let own = Own { memory: &self.memory, info };
        let in_kernel = vcpu.in_kernel;
        syscalled(cpu, trap.next);
        let done = match in_kernel {
            true => vcpu.iret(own, cpu),
            false => vcpu.bounce(own, cpu, Bounce { to: vcpu.syscall, error: None }),
        };
        Some(done.and_then(|()| upcall(own, vcpu, cpu)))
    }

    fn with_domain(&self, vcpu: &mut Vcpu, trap: Trap, cpu: &mut dyn CpuView) -> Result<(), Errno> {
        let id = vcpu.id;
        let mut domain = lock(&self.domain);
        self.note_info(&domain, id);
        if vcpu.kernel_root != 0 && cpu.roots() != Some(vcpu.roots()) {
            domain.load_roots(vcpu, cpu, true);
            cpu.enter(vcpu.in_kernel);
        }
        match trap.cause {
            Cause::Syscall => self.syscall(&mut domain, vcpu, cpu, trap.next),
            Cause::Exception(exception) => {
                // The instruction is complete where it is a trap.
                cpu.regs().rip = trap.next;
                self.exception(&mut domain, vcpu, cpu, exception)
            }
            // CPUID is not intercepted.
            Cause::Cpuid => Ok(()),
            Cause::Asked => self.asked(&mut domain, vcpu, cpu),
        }?;
        if domain.runs(id) {
            if vcpu.takes_nmi(&domain) {
                domain.known(id)?.nmi = false;
                vcpu.nmi_masked = true;
                let to = vcpu.handler(NMI);
                vcpu.bounce(domain.own(id), cpu, Bounce { to, error: None })?;
            }
            upcall(domain.own(id), vcpu, cpu)?;
        }
        self.keep_runstate(&mut domain, vcpu);
        domain.return_memory();
        let yields = std::mem::take(&mut domain.yields);
        drop(domain);
        if yields {
            std::thread::yield_now();
        }
        Ok(())
    }

    /// The vCPU is to look at something.
    fn asked(
        &self,
        domain: &mut Domain,
        vcpu: &mut Vcpu,
        cpu: &mut dyn CpuView,
    ) -> Result<(), Errno> {
        if let Some(flag) = self.attention.get(vcpu.id as usize) {
            flag.store(false, SeqCst);
        }
        let suspended = domain.suspended.is_some();
        let known = domain.known(vcpu.id)?;
        if !known.up || suspended {
            cpu.halt();
            return Ok(());
        }
        if let Some(context) = known.start.take() {
            known.wait = Wait::None;
            return self.begin(domain, vcpu, cpu, &context);
        }
        let wait = known.wait;
        let now = self.now_ns();
        let memory = &domain.tables.memory;
        let over = match wait {
            Wait::None => true,
            Wait::Event => events::wanted(memory, domain.info(vcpu.id)),
            Wait::Ports(ports, until) => {
                (until != 0 && until <= now)
                    || ports.iter().any(|port| domain.events.is_pending(*port, memory))
            }
        };
        if over || vcpu.takes_nmi(domain) {
            domain.known(vcpu.id)?.wait = Wait::None;
        } else {
            cpu.halt();
        }
        Ok(())
    }

    fn syscall(
        &self,
        domain: &mut Domain,
        vcpu: &mut Vcpu,
        cpu: &mut dyn CpuView,
        next: u64,
    ) -> Result<(), Errno> {
        let wide = cpu.segment(SegReg::Cs).attr & ATTR_L != 0;
        syscalled(cpu, next);
        if vcpu.in_kernel {
            return self.hypercall(domain, vcpu, cpu);
        }
        let to = if wide { vcpu.syscall } else { vcpu.syscall32 };
        if to.address == 0 {
            let to = vcpu.handler(UD);
            return vcpu.bounce(domain.own(vcpu.id), cpu, Bounce { to, error: None });
        }
        vcpu.bounce(domain.own(vcpu.id), cpu, Bounce { to, error: None })
    }

    fn exception(
        &self,
        domain: &mut Domain,
        vcpu: &mut Vcpu,
        cpu: &mut dyn CpuView,
        exception: Exception,
    ) -> Result<(), Errno> {
        let Exception { vector, error, payload } = exception;
        match vector {
            GP => {
                let code = error.unwrap_or(0);
                if code & (selector_error::IDT | selector_error::EXT) == selector_error::IDT {
                    return self.software_interrupt(domain, vcpu, cpu, (code >> 3) as u8);
                }
                if vcpu.in_kernel && self.emulate(domain, vcpu, cpu) {
                    return Ok(());
                }
            }
            UD if self.forced_cpuid(cpu) => return Ok(()),
            PF => {
                let code = error.unwrap_or(0);
                if vcpu.in_kernel
                    && code & (PF_PRESENT | PF_WRITE) == PF_PRESENT | PF_WRITE
                    && self.is_table(domain, cpu, payload)
                    && self.emulate_entry(domain, cpu, payload)
                {
                    return Ok(());
                }
                let shown = if vcpu.in_kernel { code & !PF_USER } else { code } & !PF_RESERVED;
                let at =
                    domain.info(vcpu.id) + std::mem::offset_of!(xen_abi::xen::VcpuInfo, cr2) as u64;
                domain.tables.memory.store(at, payload);
                let to = vcpu.handler(PF);
                return vcpu.bounce(domain.own(vcpu.id), cpu, Bounce { to, error: Some(shown) });
            }
            DB => {
                if let Some(dr6) = vcpu.debug.get_mut(6) {
                    *dr6 |= payload;
                }
            }
            _ => {}
        }
        let to = vcpu.handler(vector);
        vcpu.bounce(domain.own(vcpu.id), cpu, Bounce { to, error })
    }

    /// INT n, which the processor refuses for want of a gate.
    fn software_interrupt(
        &self,
        domain: &Domain,
        vcpu: &mut Vcpu,
        cpu: &mut dyn CpuView,
        vector: u8,
    ) -> Result<(), Errno> {
        let to = vcpu.handler(vector);
        let ring = vcpu.traps.get(usize::from(vector)).map_or(0, |trap| trap.flags & 3);
        let needed = if vcpu.in_kernel { 1 } else { 3 };
        if to.address != 0 && ring >= needed {
            // CD and the number; INT3 and INTO are intercepted.
            let regs = cpu.regs();
            regs.rip = regs.rip.wrapping_add(2);
            return vcpu.bounce(domain.own(vcpu.id), cpu, Bounce { to, error: None });
        }
        let error = u32::from(vector) * 8 + selector_error::IDT;
        let to = vcpu.handler(GP);
        vcpu.bounce(domain.own(vcpu.id), cpu, Bounce { to, error: Some(error) })
    }

    /// Whether an address is in an L1 table that is mapped for reading.
    fn is_table(&self, domain: &Domain, cpu: &dyn CpuView, linear: u64) -> bool {
        if !guest::is_the_domains(linear, 8) {
            return false;
        }
        let entry =
            domain.tables.l1_entry(cpu.root(), linear).map(|at| domain.tables.memory.load(at));
        entry.is_some_and(|entry| {
            let frame = (entry & x86_defs::paging::ADDRESS) / PAGE;
            domain.tables.frames.is(frame, crate::frames::Use::Table(Level::L1))
        })
    }

    /// A vCPU that was brought up begins.
    fn begin(
        &self,
        domain: &mut Domain,
        vcpu: &mut Vcpu,
        cpu: &mut dyn CpuView,
        context: &xen_abi::vcpu::GuestContext,
    ) -> Result<(), Errno> {
        let cr3 = |value: u64| value >> 12;
        let [_, user, _, kernel, ..] = context.control;
        let mut forget = |frame| cpu.forget_writes(frame * PAGE);
        domain.tables.start_table(cr3(kernel), Level::L4, &mut forget)?;
        if user != 0 {
            domain.tables.start_table(cr3(user), Level::L4, &mut forget)?;
        }
        let frames = context.gdt_frames.len().min(context.gdt_entries.div_ceil(512) as usize);
        let frames = context.gdt_frames.get(..frames).unwrap_or(&[]).to_vec();
        vcpu.kernel_root = cr3(kernel) * PAGE;
        vcpu.user_root = cr3(user) * PAGE;
        vcpu.in_kernel = true;
        domain.load_roots(vcpu, cpu, true);
        cpu.enter(true);
        domain.use_gdt(vcpu, cpu, frames)?;
        vcpu.traps = context.traps;
        vcpu.kernel_ss = context.kernel_ss;
        vcpu.kernel_sp = context.kernel_sp;
        vcpu.event = crate::vcpus::Callback { address: context.event_callback, masks_events: true };
        vcpu.failsafe.address = context.failsafe_callback;
        vcpu.syscall.address = context.syscall_callback;
        vcpu.other_gs = context.gs_base_user;
        let user = &context.user_regs;
        let memory = &domain.tables.memory;
        *cpu.segment(SegReg::Cs) = vcpu.descriptors(memory).code_segment(cpu, user.cs | 3)?;
        *cpu.segment(SegReg::Ss) =
            vcpu.descriptors(memory).stack_segment(cpu, user.ss as u16 | 3)?;
        for (which, selector) in [
            (SegReg::Ds, user.ds),
            (SegReg::Es, user.es),
            (SegReg::Fs, user.fs),
            (SegReg::Gs, user.gs),
        ] {
            *cpu.segment(which) = vcpu.descriptors(memory).data_segment(cpu, selector as u16);
        }
        cpu.segment(SegReg::Fs).base = context.fs_base;
        cpu.segment(SegReg::Gs).base = context.gs_base_kernel;
        let regs = cpu.regs();
        regs.gpr = [
            user.rax, user.rcx, user.rdx, user.rbx, user.rsp, user.rbp, user.rsi, user.rdi,
            user.r8, user.r9, user.r10, user.r11, user.r12, user.r13, user.r14, user.r15,
        ];
        regs.rip = user.rip;
        regs.rflags =
            x86_defs::rflags::FIXED | x86_defs::rflags::IF | user.rflags & x86_defs::rflags::STATUS;
        Ok(())
    }

    /// `ud2a; .ascii "xen"; cpuid`: the kernel asks for the hypervisor's leaves.
    fn forced_cpuid(&self, cpu: &mut dyn CpuView) -> bool {
        const BYTES: [u8; 7] = [0x0f, 0x0b, b'x', b'e', b'n', 0x0f, 0xa2];
        let rip = cpu.regs().rip;
        let mut bytes = [0; BYTES.len()];
        if guest::read_bytes(cpu, rip, &mut bytes).is_err() || bytes != BYTES {
            return false;
        }
        let regs = cpu.regs();
        let (leaf, subleaf) = (regs.gpr[RAX] as u32, regs.gpr[RCX] as u32);
        let [eax, ebx, ecx, edx] = cpu.cpuid(leaf, subleaf).map(u64::from);
        let regs = cpu.regs();
        (regs.gpr[0], regs.gpr[3], regs.gpr[1], regs.gpr[2]) = (eax, ebx, ecx, edx);
        regs.rip = regs.rip.wrapping_add(BYTES.len() as u64);
        true
    }
}

/// What SYSCALL does to registers.
fn syscalled(cpu: &mut dyn CpuView, next: u64) {
    let regs = cpu.regs();
    (regs.gpr[RCX], regs.gpr[R11]) = (next, regs.rflags);
    regs.rip = next;
}

/// Enters the kernel if it has events that it wants to know of.
fn upcall(own: Own<'_>, vcpu: &mut Vcpu, cpu: &mut dyn CpuView) -> Result<(), Errno> {
    if vcpu.event.address == 0 || !events::wanted(own.memory, own.info) {
        return Ok(());
    }
    vcpu.bounce(own, cpu, Bounce { to: vcpu.event, error: None })
}

impl Vcpu {
    /// The kernel returns, but for an NMI's handler, behind which another may wait, or a 64-bit program
    /// calls it.
    fn is_quick(&self, cpu: &mut dyn CpuView) -> bool {
        match self.in_kernel {
            true if self.nmi_masked => false,
            true => cpu.regs().gpr[RAX] == hypercall::IRET,
            false => self.syscall.address != 0 && cpu.segment(SegReg::Cs).attr & ATTR_L != 0,
        }
    }
}
