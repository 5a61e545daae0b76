//! Finding out that an undefined instruction was SYSCALL.

use x86_defs::MAX_INSTRUCTION_LEN;

/// The length of the SYSCALL that these bytes begin with, if they do. Prefixes mean nothing to it,
/// but LOCK, with which it is undefined (SDM volume 2, SYSCALL).
pub(super) fn length(bytes: &[u8], long: bool) -> Option<usize> {
    let legacy = |byte: u8| {
        matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x66 | 0x67 | 0xf2 | 0xf3)
    };
    let prefixes = bytes.iter().take_while(|byte| legacy(**byte)).count();
    let rest = bytes.get(prefixes..)?;
    // In code of 64 bits, the last prefix may be REX.
    let rex = usize::from(long && rest.first().is_some_and(|byte| byte & 0xf0 == 0x40));
    let len = prefixes + rex + 2;
    (rest.get(rex..rex + 2)? == [0x0f, 0x05] && len <= MAX_INSTRUCTION_LEN).then_some(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syscall_is_found_behind_its_prefixes() {
        assert_eq!(length(&[0x0f, 0x05, 0x90], true), Some(2));
        assert_eq!(length(&[0x48, 0x0f, 0x05], true), Some(3));
        assert_eq!(length(&[0x66, 0xf2, 0x41, 0x0f, 0x05], true), Some(5));
        assert_eq!(length(&[0x0f, 0x05], false), Some(2));
        let longest = [[0x66; 13].as_slice(), &[0x0f, 0x05]].concat();
        assert_eq!(length(&longest, true), Some(15));
        assert_eq!(length(&[&[0x66], longest.as_slice()].concat(), true), None);
        // DEC EAX there; LOCK; REX before another prefix; UD2; cut off.
        for (bytes, long) in [
            (&[0x48, 0x0f, 0x05][..], false),
            (&[0xf0, 0x0f, 0x05], true),
            (&[0x48, 0x66, 0x0f, 0x05], true),
            (&[0x0f, 0x0b], true),
            (&[0x0f], true),
            (&[], true),
        ] {
            assert_eq!(length(bytes, long), None, "{bytes:x?}");
        }
    }
}
