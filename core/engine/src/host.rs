//! The machine as a vCPU sees it.

use std::hash::{BuildHasher, RandomState};
use vcpu_state::{Exception, Regs, SegReg, Segment};

/// A callback's answer. `Stop` takes effect at the next instruction boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Flow {
    Continue,
    Stop,
}

/// What a vCPU may take at its next boundary; the host names the first in the order INIT,
/// SIPI, NMI, interrupt. All but `Interrupt` are taken at once, since the CPU latches them; an
/// interrupt waits for its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    Init,
    Sipi,
    Nmi,
    Interrupt,
    /// A personality wants to be called, by [`VcpuHost::trap`]: whatever the vCPU was doing, it
    /// runs until that says otherwise.
    Personality,
}

/// Every input of a vCPU. Interrupts are pulled: what is pending stays the host's until
/// acknowledged, so nothing is in flight when state is saved.
pub trait VcpuHost {
    /// `data` holds one or more operands of `size` bytes for the same port: an engine may
    /// coalesce the iterations of a REP, never widen an access.
    fn pio_in(&mut self, port: u16, size: usize, data: &mut [u8]) -> Flow;
    fn pio_out(&mut self, port: u16, size: usize, data: &[u8]) -> Flow;
    /// Never crosses a page.
    fn mmio_read(&mut self, gpa: u64, data: &mut [u8]) -> Flow;
    fn mmio_write(&mut self, gpa: u64, data: &[u8]) -> Flow;

    /// MSRs that the engine has not: the APIC's (IA32_APIC_BASE, x2APIC, IA32_TSC_DEADLINE)
    /// where the host has the APIC, and those of a personality.
    fn rdmsr(&mut self, _index: u32, _value: &mut u64) -> Result<Flow, GeneralProtection> {
        Err(GeneralProtection)
    }
    fn wrmsr(&mut self, _index: u32, _value: u64) -> Result<Flow, GeneralProtection> {
        Err(GeneralProtection)
    }

    /// Without side effect: the engine may ask as often as it likes.
    fn pending(&self) -> Option<Pending>;
    /// The vCPU takes `what`. Returns the vector of an interrupt or SIPI. `None`: it is gone
    /// (another vCPU took it, a line fell); nothing is taken.
    fn ack(&mut self, what: Pending) -> Option<u8>;

    /// The task priority, which is the local APIC's. Asked and told only where the host has
    /// the APIC.
    fn cr8(&mut self) -> u8 {
        0
    }
    fn set_cr8(&mut self, _value: u8) -> Flow {
        Flow::Continue
    }

    /// The engine's APIC saw the end of a level-triggered interrupt. Only engines with APICs.
    fn eoi(&mut self, _vector: u8) -> Flow {
        Flow::Continue
    }

    /// The VM's common TSC now. Only engines whose time is the host's choice ask.
    fn tsc(&mut self) -> u64;
    /// What RDRAND and RDSEED give. Only engines that execute these themselves ask.
    fn random(&mut self) -> u64 {
        // Keyed by the operating system, and by another key each time.
        RandomState::new().hash_one(0)
    }

    /// What the vCPU's own TSC is ahead of the common one, after its guest wrote it.
    fn set_tsc_offset(&mut self, _offset: u64) {}

    /// An intercept that [`VmConfig`](crate::VmConfig) asked for; nothing of it has happened
    /// yet. A host that asks for none is never called.
    fn trap(&mut self, _trap: Trap, _cpu: &mut dyn CpuView) -> Flow {
        Flow::Stop
    }

    /// With [`VmConfig::trace`](crate::VmConfig) only.
    fn trace(&mut self, _event: Trace) {}
}

/// The access raises #GP(0) in the guest.
#[derive(Clone, Copy, Debug)]
pub struct GeneralProtection;

/// What a trace shows of a vCPU, beside the callbacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    Exception {
        exception: Exception,
        rip: u64,
    },
    /// INT n, or an interrupt that was delivered.
    Interrupt {
        vector: u8,
        rip: u64,
        software: bool,
    },
    Nmi {
        rip: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    pub cause: Cause,
    /// RIP of the instruction that follows: setting it retires the trapped one.
    pub next: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Exception(Exception),
    Syscall,
    Cpuid,
    /// [`Pending::Personality`].
    Asked,
}

/// The page-table roots of a guest whose kernel runs at level 3: the kernel's own, and its
/// program's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Roots {
    pub kernel: u64,
    pub program: u64,
}

/// How often entries of a guest's page tables that were present became others, or a page of them was a
/// table no more. Only what makes wrong what a TLB may have counts; a right that is given does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableChanges {
    pub any: u64,
    /// Of those, what may concern the upper half of the address space.
    pub upper: u64,
    /// Of those, where code may be.
    pub code: u64,
}

/// A vCPU seen from inside a trap: what a personality needs for a system call, without the
/// cost of a full state transfer.
pub trait CpuView {
    fn regs(&mut self) -> &mut Regs;
    fn segment(&mut self, which: SegReg) -> &mut Segment;
    /// The page-table root, CR3.
    fn root(&self) -> u64;
    /// Loads the roots of a guest whose kernel runs at level 3, of which the one that is used is
    /// what [`Self::enter`] says. What is known of these and of the kernel's half of all address spaces
    /// may be kept, as far as [`Self::tables_changed`] lets it. Not `lasting`: others follow at once.
    fn set_roots(&mut self, roots: Roots, lasting: bool);
    /// Those that were loaded; `None` if this vCPU's state has come from elsewhere since.
    fn roots(&self) -> Option<Roots>;
    /// The kernel runs from now on, or a program. What is known of either's pages stays.
    fn enter(&mut self, kernel: bool);
    /// What of the guest's page tables has changed so far. vCPUs take notice with the next flush, or
    /// load of roots.
    fn tables_changed(&mut self, changes: TableChanges);
    /// Forgets all that is known of page tables, of this vCPU.
    fn forget_own(&mut self);
    /// Copies nothing unless the whole range is guest RAM.
    fn read_virt(&mut self, gva: u64, out: &mut [u8]) -> Result<(), Exception>;
    fn write_virt(&mut self, gva: u64, data: &[u8]) -> Result<(), Exception>;
    /// What CPUID answers this vCPU now.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4];
    /// The linear address of the GDT.
    fn gdt_base(&self) -> u64;
    /// CR0.TS.
    fn set_task_switched(&mut self, on: bool);
    fn set_xcr0(&mut self, value: u64);
    /// The vCPU waits until something is pending.
    fn halt(&mut self);
    /// Raises the exception at the next boundary.
    fn deliver(&mut self, exception: Exception);
    /// No vCPU of the VM writes to the page at this guest-physical address any more but where its page
    /// tables let it now; nor is one in the middle of a walk that began before.
    fn forget_writes(&mut self, gpa: u64);
    /// One bit per vCPU of the VM; `None` flushes everything.
    fn flush_tlb(&mut self, vcpus: u64, gva: Option<u64>);
}
