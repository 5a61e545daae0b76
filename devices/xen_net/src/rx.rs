//! What the domain gets: a frame in the pages that it has offered.

use guest_mem::PAGE;
use std::sync::Arc;
use xen_abi::netif::{Extra, RxRequest, RxResponse, rx, status};
use xen_front::{Access, Domain, Grant, Overrun, Ring};
use zerocopy::IntoBytes;

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
    let slots = pages + usize::from(frame.cut.is_some());
    if ring.lacks(u32::try_from(slots).unwrap_or(u32::MAX))? {
        return Ok(Put::NoRoom);
    }
    let mut parts = Parts { now: &[], rest: frame.parts };
    let (mut left, mut done) = (frame.len, Put::Done);
    for page in 0..pages {
        let request = request(ring);
        let len = left.min(PAGE as usize);
        left -= len;
        // A page is a length that fits.
        let mut response = RxResponse { id: request.id, status: len as i16, ..Default::default() };
        if fill(domain, request, &mut parts, len).is_none() {
            (response.status, done) = (status::ERROR, Put::Lost);
        }
        if left > 0 {
            response.flags |= rx::MORE_DATA;
        }
        let cut = frame.cut.filter(|_| page == 0);
        if page == 0 {
            response.flags |= frame.flags | if cut.is_some() { rx::EXTRA_INFO } else { 0 };
        }
        ring.respond(response.as_bytes());
        if let Some(cut) = cut {
            // The page of its request is not used; the driver offers it again.
            ring.take(&mut []);
            ring.respond(cut.as_bytes());
        }
    }
    Ok(done)
}

/// What is left of a frame in parts.
struct Parts<'a> {
    now: &'a [u8],
    rest: &'a [&'a [u8]],
}

impl<'a> Parts<'a> {
    /// Up to so many bytes of it that are in one part.
    fn next(&mut self, most: usize) -> Option<&'a [u8]> {
        while self.now.is_empty() {
            let (first, rest) = self.rest.split_first()?;
            (self.now, self.rest) = (first, rest);
        }
        let (here, later) = self.now.split_at(most.min(self.now.len()));
        self.now = later;
        Some(here)
    }
}

/// Puts the next bytes of a frame into a page.
fn fill(
    domain: &Arc<dyn Domain>,
    request: RxRequest,
    parts: &mut Parts<'_>,
    len: usize,
) -> Option<()> {
    let page = Grant::map(domain, request.grant, Access::Write).ok()?;
    let mut at = 0;
    while at < len {
        let bytes = parts.next(len - at)?;
        page.write(at, bytes).ok()?;
        at += bytes.len();
    }
    Some(())
}
