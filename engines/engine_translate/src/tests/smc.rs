//! Code that changes (SDM volume 3, 9.1.3 and 13.6), interpreted and translated.

use super::support::*;
use crate::{Translate, Translation};
use engine::{Exit, Intercepts};
use iced_x86::{IcedError, code_asm::*};
use vcpu_state::VcpuState;

/// A function that is patched, in a page of its own.
const TARGET: u64 = CODE + 0x1000;
/// The same memory as at linear address zero.
const ALIAS: u64 = 0x20_0000;

/// The same guest, interpreted, and translated at once and when hot.
fn each(
    state: &VcpuState,
    build: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
    check: impl Fn(&mut Guest),
) {
    let engine = || Translate::new().unwrap();
    let hot = |hot| {
        engine().with_translation(Translation {
            code_memory: 1 << 20,
            hot,
            ..Translation::default()
        })
    };
    for engine in [engine(), hot(0), hot(5), hot(64)] {
        let vm = vm_of(&engine, Intercepts::default());
        let directory = 0x8_2000 + 8;
        vm.memory().write(directory, &0x87_u64.to_le_bytes()).unwrap();
        vm.memory().write(CODE, &assemble(64, CODE, &build)).unwrap();
        let mut vcpu = vm.create_vcpu(0).unwrap();
        vcpu.set_state(state).unwrap();
        check(&mut Guest { vm, vcpu, host: Host::default() });
    }
}

fn sum(guest: &mut Guest) -> u64 {
    guest.vcpu.state().unwrap().regs.gpr[3]
}

/// The sum of what a function returns whose operand is patched, at `address`, before each call.
fn patched(address: u64, times: u32) {
    let build = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.mov(rsi, TARGET)?;
        a.mov(rdi, address)?;
        a.mov(word_ptr(rsi), 0xb8)?; // mov eax, imm32; ret
        a.mov(byte_ptr(rsi + 5), 0xc3)?;
        a.xor(ebx, ebx)?;
        a.mov(ecx, times)?;
        a.set_label(&mut again)?;
        a.mov(dword_ptr(rdi), ecx)?;
        a.call(rsi)?;
        a.add(rbx, rax)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    };
    each(&long_mode(), build, |guest| {
        assert_eq!(guest.run(), Exit::Idle);
        let n = u64::from(times);
        assert_eq!(sum(guest), n * (n + 1) / 2);
    });
}

#[test]
fn an_operand_is_patched_before_each_call() {
    patched(TARGET + 1, 3000);
}

#[test]
fn a_patch_by_another_linear_address_is_seen() {
    patched(ALIAS + TARGET + 1, 3000);
}

/// Writes an operand of the instruction that comes next in the same block.
fn next_instruction(wide: bool) {
    let build = |a: &mut CodeAssembler| {
        let (mut again, mut here) = (a.create_label(), a.create_label());
        a.lea(rdi, ptr(here))?;
        a.xor(ebx, ebx)?;
        a.mov(ecx, 2000)?;
        a.set_label(&mut again)?;
        a.xor(eax, eax)?;
        match wide {
            true => a.mov(dword_ptr(rdi + 2), ecx)?,
            false => a.mov(byte_ptr(rdi + 1), cl)?,
        }
        a.set_label(&mut here)?;
        match wide {
            true => a.add(edx, 0x1234_5678)?, // ADD r/m32, imm32 by two bytes of opcode
            false => a.add(al, 0x12)?,
        }
        a.add(rbx, rax)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    };
    each(&long_mode(), build, |guest| {
        assert_eq!(guest.run(), Exit::Idle);
        let state = guest.vcpu.state().unwrap();
        match wide {
            true => assert_eq!(state.regs.gpr[2], 2000 * 2001 / 2),
            false => assert_eq!(state.regs.gpr[3], (1..=2000_u64).map(|n| n & 0xff).sum::<u64>()),
        }
    });
}

#[test]
fn a_store_changes_the_next_instruction_of_its_block() {
    next_instruction(true);
    next_instruction(false);
}

#[test]
fn an_opcode_changes_each_time() {
    let build = |a: &mut CodeAssembler| {
        let (mut again, mut here) = (a.create_label(), a.create_label());
        a.lea(rdi, ptr(here))?;
        a.xor(ebx, ebx)?;
        a.mov(ecx, 901)?;
        a.set_label(&mut again)?;
        // ADD and SUB of EBX and 5 differ in five bits of the ModRM byte.
        a.xor(byte_ptr(rdi + 1), 0x28)?;
        a.set_label(&mut here)?;
        a.add(ebx, 5)?;
        a.inc(ebx)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    };
    each(&long_mode(), build, |guest| {
        assert_eq!(guest.run(), Exit::Idle);
        // The first of them subtracts, and so does the last.
        assert_eq!(sum(guest), 901 - 5);
    });
}

/// Everything that can be loaded from code, in each width, with registers that live in the
/// host's and that do not; the operand is patched, the results are summed.
#[test]
fn each_operation_takes_the_operand_that_is_there() {
    let forms: [&[u8]; 12] = [
        &[0xbb],             // mov ebx, imm32
        &[0x41, 0xbb],       // mov r11d, imm32
        &[0x48, 0xc7, 0xc3], // mov rbx, imm32
        &[0x49, 0xc7, 0xc3], // mov r11, imm32
        &[0x81, 0xc3],       // add ebx, imm32
        &[0x49, 0x81, 0xc3], // add r11, imm32
        &[0x48, 0x81, 0xf3], // xor rbx, imm32
        &[0x41, 0x81, 0xeb], // sub r11d, imm32
        &[0x48, 0x0d],       // or rax, imm32
        &[0x48, 0x25],       // and rax, imm32
        &[0x3d],             // cmp eax, imm32
        &[0x49, 0xf7, 0xc3], // test r11, imm32
    ];
    for form in forms {
        let results = std::cell::RefCell::new(Vec::new());
        let build = |a: &mut CodeAssembler| {
            let mut again = a.create_label();
            a.mov(rsi, TARGET)?;
            a.mov(r9, 0x0123_4567_89ab_cdef_u64)?;
            a.mov(r11, r9)?;
            a.mov(rbx, r9)?;
            a.mov(ecx, 300)?;
            a.set_label(&mut again)?;
            a.imul_2(r9d, dword_ptr(rsi + 64))?;
            a.add(r9d, ecx)?;
            a.mov(dword_ptr(rsi + form.len() as i32), r9d)?;
            a.mov(rax, r9)?;
            a.call(rsi)?;
            a.pushfq()?;
            a.pop(rdx)?;
            a.and(edx, 0x8c5)?;
            a.add(rbp, rdx)?;
            a.add(rbp, rax)?;
            a.rol(rbp, 7)?;
            a.dec(ecx)?;
            a.jnz(again)?;
            a.hlt()
        };
        each(&long_mode(), build, |guest| {
            let code = [form, &[0, 0, 0, 0, 0xc3]].concat();
            guest.vm.memory().write(TARGET, &code).unwrap();
            guest.vm.memory().write(TARGET + 64, &0x9e37_79b1_u32.to_le_bytes()).unwrap();
            assert_eq!(guest.run(), Exit::Idle);
            let gpr = guest.vcpu.state().unwrap().regs.gpr;
            results.borrow_mut().push((gpr[3], gpr[5], gpr[11]));
        });
        let results = results.into_inner();
        assert!(results.iter().all(|r| *r == results[0]), "{form:x?}: {results:x?}");
    }
}

/// The function is executed often, patched by the guest in between, and by a device; its page
/// leaves and enters the checked state.
#[test]
fn a_device_writes_code_and_pages_change_their_state() {
    let build = |a: &mut CodeAssembler| {
        let (mut again, mut inner, mut kept) =
            (a.create_label(), a.create_label(), a.create_label());
        a.mov(rsi, TARGET)?;
        a.set_label(&mut again)?;
        a.xor(ebx, ebx)?;
        a.mov(ecx, 100)?;
        a.set_label(&mut inner)?;
        a.test(edx, edx)?;
        a.jz(kept)?;
        a.mov(dword_ptr(rsi + 1), ecx)?;
        a.set_label(&mut kept)?;
        a.call(rsi)?;
        a.add(rbx, rax)?;
        a.dec(ecx)?;
        a.jnz(inner)?;
        a.out(0x80, al)?;
        a.jmp(again)
    };
    each(&long_mode(), build, |guest| {
        guest.host.stop_port = Some(0x80);
        for (round, value) in [7_u32, 8, 9, 10, 11, 12].into_iter().enumerate() {
            let patched = round % 3 == 1;
            let mut code = [0xb8, 0, 0, 0, 0, 0xc3];
            code[1..5].copy_from_slice(&value.to_le_bytes());
            guest.vm.memory().write(TARGET, &code).unwrap();
            let mut state = guest.vcpu.state().unwrap();
            state.regs.gpr[2] = patched.into();
            guest.vcpu.set_state(&state).unwrap();
            assert_eq!(guest.run(), Exit::Stopped);
            let expected = if patched { 5050 } else { 100 * u64::from(value) };
            assert_eq!(sum(guest), expected, "round {round}");
            if round == 3 {
                std::thread::sleep(std::time::Duration::from_millis(700));
            }
        }
    });
}

/// What a patched function does, with RAX in and out: two operations three times over.
fn model(code: &[u8], mut value: u64) -> u64 {
    for _ in 0..3 {
        let operand = i32::from_le_bytes(code[9..13].try_into().unwrap()) as i64 as u64;
        match code[8] {
            0x05 => value = value.wrapping_add(operand),
            _ => value ^= operand,
        }
        if code[13] == 0xc3 {
            return value;
        }
        value = value.rotate_left(code[16].into());
    }
    value
}

/// Functions with a loop, each in a page of its own that is written seldom enough to keep its
/// mark: of the blocks, one of which is the other's end, some instructions change each time.
#[test]
fn what_has_not_changed_of_a_block_stays() {
    const FUNCTIONS: u64 = 6;
    let (first, table) = (0x10_0000_u64, 0x18_0000_u64);
    // mov ecx, 3; nop; top: add rax, imm32; rol rax, 7; dec ecx; jnz top; ret
    let code = [
        0xb9, 3, 0, 0, 0, 0x90, 0x90, 0x48, 0x05, 1, 2, 3, 4, 0x48, 0xc1, 0xc0, 7, 0xff, 0xc9,
        0x75, 0xf2, 0xc3,
    ];
    // The operand, the operation, a return in the middle, and back with another count.
    let patches: [(usize, [u8; 4]); 5] = [
        (9, [9, 8, 7, 0x86]),
        (8, [0x35, 5, 6, 7]),
        (13, [0xc3, 0xc1, 0xc0, 7]),
        (13, [0x48, 0xc1, 0xc0, 9]),
        (14, [0xc1, 0xc0, 11, 0xff]),
    ];
    let place = |n: u64| first + 0x1000 * n + 64;
    let (mut patched, mut sum, mut writes) = (vec![code; FUNCTIONS as usize], 0, Vec::new());
    for round in 0..3 {
        for n in 0..FUNCTIONS {
            let (at, bytes) = patches[(round + n as usize) % patches.len()];
            patched[n as usize][at..at + 4].copy_from_slice(&bytes);
            writes.extend((place(n) + at as u64).to_le_bytes());
            writes.extend(u64::from(u32::from_le_bytes(bytes)).to_le_bytes());
        }
        for code in &patched {
            sum = model(code, sum);
        }
    }
    let build = |a: &mut CodeAssembler| {
        let mut labels = [a.create_label(), a.create_label(), a.create_label()];
        a.xor(eax, eax)?;
        a.mov(ebp, 3)?;
        a.mov(rsi, table)?;
        a.set_label(&mut labels[0])?;
        a.mov(ebx, FUNCTIONS as i32)?;
        a.set_label(&mut labels[1])?;
        a.mov(rdi, ptr(rsi))?;
        a.mov(edx, ptr(rsi + 8))?;
        a.mov(dword_ptr(rdi), edx)?;
        a.add(rsi, 16)?;
        a.dec(ebx)?;
        a.jnz(labels[1])?;
        a.mov(rdi, place(0))?;
        a.mov(ebx, FUNCTIONS as i32)?;
        a.set_label(&mut labels[2])?;
        a.call(rdi)?;
        a.add(rdi, 0x1000)?;
        a.dec(ebx)?;
        a.jnz(labels[2])?;
        a.dec(ebp)?;
        a.jnz(labels[0])?;
        a.hlt()
    };
    each(&long_mode(), build, |guest| {
        for n in 0..FUNCTIONS {
            guest.vm.memory().write(place(n), &code).unwrap();
        }
        guest.vm.memory().write(table, &writes).unwrap();
        assert_eq!(guest.run(), Exit::Idle);
        assert_eq!(guest.gpr()[0], sum);
    });
}

/// More functions than there is room for, which call each other in turn, so that links and
/// expected returns lead to what was evicted.
#[test]
fn what_was_evicted_is_made_anew() {
    const FUNCTIONS: u64 = 3000;
    let first = 0x10_0000;
    let mut functions = Vec::new();
    for n in 0..FUNCTIONS {
        let code = assemble(64, first + 32 * n, |a| {
            let mut done = a.create_label();
            a.add(rax, n as i32 + 1)?;
            a.rol(rax, 3)?;
            a.test(al, 1)?;
            a.jz(done)?;
            if n + 1 < FUNCTIONS && n % 3 != 0 {
                a.call(first + 32 * (n + 1))?;
            }
            a.set_label(&mut done)?;
            a.ret()
        });
        functions.extend(code);
        functions.resize(32 * (n as usize + 1), 0x90);
    }
    let build = |a: &mut CodeAssembler| {
        let (mut again, mut inner) = (a.create_label(), a.create_label());
        a.mov(ebx, 4)?;
        a.set_label(&mut again)?;
        a.mov(rsi, first)?;
        a.mov(ecx, FUNCTIONS as i32)?;
        a.set_label(&mut inner)?;
        a.call(rsi)?;
        a.add(rsi, 32)?;
        a.dec(ecx)?;
        a.jnz(inner)?;
        a.dec(ebx)?;
        a.jnz(again)?;
        a.hlt()
    };
    let results = std::cell::RefCell::new(Vec::new());
    each(&long_mode(), build, |guest| {
        guest.vm.memory().write(first, &functions).unwrap();
        assert_eq!(guest.run(), Exit::Idle);
        results.borrow_mut().push(guest.gpr()[0]);
    });
    let results = results.into_inner();
    assert!(results.iter().all(|r| *r == results[0]), "{results:x?}");
}
