//! What took a guest out by the shim.

use super::{Registers, Shim, enter::is_soft, image::Left, memory, syscall};
use crate::{
    os,
    state::{segment_from, segment_into},
    vcpu::KvmVcpu,
};
use engine::{Cause, Error, Trap};
use guest_mem::{GuestMem, PAGE};
use kvm_bindings::kvm_segment;
use vcpu_state::{Exception, Segment};
use x86_defs::{
    MAX_INSTRUCTION_LEN,
    dr::{DR6_B, DR6_BD, DR6_BS, DR6_BT, DR6_RESET},
    exception::{DB, PF, UD, has_error_code},
    gpr::{R11, RCX, RSP},
    rflags,
    segment::{ATTR_ACCESSED, ATTR_CODE, ATTR_L, Descriptor, SELECTOR_RPL, SELECTOR_TI},
};

/// What a program may have in RFLAGS.
const OF_PROGRAMS: u64 =
    rflags::STATUS | rflags::TF | rflags::DF | rflags::NT | rflags::AC | rflags::ID;

/// An exception's frame.
struct Frame {
    rip: u64,
    cs: u16,
    rflags: u64,
    rsp: u64,
    ss: u16,
    error: Option<u32>,
}

impl KvmVcpu {
    /// The event, with the registers as ring 3 had them. `None`: it is not one of a guest's.
    pub(super) fn event(&mut self, shim: &mut Shim) -> Result<Option<Trap>, Error> {
        let mut registers = self.registers()?;
        let special = &registers.special;
        let Left::Exception(vector) = shim.image.left_at(registers.regs.rip) else {
            return Ok(None);
        };
        let frame = frame(&self.vm.mem, shim, vector)?;
        if special.cs.selector & SELECTOR_RPL != 0 || frame.cs & SELECTOR_RPL != 3 {
            return Ok(None);
        }
        if is_soft(vector) {
            self.forget_soft()?;
        }
        let (cs, ss) = shim.entered;
        registers.special.cs = reload(&self.vm.mem, &registers, frame.cs, cs);
        registers.special.ss = reload(&self.vm.mem, &registers, frame.ss, ss);
        let regs = &mut registers.regs;
        regs.rip = frame.rip;
        regs.gpr[RSP] = frame.rsp;
        // The processor has set it for the sake of debuggers (SDM volume 3, 18.3.1.1).
        regs.rflags = frame.rflags & !rflags::RF;
        let trap = match self.system_call(shim, &mut registers, vector) {
            Some(next) => Trap { cause: Cause::Syscall, next },
            None => {
                let payload = match vector {
                    PF => registers.special.cr2,
                    DB => self.take_dr6()?,
                    _ => 0,
                };
                let exception = Exception { vector, error: frame.error, payload };
                Trap { cause: Cause::Exception(exception), next: frame.rip }
            }
        };
        shim.cached = Some(registers);
        Ok(Some(trap))
    }

    /// Where the guest goes on, if what raised this was SYSCALL.
    fn system_call(&self, shim: &Shim, registers: &mut Registers, vector: u8) -> Option<u64> {
        let at = registers.regs.rip;
        if vector == UD {
            let cs = registers.special.cs;
            let linear = if cs.l != 0 { at } else { cs.base.wrapping_add(at) & 0xffff_ffff };
            let mut bytes = [0; MAX_INSTRUCTION_LEN];
            let read = |to: &mut [u8]| memory::read(&self.vm.mem, registers, linear, to).is_ok();
            // It may end before a page that is not there.
            let first = ((PAGE - linear % PAGE) as usize).min(bytes.len());
            let len = if read(&mut bytes) {
                bytes.len()
            } else if read(bytes.get_mut(..first)?) {
                first
            } else {
                0
            };
            let length = syscall::length(bytes.get(..len)?, cs.l != 0)?;
            return Some(at.wrapping_add(length as u64));
        }
        let entry = shim.image.system_call();
        if !self.vm.features.software || vector != PF || at != entry {
            return None;
        }
        // As SYSCALL has left them (SDM volume 2, SYSCALL); a program that came here by a jump has
        // made a system call in a roundabout way.
        let regs = &mut registers.regs;
        let next = regs.gpr[RCX];
        regs.rflags = regs.gpr[R11] & OF_PROGRAMS | rflags::IF | rflags::FIXED;
        regs.rip = next.wrapping_sub(2);
        Some(next)
    }

    /// The bits of a debug exception, which are no longer there then.
    fn take_dr6(&self) -> Result<u64, Error> {
        let mut debug = self.fd.get_debug_regs().map_err(os("KVM_GET_DEBUGREGS"))?;
        let bits = debug.dr6 & (DR6_B | DR6_BD | DR6_BS | DR6_BT);
        debug.dr6 = DR6_RESET;
        self.fd.set_debug_regs(&debug).map_err(os("KVM_SET_DEBUGREGS"))?;
        Ok(bits)
    }
}

fn frame(memory: &GuestMem, shim: &Shim, vector: u8) -> Result<Frame, Error> {
    let at = shim.image.frame(shim.id);
    let mut words = [0u64; 6];
    for (n, word) in words.iter_mut().enumerate() {
        let mut bytes = [0; 8];
        memory.read(at - 8 + n as u64 * 8, &mut bytes)?;
        *word = u64::from_le_bytes(bytes);
    }
    let [error, rip, cs, rflags, rsp, ss] = words;
    let error = has_error_code(vector).then_some(error as u32);
    Ok(Frame { rip, cs: cs as u16, rflags, rsp, ss: ss as u16, error })
}

/// CS or SS of a frame: what its selector names now, as an IRET would load it; what was loaded at the
/// entry where it names nothing.
fn reload(
    memory: &GuestMem,
    registers: &Registers,
    selector: u16,
    entered: kvm_segment,
) -> kvm_segment {
    let kept = kvm_segment { selector, ..entered };
    let special = &registers.special;
    let (base, limit) = match selector & SELECTOR_TI {
        0 => (special.gdt.base, special.gdt.limit.into()),
        _ if special.ldt.unusable != 0 => return kept,
        _ => (special.ldt.base, special.ldt.limit),
    };
    let offset = selector & !7;
    if selector & !SELECTOR_RPL == 0 || u32::from(offset) + 7 > limit {
        return kept;
    }
    let mut bytes = [0; 8];
    if memory::read(memory, registers, base.wrapping_add(offset.into()), &mut bytes).is_err() {
        return kept;
    }
    let found = Descriptor(u64::from_le_bytes(bytes));
    let code = segment_from(entered).attr & ATTR_CODE;
    let fits = found.present() && !found.is_system() && found.attr() & ATTR_CODE == code;
    if !fits || found.dpl() != 3 {
        return kept;
    }
    let attr = found.attr() | ATTR_ACCESSED;
    let base = if attr & ATTR_L != 0 && code != 0 { 0 } else { found.base() };
    segment_into(Segment { selector, base, limit: found.limit(), attr })
}
