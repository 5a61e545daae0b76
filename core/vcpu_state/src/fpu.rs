//! The x87, SSE and AVX registers, as an XSAVE area in standard format.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use x86_defs::xsave;

/// The standard-format XSAVE area (SDM volume 1, 13.4): also the runtime form, so that saving
/// copies and host code can load registers straight from it.
///
/// XSTATE_BV in the header says which components differ from their initial values *at most*;
/// engines may leave it all ones for what they track.
#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct FpuState {
    pub area: [u8; xsave::LEN],
}

impl FpuState {
    /// Power-on values (SDM volume 3, table 10-1).
    pub fn reset() -> Self {
        let mut fpu = Self { area: [0; xsave::LEN] };
        fpu.set_u16(xsave::FCW, 0x40);
        fpu.set_u32(xsave::MXCSR, xsave::MXCSR_RESET);
        fpu.set_u32(xsave::MXCSR_MASK, xsave::MXCSR_MASK_VALUE);
        // After power-on the tag word is 5555H: every register holds +0.
        fpu.area[xsave::FTW] = 0xff;
        fpu.set_u64(xsave::XSTATE_BV, 7);
        fpu
    }

    /// Values after FNINIT and with MXCSR at its default.
    pub fn init() -> Self {
        let mut fpu = Self { area: [0; xsave::LEN] };
        fpu.set_u16(xsave::FCW, xsave::FCW_RESET);
        fpu.set_u32(xsave::MXCSR, xsave::MXCSR_RESET);
        fpu.set_u32(xsave::MXCSR_MASK, xsave::MXCSR_MASK_VALUE);
        fpu.set_u64(xsave::XSTATE_BV, 7);
        fpu
    }

    /// Makes the header say that all components are in the area, in standard format: host code
    /// can load them, whatever a saved state says.
    pub fn own_header(&mut self) {
        let end = xsave::XSTATE_BV + xsave::HEADER_LEN;
        self.area[xsave::XSTATE_BV..end].fill(0);
        self.set_u64(xsave::XSTATE_BV, 7);
    }

    #[inline]
    pub fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }

    #[inline]
    pub fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    #[inline]
    pub fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    #[inline]
    pub fn set_u16(&mut self, at: usize, value: u16) {
        self.area[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    #[inline]
    pub fn set_u32(&mut self, at: usize, value: u32) {
        self.area[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    #[inline]
    pub fn set_u64(&mut self, at: usize, value: u64) {
        self.area[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    #[inline]
    pub fn mxcsr(&self) -> u32 {
        self.u32(xsave::MXCSR)
    }

    pub fn xmm(&self, n: usize) -> u128 {
        u128::from_le_bytes(self.bytes(xsave::XMM + 16 * (n & 15)))
    }

    pub fn set_xmm(&mut self, n: usize, value: u128) {
        let at = xsave::XMM + 16 * (n & 15);
        self.area[at..at + 16].copy_from_slice(&value.to_le_bytes());
    }

    /// Bits 128 to 255 of YMM`n`.
    pub fn ymm_hi(&self, n: usize) -> u128 {
        u128::from_le_bytes(self.bytes(xsave::YMM_HI + 16 * (n & 15)))
    }

    pub fn set_ymm_hi(&mut self, n: usize, value: u128) {
        let at = xsave::YMM_HI + 16 * (n & 15);
        self.area[at..at + 16].copy_from_slice(&value.to_le_bytes());
    }

    #[inline]
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(&self.area[at..at + N]);
        out
    }
}

impl std::fmt::Debug for FpuState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let xmm: Vec<u128> = (0..16).map(|n| self.xmm(n)).collect();
        f.debug_struct("FpuState")
            .field("fcw", &self.u16(xsave::FCW))
            .field("fsw", &self.u16(xsave::FSW))
            .field("mxcsr", &self.mxcsr())
            .field("xmm", &format_args!("{xmm:x?}"))
            .finish_non_exhaustive()
    }
}

impl Serialize for FpuState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.area)
    }
}

impl<'de> Deserialize<'de> for FpuState {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = FpuState;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "an XSAVE area of {} bytes", xsave::LEN)
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<FpuState, E> {
                let area = bytes.try_into().map_err(|_| E::invalid_length(bytes.len(), &self))?;
                Ok(FpuState { area })
            }
        }
        let fpu = deserializer.deserialize_bytes(Visitor)?;
        if fpu.mxcsr() & !xsave::MXCSR_MASK_VALUE != 0 {
            return Err(D::Error::custom("reserved bits of MXCSR are set"));
        }
        Ok(fpu)
    }
}
