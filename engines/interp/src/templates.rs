//! Instructions that were decoded before, but for their constants.
//!
//! What an instruction is, its prefixes, opcode, ModRM and SIB say; displacement and immediate
//! operand follow (SDM volume 2, 2.1). Code consists of few such beginnings, so what one was
//! decoded to serves for the next that begins with the same bytes: only its constants are taken
//! from the code.
//!
//! Kept are instructions of 64-bit code whose handlers do not want the decoder's view. Where a
//! beginning ends is found by a short scan. The decoder has to agree when a template is made;
//! after that no bytes but the constants are different.

use iced_x86::{ConstantOffsets, Instruction, Mnemonic, OpKind};
use semantics::Insn;

/// Templates kept, a power of two.
const COUNT: usize = 4096;
/// Bytes that are looked at: an instruction, and one more.
pub const LOOK: usize = 16;
/// Bytes of a beginning at most.
const MOST: usize = 7;

/// How the immediate operand is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Immediate {
    /// There is none, or the opcode implies it.
    None,
    Unsigned(u8),
    Signed(u8),
}

/// An instruction without its constants.
#[derive(Clone, Debug)]
struct Template {
    /// The first bytes, and their number in the last byte.
    key: u64,
    insn: Insn,
    displacement: u8,
    immediate: Immediate,
    ends: bool,
    /// It may change code, if that was asked.
    writes: Option<bool>,
}

impl Template {
    /// With the constants that follow the beginning.
    #[inline]
    fn with(&self, mut rest: u128) -> Decoded {
        let mut insn = self.insn.clone();
        if self.displacement != 0 {
            insn.disp = signed(rest as u64, self.displacement) as i32;
            rest >>= 8 * self.displacement;
        }
        match self.immediate {
            Immediate::None => {}
            Immediate::Unsigned(size) => insn.imm = unsigned(rest as u64, size),
            Immediate::Signed(size) => insn.imm = signed(rest as u64, size),
        }
        Decoded { insn, ends: self.ends, writes: self.writes }
    }
}

/// What is known of an instruction.
#[derive(Clone, Debug)]
pub struct Decoded {
    pub insn: Insn,
    /// It ends a block.
    pub ends: bool,
    /// What follows may be other code than before, if that was asked.
    pub writes: Option<bool>,
}

/// The templates of one vCPU, each at the place of its beginning's hash.
#[derive(Debug, Default)]
pub struct Templates(Vec<Option<Template>>);

impl Templates {
    /// The instruction at the beginning of `bytes`, which are 64-bit code; its end is not set.
    #[inline]
    pub fn find(&self, bytes: &[u8]) -> Option<Decoded> {
        let code = u128::from_le_bytes(*bytes.first_chunk::<LOOK>()?);
        let (key, at) = beginning(code)?;
        let known = self.0.get(slot(key))?.as_ref().filter(|t| t.key == key)?;
        Some(known.with(code >> (8 * at)))
    }

    /// Keeps what 64-bit `bytes` were decoded to.
    pub fn learn(
        &mut self,
        bytes: &[u8],
        iced: &Instruction,
        offsets: &ConstantOffsets,
        decoded: &Decoded,
    ) {
        if let Some(template) = template(bytes, iced, offsets, decoded) {
            if self.0.is_empty() {
                self.0.resize(COUNT, None);
            }
            if let Some(place) = self.0.get_mut(slot(template.key)) {
                *place = Some(template);
            }
        }
    }
}

fn template(
    bytes: &[u8],
    iced: &Instruction,
    offsets: &ConstantOffsets,
    decoded: &Decoded,
) -> Option<Template> {
    let code = u128::from_le_bytes(*bytes.first_chunk::<LOOK>()?);
    let (key, at) = beginning(code)?;
    let insn = &decoded.insn;
    if iced.is_invalid() || insn.cold.is_some() || may_be_intercepted(iced.mnemonic()) {
        return None;
    }
    let (displacement, size) = (offsets.displacement_size(), offsets.immediate_size());
    let at = at as usize;
    let agrees = iced.len() == at + displacement + size
        && usize::from(insn.len) == iced.len()
        && matches!(displacement, 0 | 1 | 4)
        && (displacement == 0 || offsets.displacement_offset() == at)
        && (size == 0 || offsets.immediate_offset() == at + displacement)
        && !offsets.has_immediate2();
    if !agrees {
        return None;
    }
    let immediate = immediate(iced, size as u8)?;
    let Decoded { insn, ends, writes } = decoded.clone();
    let template =
        Template { key, insn, displacement: displacement as u8, immediate, ends, writes };
    let again = template.with(code >> (8 * at)).insn;
    // Of some instructions, constants are not kept.
    (again.imm == decoded.insn.imm && again.disp == decoded.insn.disp).then_some(template)
}

/// How the instruction's only immediate operand, of so many bytes, becomes [`Insn::imm`].
fn immediate(iced: &Instruction, size: u8) -> Option<Immediate> {
    if size == 0 {
        return Some(Immediate::None);
    }
    use OpKind::*;
    let mut kinds = iced.op_kinds().filter_map(|kind| match kind {
        Immediate8 | Immediate16 | Immediate32 | Immediate64 => Some(Immediate::Unsigned(size)),
        Immediate8to16 | Immediate8to32 | Immediate8to64 | Immediate32to64 | NearBranch64 => {
            Some(Immediate::Signed(size))
        }
        _ => None,
    });
    kinds.next().filter(|_| kinds.next().is_none())
}

/// The handler depends on what a personality asks for.
fn may_be_intercepted(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::Syscall | Mnemonic::Cpuid | Mnemonic::Int3 | Mnemonic::Into)
}

fn slot(key: u64) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize % COUNT
}

fn unsigned(bytes: u64, size: u8) -> u64 {
    bytes & u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)))
}

fn signed(bytes: u64, size: u8) -> u64 {
    let unused = 64 - 8 * u32::from(size.clamp(1, 8));
    ((bytes << unused) as i64 >> unused) as u64
}

/// Prefixes, opcode, ModRM and SIB of the instruction at the beginning of `code`, and how many
/// bytes they are; `None` for encodings that are not kept.
#[inline]
fn beginning(code: u128) -> Option<(u64, u32)> {
    let code = code as u64;
    let byte = |n: u32| (code >> (8 * n)) as u8;
    let mut at = 0;
    while matches!(byte(at), 0x64 | 0x65 | 0x66 | 0xf0 | 0xf2 | 0xf3) {
        at += 1;
        if at == 3 {
            return None;
        }
    }
    if byte(at) & 0xf0 == 0x40 {
        at += 1;
    }
    let mut opcode = byte(at);
    at += 1;
    let modrm = if opcode == 0x0f {
        opcode = byte(at);
        at += 1;
        match opcode {
            // Maps 0F 38 and 0F 3A, of which each instruction has a ModRM.
            0x38 | 0x3a => {
                at += 1;
                true
            }
            _ => has(&LONG, opcode),
        }
    } else {
        has(&SHORT, opcode)
    };
    if modrm {
        let modrm = byte(at);
        at += 1 + u32::from(modrm < 0xc0 && modrm & 7 == 4);
    }
    let key = code & u64::MAX >> (64 - 8 * at.min(8));
    (at as usize <= MOST).then_some((key | u64::from(at) << 56, at))
}

/// A bit for each opcode.
type Opcodes = [u64; 4];

fn has(set: &Opcodes, opcode: u8) -> bool {
    set[usize::from(opcode >> 6)] >> (opcode & 63) & 1 != 0
}

/// Opcodes of one byte with a ModRM (SDM volume 2, A.3).
const SHORT: Opcodes = {
    let (mut set, mut n) = ([0; 4], 0);
    while n < 256 {
        let has = match n {
            0x00..=0x3f => n & 7 < 4,
            0x63 | 0x69 | 0x6b | 0x80..=0x8f | 0xc0 | 0xc1 | 0xc6 | 0xc7 => true,
            0xd0..=0xd3 | 0xd8..=0xdf | 0xf6 | 0xf7 | 0xfe | 0xff => true,
            _ => false,
        };
        set[n >> 6] |= (has as u64) << (n & 63);
        n += 1;
    }
    set
};

/// Opcodes behind 0F with a ModRM.
const LONG: Opcodes = {
    let (mut set, mut n) = ([0; 4], 0);
    while n < 256 {
        let has = !matches!(
            n,
            0x05..=0x09 | 0x0b | 0x0e | 0x30..=0x37 | 0x77 | 0x80..=0x8f | 0xa0..=0xa2
                | 0xa8..=0xaa | 0xc8..=0xcf
        );
        set[n >> 6] |= (has as u64) << (n & 63);
        n += 1;
    }
    set
};

#[cfg(test)]
mod tests {
    use super::*;
    use emit::StubCache;
    use iced_x86::{Decoder, DecoderError, DecoderOptions};
    use semantics::{CodeSize, ends_block, features::IsaFeatures, select};

    struct Both {
        templates: Templates,
        stubs: StubCache,
        features: IsaFeatures,
    }

    fn both() -> Both {
        let stubs = StubCache::new().unwrap();
        Both { templates: Templates::default(), stubs, features: IsaFeatures::all() }
    }

    impl Both {
        /// Decodes without templates, and makes one if it can.
        fn decode(&mut self, bytes: &[u8], ip: u64) -> Option<Insn> {
            let mut decoder = Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE);
            let iced = decoder.decode();
            if decoder.last_error() != DecoderError::None {
                return None;
            }
            let own = &bytes[..iced.len()];
            let insn = select(&iced, own, CodeSize::Bits64, self.features, &self.stubs);
            let ends = ends_block(&iced);
            let decoded = Decoded { insn, ends, writes: None };
            self.templates.learn(bytes, &iced, &decoder.get_constant_offsets(&iced), &decoded);
            Some(decoded.insn)
        }
    }

    /// All that handlers read.
    fn fields(insn: &Insn) -> impl PartialEq + std::fmt::Debug + use<> {
        let Insn { handler, imm, disp, len, reg, rm, base, index, scale, .. } = *insn;
        let Insn { seg, asize, osize, prefix, .. } = *insn;
        let registers = (reg, rm, base, index, scale, seg);
        (handler as usize, imm, disp, len, registers, (asize, osize, prefix), insn.cold.is_some())
    }

    #[test]
    fn templates_say_what_the_decoder_says() {
        let mut both = both();
        let mut seed = 99_u64;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let (mut hits, mut kinds) = (0, std::collections::HashSet::new());
        for n in 0..300_000 {
            let mut bytes = [random().to_le_bytes(), random().to_le_bytes()].concat();
            // Prefixes and the other opcodes are rare among random bytes.
            let prefixes = [0x66, 0x48, 0x4c, 0xf3, 0x0f, 0x65, 0xf0, 0x41];
            for byte in bytes.iter_mut().take(n % 4) {
                *byte = prefixes[random() as usize % prefixes.len()];
            }
            let ip = random();
            let Some(first) = both.decode(&bytes, ip) else { continue };
            // Another instruction, if it has the same beginning.
            let at = random() as usize % bytes.len();
            bytes[at] = random() as u8;
            let Some(known) = both.templates.find(&bytes) else { continue };
            let ip = random();
            let fresh = both.decode(&bytes, ip);
            let Some(fresh) = fresh else { panic!("{bytes:x?} is none") };
            assert_eq!(fields(&known.insn), fields(&fresh), "{bytes:x?} after {first:?}");
            let iced = Decoder::with_ip(64, &bytes, ip, DecoderOptions::NONE).decode();
            assert_eq!(known.ends, ends_block(&iced), "{iced}");
            hits += 1;
            kinds.insert(iced.code());
        }
        assert!(hits > 50_000 && kinds.len() > 300, "{hits} of {} kinds", kinds.len());
    }

    #[test]
    fn constants_are_taken_from_the_code() {
        let mut both = both();
        let pad = |bytes: &[u8]| [bytes, &[0x90; LOOK]].concat();
        // mov qword ptr [rsp-128], imm32; jmp rel32; mov r64, imm64; lea of RIP
        for (bytes, other, disp, imm) in [
            (
                &[0x48, 0xc7, 0x44, 0x24, 1, 2, 3, 4, 5][..],
                &[0x48, 0xc7, 0x44, 0x24, 0x80, 0xff, 0xff, 0xff, 0x8f][..],
                -128,
                0xffff_ffff_8fff_ffff,
            ),
            (&[0xe9, 1, 2, 3, 4], &[0xe9, 0xfe, 0xff, 0xff, 0xff], 0, !1),
            (
                &[0x49, 0xba, 1, 2, 3, 4, 5, 6, 7, 8],
                &[0x49, 0xba, 8, 7, 6, 5, 4, 3, 2, 0x81],
                0,
                0x8102_0304_0506_0708,
            ),
            (&[0x48, 0x8d, 0x05, 1, 2, 3, 4], &[0x48, 0x8d, 0x05, 0, 0, 0, 0x80], i32::MIN, 0),
        ] {
            both.decode(&pad(bytes), 0x1000).unwrap();
            let found = both.templates.find(&pad(other)).unwrap().insn;
            assert_eq!((found.disp, found.imm, found.len.into()), (disp, imm, other.len()));
            let fresh = both.decode(&pad(other), 0x7000).unwrap();
            assert_eq!(fields(&found), fields(&fresh));
        }
    }

    #[test]
    fn what_may_not_be_complete_is_left_to_the_decoder() {
        let mut both = both();
        let bytes = [0xb8, 1, 2, 3, 4, 0x90, 0x90, 0x90, 0, 0, 0, 0, 0, 0, 0, 0];
        both.decode(&bytes, 0).unwrap();
        assert!(both.templates.find(&bytes).is_some());
        assert!(both.templates.find(&bytes[..LOOK - 1]).is_none());
        // SYSCALL and CPUID may be another's.
        for bytes in [[0x0f, 0x05], [0x0f, 0xa2]] {
            let bytes = [&bytes[..], &[0x90; LOOK]].concat();
            both.decode(&bytes, 0).unwrap();
            assert!(both.templates.find(&bytes).is_none());
        }
    }
}
