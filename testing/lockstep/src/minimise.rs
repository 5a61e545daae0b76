//! Steps towards a smaller case.

use crate::{
    case::{CODE_LEN, Case, Mode},
    generate::encode::decode,
};
use vcpu_state::FpuState;
use x86_defs::xsave;

pub type Change = Box<dyn Fn(&mut Case)>;

/// Simplifications, to be tried one after another, each on what the last has left.
pub fn changes(mode: Mode, case: &Case) -> Vec<Change> {
    let mut all: Vec<Change> = Vec::new();
    all.push(Box::new(|case| case.fpu = FpuState::init().area));
    // Instructions of a sequence, from the last.
    let mut starts = Vec::new();
    let mut offset = 0;
    while offset < case.bytes().len() {
        let len = decode(&case.bytes()[offset..], mode, 0).len().max(1);
        starts.push((offset, len));
        offset += len;
    }
    if starts.len() > 1 {
        for (offset, len) in starts.into_iter().rev() {
            all.push(Box::new(move |case| cut(case, offset, len)));
        }
    }
    all.push(Box::new(|case| case.at = 0x100));
    for n in 0..16 {
        all.push(Box::new(move |case| case.gpr[n] = 0));
        all.push(Box::new(move |case| case.gpr[n] &= 0xff));
        all.push(Box::new(move |case| case.gpr[n] &= 0xffff_ffff));
    }
    all.push(Box::new(|case| case.rflags &= 0x202));
    all.push(Box::new(|case| (case.fs_base, case.gs_base) = (0, 0)));
    for n in 0..8 {
        all.push(Box::new(move |case| case.fpu[xsave::ST + 16 * n..][..16].fill(0)));
    }
    for n in 0..16 {
        all.push(Box::new(move |case| {
            case.fpu[xsave::XMM + 16 * n..][..16].fill(0);
            case.fpu[xsave::YMM_HI + 16 * n..][..16].fill(0);
        }));
    }
    let whole = |at: usize, len: usize| -> Change {
        Box::new(move |case| {
            case.fpu[at..at + len].copy_from_slice(&FpuState::init().area[at..at + len]);
        })
    };
    all.extend([
        whole(xsave::FCW, 2),
        whole(xsave::FSW, 2),
        whole(xsave::FTW, 1),
        whole(xsave::MXCSR, 4),
    ]);
    all
}

/// Takes out `len` bytes of code, if they are still there.
fn cut(case: &mut Case, offset: usize, len: usize) {
    let old = case.bytes().to_vec();
    if old.len() <= len || offset + len > old.len() {
        return;
    }
    let mut code = [0; CODE_LEN];
    let kept: Vec<u8> = [&old[..offset], &old[offset + len..]].concat();
    code[..kept.len()].copy_from_slice(&kept);
    (case.code, case.code_len) = (code, kept.len() as u32);
}
