//! Numbers as text. core's own way takes instructions of SSE, which a KVM that is software does not
//! know: what guests that it is to run print goes through here.

use core::fmt;

/// Decimal.
pub struct Dec(pub u64);

/// Hexadecimal, with 16 digits.
pub struct Hex(pub u64);

fn write(f: &mut fmt::Formatter<'_>, digits: &[u8]) -> fmt::Result {
    f.write_str(core::str::from_utf8(digits).unwrap_or("?"))
}

impl fmt::Display for Dec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [b'0'; 20];
        let (mut rest, mut at) = (self.0, digits.len());
        while rest > 0 || at == digits.len() {
            at -= 1;
            digits[at] += (rest % 10) as u8;
            rest /= 10;
        }
        write(f, &digits[at..])
    }
}

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digit = |place: usize| b"0123456789abcdef"[(self.0 >> (60 - place * 4) & 15) as usize];
        write(f, &core::array::from_fn::<u8, 16, _>(digit))
    }
}

/// Ends the guest if what was found is not what was wanted. `number` tells which one it is of several.
pub fn same(what: &str, number: impl Into<u64>, found: impl Into<u64>, wanted: impl Into<u64>) {
    let (found, wanted) = (found.into(), wanted.into());
    if found != wanted {
        let (number, found, wanted) = (Dec(number.into()), Hex(found), Hex(wanted));
        panic!("{what} {number}: {found} instead of {wanted}");
    }
}
