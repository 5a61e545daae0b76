//! Mode pages (SPC-4, 7.5; SBC-3, 6.5): error recovery, caching, control. The host may switch the
//! write cache off; nothing else of them changes.

use super::{DiskState, DiskUnit};
use crate::{CDB, Outcome, Sense, number};

const RECOVERY: u8 = 0x01;
const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0a;
const ALL: u8 = 0x3f;
/// Subpages: all of them.
const ALL_SUBPAGES: u8 = 0xff;
/// Write cache enable, in byte 2 of the caching page.
const WCE: u8 = 4;
/// Page control: which values.
const CHANGEABLE: u8 = 1;
const DEFAULT: u8 = 2;
const SAVED: u8 = 3;

/// A page, of current values.
fn page(code: u8, write_cache: bool) -> Option<Vec<u8>> {
    let mut page = match code {
        RECOVERY => vec![RECOVERY, 10],
        CACHING => vec![CACHING, 18, if write_cache { WCE } else { 0 }],
        // Unrestricted reordering.
        CONTROL => vec![CONTROL, 10, 0, 0x10],
        _ => return None,
    };
    let len = usize::from(page.get(1).copied().unwrap_or(0)) + 2;
    page.resize(len, 0);
    Some(page)
}

/// A page in which each bit says whether it can be changed.
fn changeable(code: u8) -> Option<Vec<u8>> {
    let mut page = page(code, true)?;
    let kept = if code == CACHING { WCE } else { 0 };
    for (at, byte) in page.iter_mut().enumerate().skip(2) {
        *byte = if at == 2 { kept } else { 0 };
    }
    Some(page)
}

/// The command of a selection, of which the parameters are to come (SPC-4, 6.9).
pub(super) fn select(cdb: &[u8; CDB], len: u64) -> Result<Outcome, Sense> {
    // Pages by the standard's format; they are not kept over a loss of power.
    if cdb[1] & 0x11 != 0x10 {
        return Err(Sense::BAD_FIELD);
    }
    Ok(if len == 0 { Outcome::Good } else { Outcome::Parameters(len as usize) })
}

impl DiskUnit {
    pub(super) fn mode_sense(
        &self,
        cdb: &[u8; CDB],
        long: bool,
        state: &DiskState,
    ) -> Result<Vec<u8>, Sense> {
        let (control, code, subpage) = (cdb[2] >> 6, cdb[2] & 0x3f, cdb[3]);
        let of = |code: u8| match control {
            CHANGEABLE => changeable(code),
            DEFAULT => page(code, true),
            _ => page(code, state.write_cache),
        };
        if control == SAVED {
            return Err(Sense::NOT_SAVED);
        }
        let body = match (code, subpage) {
            (ALL, 0 | ALL_SUBPAGES) => {
                [RECOVERY, CACHING, CONTROL].into_iter().filter_map(of).flatten().collect()
            }
            (code, 0 | ALL_SUBPAGES) => of(code).ok_or(Sense::BAD_FIELD)?,
            _ => return Err(Sense::BAD_FIELD),
        };
        // Write protection, and that DPO and FUA are known (SBC-3, 6.5.1). No block descriptor.
        let device = u8::from(self.shape.read_only) << 7 | 0x10;
        let mut data = if long {
            let [high, low] = (body.len() as u16 + 6).to_be_bytes();
            vec![high, low, 0, device, 0, 0, 0, 0]
        } else {
            vec![body.len() as u8 + 3, 0, device, 0]
        };
        data.extend(body);
        Ok(data)
    }

    /// The list of a selection: nothing of it is taken before all of it is sound.
    pub(super) fn mode_select(
        &self,
        data: &[u8],
        long: bool,
        state: &mut DiskState,
    ) -> Result<Outcome, Sense> {
        let (header, descriptors) =
            if long { (8, number(data, 6, 2)) } else { (4, number(data, 3, 1)) };
        let mut rest = data.get(header + descriptors as usize..).ok_or(Sense::PARAMETER_LENGTH)?;
        let mut write_cache = state.write_cache;
        while let [code, len, ..] = *rest {
            let page_len = usize::from(len) + 2;
            let given = rest.get(..page_len).ok_or(Sense::PARAMETER_LENGTH)?;
            // PS means something in the other direction only.
            let code = code & 0x7f;
            let known = page(code, false).ok_or(Sense::BAD_PARAMETER)?;
            let may = changeable(code).unwrap_or_default();
            let same = |at: usize| {
                let byte = |page: &[u8]| page.get(at).copied().unwrap_or(0);
                (byte(given) ^ byte(&known)) & !byte(&may) == 0
            };
            if known.len() != given.len() || !(2..given.len()).all(same) {
                return Err(Sense::BAD_PARAMETER);
            }
            if code == CACHING {
                write_cache = given.get(2).is_some_and(|byte| byte & WCE != 0);
            }
            rest = rest.get(page_len..).unwrap_or_default();
        }
        if !rest.is_empty() {
            return Err(Sense::PARAMETER_LENGTH);
        }
        let flush = state.write_cache && !write_cache;
        state.write_cache = write_cache;
        // What is in the cache goes where it is to be from now on.
        Ok(if flush { Outcome::Flush } else { Outcome::Good })
    }
}
