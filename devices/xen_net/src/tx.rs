//! What the domain sends: the slots of a frame, and what is answered to them.

use crate::{headers::ETHERNET, offload};
use nic::Taken;
use std::sync::Arc;
use xen_abi::netif::{Extra, SLOTS, TxRequest, TxResponse, extra, status, tx};
use xen_front::{Domain, Overrun, Part, Ring};
use zerocopy::{FromBytes, IntoBytes};

/// Slots with data with which a frame is still dropped, and not taken for a broken ring: as many as
/// Linux's back end bears.
const SLOTS_MAX: usize = 20;

/// Why a ring is not served any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    Overrun(#[from] Overrun),
    #[error("a frame is not all in the ring")]
    Incomplete,
    #[error("a frame has too many slots")]
    Slots,
    #[error("a slot crosses the end of its page")]
    Crossing,
    #[error("what is said besides a frame is of no kind")]
    Extra,
}

/// The slots of a frame.
#[derive(Debug)]
struct Chain {
    requests: [TxRequest; SLOTS_MAX],
    count: usize,
    extras: usize,
    cut: Option<Extra>,
    /// It can be a frame.
    sound: bool,
}

/// The next frame, or `None` inside if what was next is none; it has been answered. `None` if there
/// is nothing: the domain notifies when there is.
pub(crate) fn next(
    ring: &mut Ring,
    domain: &Arc<dyn Domain>,
    buffer: &mut [u8],
) -> Result<Option<Option<Taken>>, Fault> {
    if ring.is_idle()? {
        return Ok(None);
    }
    let chain = Chain::take(ring)?;
    let taken = chain.read(domain, buffer);
    chain.answer(ring, if taken.is_some() { status::OKAY } else { status::ERROR });
    Ok(Some(taken))
}

fn slot<T: FromBytes + IntoBytes>(ring: &mut Ring, left: &mut u32) -> Result<T, Fault> {
    *left = left.checked_sub(1).ok_or(Fault::Incomplete)?;
    let mut value = T::new_zeroed();
    ring.take(value.as_mut_bytes());
    Ok(value)
}

impl Chain {
    fn take(ring: &mut Ring) -> Result<Self, Fault> {
        let mut left = ring.waiting()?;
        let first: TxRequest = slot(ring, &mut left)?;
        let mut requests = [TxRequest::default(); SLOTS_MAX];
        let (mut extras, mut cut) = (0, None);
        let mut sound = usize::from(first.size) >= ETHERNET;
        let mut more = first.flags & tx::EXTRA_INFO != 0;
        while more {
            let said: Extra = slot(ring, &mut left)?;
            extras += 1;
            match said.kind {
                0 | extra::END.. => return Err(Fault::Extra),
                extra::GSO => cut = Some(said),
                // No frame, but a wish that was not offered.
                extra::MULTICAST_ADD | extra::MULTICAST_DELETE => sound = false,
                _ => {}
            }
            more = said.flags & extra::MORE != 0;
        }
        let mut count = 1;
        // Of the whole frame, of which the first slot has what the others have not.
        let mut rest = first.size;
        let mut more = first.flags & tx::MORE_DATA != 0;
        while more {
            let request: TxRequest = slot(ring, &mut left)?;
            *requests.get_mut(count).ok_or(Fault::Slots)? = request;
            count += 1;
            within_page(&request)?;
            match rest.checked_sub(request.size) {
                Some(less) => rest = less,
                None => sound = false,
            }
            more = request.flags & tx::MORE_DATA != 0;
        }
        sound &= count <= SLOTS;
        let first = TxRequest { size: rest, ..first };
        if sound {
            within_page(&first)?;
        }
        if let Some(place) = requests.first_mut() {
            *place = first;
        }
        Ok(Self { requests, count, extras, cut, sound })
    }

    fn requests(&self) -> &[TxRequest] {
        self.requests.get(..self.count).unwrap_or_default()
    }

    /// Copies the frame.
    fn read(&self, domain: &Arc<dyn Domain>, buffer: &mut [u8]) -> Option<Taken> {
        if !self.sound {
            return None;
        }
        let mut parts = [Part::default(); SLOTS_MAX];
        let (mut count, mut len) = (0, 0);
        for request in self.requests().iter().filter(|request| request.size > 0) {
            let (offset, size) = (request.offset.into(), usize::from(request.size));
            *parts.get_mut(count)? = Part { grant: request.grant, offset, len: size };
            (count, len) = (count + 1, len + size);
        }
        domain.copy_from(parts.get(..count)?, buffer.get_mut(..len)?).ok()?;
        let flags = self.requests.first().map_or(0, |first| first.flags);
        let meta = offload::of_domain(buffer.get_mut(..len)?, flags, self.cut)?;
        Some(Taken { len, meta })
    }

    /// Each slot has its answer.
    fn answer(&self, ring: &mut Ring, status: i16) {
        for (index, request) in self.requests().iter().enumerate() {
            ring.respond(TxResponse { id: request.id, status }.as_bytes());
            let extras = if index == 0 { self.extras } else { 0 };
            for _ in 0..extras {
                ring.respond(TxResponse { id: request.id, status: status::NULL }.as_bytes());
            }
        }
    }
}

fn within_page(request: &TxRequest) -> Result<(), Fault> {
    let end = usize::from(request.offset) + usize::from(request.size);
    if end > guest_mem::PAGE as usize { Err(Fault::Crossing) } else { Ok(()) }
}
