//! The AVX2 gathers in software: each element is an access of its own, and may fault.
//!
//! ```text
//! gather.begin(fpu);
//! while let Some(element) = gather.next(fpu, gpr) {
//!     let value = read(element.offset, gather.element_size)?;   // a fault ends it here
//!     gather.complete(fpu, element, value);
//! }
//! gather.finish(fpu);
//! ```
//!
//! Elements complete from the lowest on, and each clears its mask, so that the instruction goes
//! on where it stopped when a fault is resolved (SDM volume 2, VGATHERDPS).

use iced_x86::{Code, Instruction, Register};
use vcpu_state::FpuState;

use crate::lanes;

/// A decoded gather.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gather {
    /// Bytes of an element in memory: 4 or 8.
    pub element_size: usize,
    destination: usize,
    mask: usize,
    index: usize,
    index_size: usize,
    count: usize,
    base: Option<usize>,
    scale: u64,
    displacement: u64,
    address_mask: u64,
    /// The destination is a YMM register.
    wide: bool,
    /// Vector length in bytes.
    length: usize,
}

/// An element to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element {
    number: usize,
    /// Its effective address: an offset in the segment.
    pub offset: u64,
}

impl Gather {
    /// `None` if it is no AVX2 gather, or one whose three registers are not distinct (#UD).
    pub fn of(insn: &Instruction) -> Option<Self> {
        let (index_size, element_size) = match insn.code() {
            Code::VEX_Vpgatherdd_xmm_vm32x_xmm
            | Code::VEX_Vpgatherdd_ymm_vm32y_ymm
            | Code::VEX_Vgatherdps_xmm_vm32x_xmm
            | Code::VEX_Vgatherdps_ymm_vm32y_ymm => (4, 4),
            Code::VEX_Vpgatherdq_xmm_vm32x_xmm
            | Code::VEX_Vpgatherdq_ymm_vm32x_ymm
            | Code::VEX_Vgatherdpd_xmm_vm32x_xmm
            | Code::VEX_Vgatherdpd_ymm_vm32x_ymm => (4, 8),
            Code::VEX_Vpgatherqd_xmm_vm64x_xmm
            | Code::VEX_Vpgatherqd_xmm_vm64y_xmm
            | Code::VEX_Vgatherqps_xmm_vm64x_xmm
            | Code::VEX_Vgatherqps_xmm_vm64y_xmm => (8, 4),
            Code::VEX_Vpgatherqq_xmm_vm64x_xmm
            | Code::VEX_Vpgatherqq_ymm_vm64y_ymm
            | Code::VEX_Vgatherqpd_xmm_vm64x_xmm
            | Code::VEX_Vgatherqpd_ymm_vm64y_ymm => (8, 8),
            _ => return None,
        };
        let (destination, mask, index) =
            (insn.op0_register(), insn.op2_register(), insn.memory_index());
        let numbers = [destination.number(), mask.number(), index.number()];
        let [d, m, i] = numbers;
        if d == m || d == i || m == i || numbers.iter().any(|&number| number > 15) {
            return None;
        }
        let bytes = |register: Register| if register.is_ymm() { 32 } else { 16 };
        let base = insn.memory_base();
        let address_mask =
            if base.size() == 4 || base == Register::None && insn.memory_displ_size() == 4 {
                u64::from(u32::MAX)
            } else {
                u64::MAX
            };
        Some(Self {
            element_size,
            destination: d,
            mask: m,
            index: i,
            index_size,
            count: (bytes(destination) / element_size).min(bytes(index) / index_size),
            base: (base != Register::None).then(|| base.number() & 15),
            scale: u64::from(insn.memory_index_scale()),
            displacement: insn.memory_displacement64(),
            address_mask,
            wide: destination.is_ymm(),
            length: bytes(destination).max(bytes(index)),
        })
    }

    /// Makes every mask element all ones or zero, by its sign, and clears what lies above the
    /// vector length: a fault leaves the registers so (SDM volume 2, VGATHERDPS).
    pub fn begin(&self, fpu: &mut FpuState) {
        for n in 0..32 / self.element_size {
            let within = n * self.element_size < self.length;
            let set = within && lanes::sign(fpu, self.mask, self.element_size, n);
            lanes::set(fpu, self.mask, self.element_size, n, if set { u64::MAX } else { 0 });
        }
    }

    /// The next element to load, if any is left.
    pub fn next(&self, fpu: &FpuState, gpr: &[u64; 16]) -> Option<Element> {
        let number =
            (0..self.count).find(|&n| lanes::sign(fpu, self.mask, self.element_size, n))?;
        let index = lanes::get(fpu, self.index, self.index_size, number);
        let index = if self.index_size == 4 { index as u32 as i32 as u64 } else { index };
        let base = self.base.map_or(0, |base| gpr[base & 15]);
        let offset =
            index.wrapping_mul(self.scale).wrapping_add(base).wrapping_add(self.displacement);
        Some(Element { number, offset: offset & self.address_mask })
    }

    /// Takes the element's value (in the low bytes) and clears its mask.
    pub fn complete(&self, fpu: &mut FpuState, element: Element, value: u64) {
        if self.length == 16 {
            fpu.set_ymm_hi(self.destination, 0);
        }
        lanes::set(fpu, self.destination, self.element_size, element.number, value);
        lanes::set(fpu, self.mask, self.element_size, element.number, 0);
    }

    /// Clears what lies above the elements, and the whole mask.
    pub fn finish(&self, fpu: &mut FpuState) {
        fpu.set_xmm(self.mask, 0);
        fpu.set_ymm_hi(self.mask, 0);
        for n in self.count..16 / self.element_size {
            lanes::set(fpu, self.destination, self.element_size, n, 0);
        }
        if !self.wide {
            fpu.set_ymm_hi(self.destination, 0);
        }
    }
}
