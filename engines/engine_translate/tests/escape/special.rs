//! Instructions with implied operands, or several.

use crate::{
    access::{Attempt, Outcome, Plan, plain_gprs},
    guest::{Range, STACK, Space},
    modes::{Gprs, PLAIN},
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Say {
    Exactly,
    IfAny,
    Same,
}

struct Special {
    name: &'static str,
    prepare: &'static [u8],
    code: &'static [u8],
    /// Sets registers for an address; returns the ranges that are accessed.
    set: fn(&mut Gprs, u64) -> Vec<Range>,
    say: Say,
}

fn read(linear: u64, len: usize) -> Range {
    Range { linear, len, write: false, stack: false }
}

fn write(linear: u64, len: usize) -> Range {
    Range { linear, len, write: true, stack: false }
}

fn stack(range: Range) -> Range {
    Range { stack: true, ..range }
}

fn pushed(gprs: &mut Gprs, at: u64) -> Vec<Range> {
    gprs[4] = at.wrapping_add(8);
    vec![stack(write(at, 8))]
}

fn popped(gprs: &mut Gprs, at: u64) -> Vec<Range> {
    gprs[4] = at;
    vec![stack(read(at, 8))]
}

const RSI: usize = 6;
const RDI: usize = 7;

const fn special(
    name: &'static str,
    prepare: &'static [u8],
    code: &'static [u8],
    set: fn(&mut Gprs, u64) -> Vec<Range>,
    say: Say,
) -> Special {
    Special { name, prepare, code, set, say }
}

const SPECIAL: &[Special] = &[
    special("push rax", &[], &[0x50], pushed, Say::Exactly),
    special("push r10", &[], &[0x41, 0x52], pushed, Say::Exactly),
    special("push imm8", &[], &[0x6a, 5], pushed, Say::Exactly),
    special(
        "push ax",
        &[],
        &[0x66, 0x50],
        |g, at| {
            g[4] = at.wrapping_add(2);
            vec![stack(write(at, 2))]
        },
        Say::Exactly,
    ),
    special("push fs", &[], &[0x0f, 0xa0], pushed, Say::IfAny),
    special("pushfq", &[], &[0x9c], pushed, Say::Exactly),
    special("pop rbx", &[], &[0x5b], popped, Say::Exactly),
    special("pop r9", &[], &[0x41, 0x59], popped, Say::Exactly),
    special("pop rsp", &[], &[0x5c], popped, Say::Exactly),
    special("call", &[], &[0xe8, 0, 0, 0, 0], pushed, Say::Exactly),
    special("ret", &[], &[0xc3], popped, Say::IfAny),
    special("ret imm", &[], &[0xc2, 16, 0], popped, Say::IfAny),
    special("iretq", &[], &[0x48, 0xcf], popped, Say::Same),
    special(
        "leave",
        &[],
        &[0xc9],
        |g, at| {
            g[5] = at;
            vec![stack(read(at, 8))]
        },
        Say::Exactly,
    ),
    special("enter", &[], &[0xc8, 0, 0, 0], pushed, Say::IfAny),
    special("enter 3", &[], &[0xc8, 16, 0, 3], pushed, Say::Same),
    special(
        "push m",
        &[],
        &[0xff, 0x31],
        |g, at| {
            g[1] = at;
            vec![read(at, 8)]
        },
        Say::Exactly,
    ),
    special(
        "pop m",
        &[],
        &[0x8f, 0x01],
        |g, at| {
            g[1] = at;
            vec![write(at, 8)]
        },
        Say::Exactly,
    ),
    special(
        "pop [rsp+8]",
        &[],
        &[0x8f, 0x44, 0x24, 0x08],
        |g, _| {
            g[4] = STACK - 80;
            vec![]
        },
        Say::Exactly,
    ),
    special(
        "call m",
        &[],
        &[0xff, 0x11],
        |g, at| {
            g[1] = at;
            vec![read(at, 8)]
        },
        Say::IfAny,
    ),
    special(
        "jmp m",
        &[],
        &[0xff, 0x21],
        |g, at| {
            g[1] = at;
            vec![read(at, 8)]
        },
        Say::IfAny,
    ),
    special(
        "jmp r",
        &[],
        &[0xff, 0xe1],
        |g, at| {
            g[1] = at;
            vec![]
        },
        Say::Same,
    ),
    special("movsq from", &[], &[0x48, 0xa5], from, Say::Exactly),
    special("movsq to", &[], &[0x48, 0xa5], to, Say::Exactly),
    special("rep movsb from", &[], &[0xf3, 0xa4], repeat_from, Say::IfAny),
    special("rep movsq to", &[], &[0xf3, 0x48, 0xa5], repeat_to, Say::IfAny),
    special("std, rep movsd to", &[0xfd], &[0xf3, 0xa5, 0xfc], repeat_to, Say::Same),
    special("stosq", &[], &[0x48, 0xab], to, Say::Exactly),
    special("rep stosb", &[], &[0xf3, 0xaa], repeat_to, Say::IfAny),
    special("rep stosq", &[], &[0xf3, 0x48, 0xab], repeat_to, Say::IfAny),
    special("a32 stosq", &[], &[0x67, 0x48, 0xab], short_to, Say::Exactly),
    special("lodsq", &[], &[0x48, 0xad], from, Say::Exactly),
    special("rep lodsb", &[], &[0xf3, 0xac], repeat_from, Say::IfAny),
    special("scasq", &[], &[0x48, 0xaf], scanned, Say::Exactly),
    special("repne scasb", &[], &[0xf2, 0xae], repeat_scanned, Say::IfAny),
    special("cmpsq", &[], &[0x48, 0xa7], from, Say::Exactly),
    special("repe cmpsb", &[], &[0xf3, 0xa6], repeat_from, Say::IfAny),
    special("outsb", &[], &[0x6e], from, Say::Same),
    special("rep insd", &[], &[0xf3, 0x6d], repeat_to, Say::Same),
    special(
        "xlat",
        &[],
        &[0xd7],
        |g, at| {
            g[3] = at.wrapping_sub(g[0] & 0xff);
            vec![read(at, 1)]
        },
        Say::Exactly,
    ),
    special("bt m,r", &[], &[0x48, 0x0f, 0xa3, 0x19], bit_read, Say::Exactly),
    special("bts m,r", &[], &[0x48, 0x0f, 0xab, 0x19], bit_write, Say::Exactly),
    special("lock btr m,r", &[], &[0xf0, 0x48, 0x0f, 0xb3, 0x19], bit_write, Say::Exactly),
    special("maskmovdqu", &[0x66, 0x0f, 0x76, 0xc9], &[0x66, 0x0f, 0xf7, 0xc1], masked, Say::IfAny),
    special(
        "maskmovdqu none",
        &[0x66, 0x0f, 0xef, 0xc9],
        &[0x66, 0x0f, 0xf7, 0xc1],
        masked,
        Say::Same,
    ),
    // VPMASKMOVD YMM0, YMM2, [RCX] and back, by all ones and by one.
    special(
        "vpmaskmovd load",
        &[0xc5, 0xed, 0x76, 0xd2],
        &[0xc4, 0xe2, 0x6d, 0x8c, 0x01],
        |g, at| {
            g[1] = at;
            vec![read(at, 32)]
        },
        Say::IfAny,
    ),
    special(
        "vpmaskmovd store, one lane",
        &[0xc5, 0xe9, 0x76, 0xd2, 0xc5, 0xe9, 0x73, 0xda, 0x0c],
        &[0xc4, 0xe2, 0x6d, 0x8e, 0x01],
        |g, at| {
            g[1] = at;
            vec![]
        },
        Say::Same,
    ),
    // VPGATHERQQ XMM0, [RCX + XMM3 * 8], XMM4 with both indices RBX.
    special(
        "vpgatherqq",
        &[0xc4, 0xe1, 0xf9, 0x6e, 0xdb, 0x66, 0x0f, 0x6c, 0xdb, 0x66, 0x0f, 0x76, 0xe4],
        &[0xc4, 0xe2, 0xd9, 0x91, 0x04, 0xd9],
        |g, at| {
            g[3] = 0x1357_9bdf_0246_8ace;
            g[1] = at.wrapping_sub(g[3] << 3);
            vec![read(at, 8)]
        },
        Say::Exactly,
    ),
    // VPGATHERDD XMM0, [RCX + XMM3], XMM4 with a negative index.
    special(
        "vpgatherdd",
        &[0xc5, 0xf9, 0x6e, 0xdb, 0x66, 0x0f, 0x70, 0xdb, 0, 0x66, 0x0f, 0x76, 0xe4],
        &[0xc4, 0xe2, 0x59, 0x90, 0x04, 0x19],
        |g, at| {
            g[3] = 0xffff_8001;
            g[1] = at.wrapping_add(0x7fff);
            vec![read(at, 4)]
        },
        Say::Exactly,
    ),
    special(
        "movdir64b",
        &[],
        &[0x66, 0x0f, 0x38, 0xf8, 0x19],
        |g, at| {
            g[1] = at;
            g[3] = 0x50_0000;
            vec![]
        },
        Say::Same,
    ),
    special("fxrstor", &[], &[0x0f, 0xae, 0x09], area_read, Say::IfAny),
    special("xrstor", &[], &[0x0f, 0xae, 0x29], area_read, Say::Same),
    special("xsave", &[], &[0x0f, 0xae, 0x21], area_write, Say::Same),
    special(
        "ldmxcsr",
        &[],
        &[0x0f, 0xae, 0x11],
        |g, at| {
            g[1] = at;
            vec![read(at, 4)]
        },
        Say::IfAny,
    ),
    special(
        "invlpg",
        &[],
        &[0x0f, 0x01, 0x39],
        |g, at| {
            g[1] = at;
            vec![]
        },
        Say::Same,
    ),
];

fn from(g: &mut Gprs, at: u64) -> Vec<Range> {
    (g[RSI], g[RDI]) = (at, STACK - 0x200);
    vec![read(at, 8)]
}

fn to(g: &mut Gprs, at: u64) -> Vec<Range> {
    (g[RSI], g[RDI]) = (STACK - 0x200, at);
    vec![write(at, 8)]
}

fn scanned(g: &mut Gprs, at: u64) -> Vec<Range> {
    g[RDI] = at;
    vec![read(at, 8)]
}

fn short_to(g: &mut Gprs, at: u64) -> Vec<Range> {
    g[RDI] = at & 0xffff_ffff | 0xabcd << 48;
    vec![write(at & 0xffff_ffff, 8)]
}

fn repeat_from(g: &mut Gprs, at: u64) -> Vec<Range> {
    g[1] = 100;
    from(g, at);
    vec![read(at, 1)]
}

fn repeat_to(g: &mut Gprs, at: u64) -> Vec<Range> {
    g[1] = 20;
    to(g, at);
    vec![write(at, 1)]
}

fn repeat_scanned(g: &mut Gprs, at: u64) -> Vec<Range> {
    (g[0], g[1], g[RDI]) = (0, 100, at);
    vec![read(at, 1)]
}

/// A bit far before the operand.
fn bit_read(g: &mut Gprs, at: u64) -> Vec<Range> {
    g[3] = (-0x7654_3210_0000_0000_i64 + 5) as u64;
    g[1] = at.wrapping_sub((((g[3] as i64) >> 6) << 3) as u64);
    vec![read(at, 8)]
}

fn bit_write(g: &mut Gprs, at: u64) -> Vec<Range> {
    bit_read(g, at);
    vec![write(at, 8)]
}

fn masked(g: &mut Gprs, at: u64) -> Vec<Range> {
    g[RDI] = at;
    vec![write(at, 16)]
}

fn area_read(g: &mut Gprs, at: u64) -> Vec<Range> {
    g[1] = at & !63;
    vec![read(at & !63, 512)]
}

fn area_write(g: &mut Gprs, at: u64) -> Vec<Range> {
    g[1] = at & !63;
    vec![write(at & !63, 512 + 64)]
}

/// One that crosses pages where it is loose, or that string instructions break up, may fault
/// at its first byte's page or not: what is said is the first byte's.
pub fn plan(plan: &mut Plan, space: &Space, addresses: &[u64], user: bool) {
    for special in SPECIAL {
        let (rip, end) = plan.place(special.prepare, special.code, &[]);
        for at in addresses {
            let mut gprs = plain_gprs();
            let ranges = (special.set)(&mut gprs, *at);
            let fault = space.access(&ranges, user);
            let outcome = match special.say {
                Say::Exactly => Outcome::Exactly(fault),
                Say::IfAny => Outcome::IfAny(fault),
                Say::Same => Outcome::Same,
            };
            let writes = ranges.iter().filter(|r| r.write);
            let mut writes: Vec<u64> =
                writes.filter_map(|r| space.bytes(r.linear, r.len)).flatten().collect();
            // The stack and the other operand of string instructions.
            writes.extend(space.bytes(STACK - 0x400, 0x400).unwrap_or_default());
            plan.attempts.push(Attempt {
                name: special.name,
                mode: PLAIN,
                linear: *at,
                rip,
                end,
                gprs,
                outcome,
                loads: None,
                writes,
                stores: None,
            });
        }
    }
    moffs(plan, space, addresses, user);
}

/// MOV with a whole address in the instruction.
fn moffs(plan: &mut Plan, space: &Space, addresses: &[u64], user: bool) {
    for (n, at) in addresses.iter().enumerate().step_by(3) {
        let store = n % 2 == 0;
        let code = [&[0x48, if store { 0xa3 } else { 0xa1 }][..], &at.to_le_bytes()].concat();
        let (rip, end) = plan.place(&[], &code, &[]);
        let range = if store { write(*at, 8) } else { read(*at, 8) };
        let gprs = plain_gprs();
        plan.attempts.push(Attempt {
            name: "moffs",
            mode: PLAIN,
            linear: *at,
            rip,
            end,
            gprs,
            outcome: Outcome::Exactly(space.access(&[range], user)),
            loads: None,
            writes: space.bytes(*at, 8).filter(|_| store).unwrap_or_default(),
            stores: store.then(|| gprs[0].to_le_bytes().to_vec()),
        });
    }
}
