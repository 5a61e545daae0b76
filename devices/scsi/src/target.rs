//! What a target answers itself: the list of its units, and for addresses where there is none.

use crate::{CDB, Outcome, Sense, inquiry, number};

const TEST_UNIT_READY: u8 = 0x00;
const REQUEST_SENSE: u8 = 0x03;
const INQUIRY: u8 = 0x12;
pub const REPORT_LUNS: u8 = 0xa0;

/// Answers INQUIRY and REQUEST SENSE for what is no real unit; `None` for other commands.
fn describe(cdb: &[u8; CDB], data: Vec<u8>, sense: Sense) -> Option<Outcome> {
    let (data, allowed) = match cdb[0] {
        INQUIRY if cdb[1] & 1 == 0 => (data, number(cdb, 3, 2)),
        REQUEST_SENSE => (sense.fixed().to_vec(), number(cdb, 4, 1)),
        _ => return None,
    };
    Some(cut(data, allowed))
}

fn cut(mut data: Vec<u8>, allowed: u64) -> Outcome {
    data.truncate(usize::try_from(allowed).unwrap_or(usize::MAX));
    Outcome::Data(data)
}

/// At an address where the target has no unit (SPC-4, 6.4.2; SAM-5, 5.11).
pub fn absent(cdb: &[u8; CDB]) -> Outcome {
    let answer = describe(cdb, inquiry::nothing(), Sense::NO_SUCH_UNIT);
    answer.unwrap_or(Outcome::Failed(Sense::NO_SUCH_UNIT))
}

/// At the well-known logical unit that lists all others (SPC-4, 8.2).
pub fn well_known(cdb: &[u8; CDB], luns: impl Iterator<Item = [u8; 8]>) -> Outcome {
    match cdb[0] {
        REPORT_LUNS => report_luns(cdb, luns),
        TEST_UNIT_READY => Outcome::Good,
        INQUIRY if cdb[1] & 1 != 0 => Outcome::Failed(Sense::BAD_FIELD),
        _ => {
            let answer = describe(cdb, inquiry::well_known(), Sense::NONE);
            answer.unwrap_or(Outcome::Failed(Sense::NO_SUCH_COMMAND))
        }
    }
}

/// These units, as the adapter names them (SPC-4, 6.33).
pub fn report_luns(cdb: &[u8; CDB], luns: impl Iterator<Item = [u8; 8]>) -> Outcome {
    let list: Vec<u8> = match cdb[2] {
        0 | 2 => luns.flatten().collect(),
        // Well-known units of a target: there are none.
        1 => Vec::new(),
        _ => return Outcome::Failed(Sense::BAD_FIELD),
    };
    let mut data = u32::try_from(list.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    data.extend([0; 4]);
    data.extend(list);
    cut(data, number(cdb, 6, 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cdb(bytes: &[u8]) -> [u8; CDB] {
        std::array::from_fn(|at| bytes.get(at).copied().unwrap_or(0))
    }

    fn data(outcome: Outcome) -> Vec<u8> {
        match outcome {
            Outcome::Data(data) => data,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn where_there_is_no_unit() {
        assert_eq!(data(absent(&cdb(&[0x12, 0, 0, 0, 36])))[0], 0x7f);
        assert_eq!(data(absent(&cdb(&[0x12, 0, 0, 0, 5]))).len(), 5);
        assert_eq!(data(absent(&cdb(&[3, 0, 0, 0, 18])))[12], 0x25);
        for other in [&[0][..], &[0x12, 1, 0x80, 0, 36], &[0xa0]] {
            assert_eq!(absent(&cdb(other)), Outcome::Failed(Sense::NO_SUCH_UNIT));
        }
    }

    #[test]
    fn the_unit_that_lists_units() {
        let ask = |bytes: &[u8]| well_known(&cdb(bytes), [[1; 8], [2; 8]].into_iter());
        assert_eq!(data(ask(&[0x12, 0, 0, 0, 36]))[0], 0x1e);
        assert_eq!(&data(ask(&[0x12, 0, 0, 0, 36]))[8..], b"SARANG  REPORT LUNS     1.0 ");
        assert_eq!(data(ask(&[3, 0, 0, 0, 18]))[2], 0);
        assert_eq!(ask(&[0]), Outcome::Good);
        assert_eq!(ask(&[0x12, 1]), Outcome::Failed(Sense::BAD_FIELD));
        assert_eq!(ask(&[0x28]), Outcome::Failed(Sense::NO_SUCH_COMMAND));
        let list = |select: u8, allowed: u8| ask(&[0xa0, 0, select, 0, 0, 0, 0, 0, 0, allowed]);
        assert_eq!(data(list(0, 255)), [&[0, 0, 0, 16, 0, 0, 0, 0][..], &[1; 8], &[2; 8]].concat());
        assert_eq!(data(list(2, 12)).len(), 12);
        assert_eq!(data(list(1, 255)), [0; 8]);
        assert_eq!(list(3, 255), Outcome::Failed(Sense::BAD_FIELD));
    }
}
