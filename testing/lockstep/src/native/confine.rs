//! What the child process may still ask of the kernel once it runs cases: next to nothing.
//!
//! A case that reaches SYSCALL or INT 80H (by a jump into an immediate, say) ends the process.

use libc::{c_int, sock_filter};

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
/// AUDIT_ARCH_X86_64 of `linux/audit.h`.
const X86_64: u32 = 0xc000_003e;
/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

const fn load(offset: u32) -> sock_filter {
    sock_filter { code: LOAD, jt: 0, jf: 0, k: offset }
}

/// Skips `then` steps if the loaded value is `value`, else `otherwise`.
const fn compare(value: u32, then: u8, otherwise: u8) -> sock_filter {
    sock_filter { code: EQUAL, jt: then, jf: otherwise, k: value }
}

const fn answer(value: u32) -> sock_filter {
    sock_filter { code: RETURN, jt: 0, jf: 0, k: value }
}

/// Allows reading from `from`, writing to `to`, returning from signals, exiting.
pub fn filter(from: c_int, to: c_int) -> [sock_filter; 13] {
    [
        load(ARCH),
        compare(X86_64, 0, 9),
        load(NUMBER),
        compare(libc::SYS_rt_sigreturn as u32, 8, 0),
        compare(libc::SYS_exit_group as u32, 7, 0),
        compare(libc::SYS_read as u32, 0, 2),
        load(FIRST_ARGUMENT),
        compare(from as u32, 4, 3),
        compare(libc::SYS_write as u32, 0, 2),
        load(FIRST_ARGUMENT),
        compare(to as u32, 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        answer(libc::SECCOMP_RET_ALLOW),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter answers to a system call.
    fn judge(arch: u32, number: u32, first: u32) -> u32 {
        let program = filter(5, 6);
        let (mut at, mut value) = (0, 0);
        loop {
            let step = program[at];
            at += 1;
            match step.code {
                LOAD => {
                    value = match step.k {
                        NUMBER => number,
                        ARCH => arch,
                        _ => first,
                    }
                }
                EQUAL => at += usize::from(if value == step.k { step.jt } else { step.jf }),
                _ => return step.k,
            }
        }
    }

    #[test]
    fn only_the_two_pipes_signal_returns_and_exit_are_allowed() {
        let allowed: Vec<(u32, u32)> = (0..460)
            .flat_map(|n| [(n, 0), (n, 5), (n, 6)])
            .filter(|&(n, first)| judge(X86_64, n, first) == libc::SECCOMP_RET_ALLOW)
            .collect();
        let mut expected = vec![(libc::SYS_read as u32, 5), (libc::SYS_write as u32, 6)];
        for n in [libc::SYS_rt_sigreturn as u32, libc::SYS_exit_group as u32] {
            expected.extend([(n, 0), (n, 5), (n, 6)]);
        }
        assert_eq!(allowed, expected);
        // AUDIT_ARCH_I386: INT 80H.
        assert_eq!(judge(0x4000_0003, 0, 5), libc::SECCOMP_RET_KILL_PROCESS);
    }
}
