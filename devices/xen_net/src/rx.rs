//! What the domain gets: a frame in the pages that it has offered.

use guest_mem::PAGE;
use std::sync::Arc;
use xen_abi::netif::{Extra, RxRequest, RxResponse, rx, status};
use xen_front::{Domain, Overrun, Part, Ring};
use zerocopy::IntoBytes;

/// Of the largest frame: 64 KiB and what stands before that.
const PAGES_MAX: usize = 20;
/// What is tried to be written to the pages of a frame that is lost, to know which are the cause.
static ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];

/// A frame as the domain gets it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'a> {
    /// Of its first response: what is known of its checksum.
    pub flags: u16,
    pub cut: Option<Extra>,
    pub parts: &'a [&'a [u8]],
    pub len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    Done,
    /// The domain notifies when there is.
    NoRoom,
    /// A page cannot be written: the domain is told, and the frame is lost.
    Lost,
}

/// Pages for so many bytes.
pub(crate) fn pages(len: usize) -> usize {
    len.div_ceil(PAGE as usize)
}

fn request(ring: &mut Ring) -> RxRequest {
    let mut request = RxRequest::default();
    ring.take(request.as_mut_bytes());
    request
}

pub(crate) fn put(
    ring: &mut Ring,
    domain: &Arc<dyn Domain>,
    frame: &Frame<'_>,
) -> Result<Put, Overrun> {
    let pages = pages(frame.len);
    if pages > PAGES_MAX {
        return Ok(Put::Lost);
    }
    let slots = pages + usize::from(frame.cut.is_some());
    if ring.lacks(u32::try_from(slots).unwrap_or(u32::MAX))? {
        return Ok(Put::NoRoom);
    }
    let mut ids = [0; PAGES_MAX];
    let mut parts = [Part::default(); PAGES_MAX];
    let mut left = frame.len;
    for (page, (id, part)) in ids.iter_mut().zip(&mut parts).take(pages).enumerate() {
        let request = request(ring);
        let len = left.min(PAGE as usize);
        left -= len;
        (*id, *part) = (request.id, Part { grant: request.grant, offset: 0, len });
        if page == 0 && frame.cut.is_some() {
            // The page of this one is not used; the driver offers it again.
            ring.take(&mut []);
        }
    }
    let parts = parts.get(..pages).unwrap_or_default();
    let mut written = [true; PAGES_MAX];
    let mut done = Put::Done;
    if domain.copy_to(parts, frame.parts).is_err() {
        done = Put::Lost;
        for (part, written) in parts.iter().zip(&mut written) {
            *written = domain.copy_to(&[*part], &[&ZEROS]).is_ok();
        }
    }
    for (page, ((part, id), written)) in parts.iter().zip(ids).zip(written).enumerate() {
        // A page is a length that fits.
        let status = if written { part.len as i16 } else { status::ERROR };
        let mut response = RxResponse { id, status, ..Default::default() };
        if page + 1 < pages {
            response.flags |= rx::MORE_DATA;
        }
        let cut = frame.cut.filter(|_| page == 0);
        if page == 0 {
            response.flags |= frame.flags | if cut.is_some() { rx::EXTRA_INFO } else { 0 };
        }
        ring.respond(response.as_bytes());
        if let Some(cut) = cut {
            ring.respond(cut.as_bytes());
        }
    }
    Ok(done)
}
