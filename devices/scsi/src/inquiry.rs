//! What a unit says of itself (SPC-4, 6.4.2) and its vital product data (SPC-4, 7.8).

/// T10's form of a vendor's name.
const VENDOR: &[u8; 8] = b"SARANG  ";
const REVISION: &[u8; 4] = b"1.0 ";

/// Pages of vital product data that every unit may have.
pub(crate) mod page {
    pub const SUPPORTED: u8 = 0x00;
    pub const SERIAL: u8 = 0x80;
    pub const IDENTIFICATION: u8 = 0x83;
    pub const BLOCK_LIMITS: u8 = 0xb0;
    pub const CHARACTERISTICS: u8 = 0xb1;
    pub const PROVISIONING: u8 = 0xb2;
}

/// By what hosts tell a unit from others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// ASCII; may be empty.
    pub serial: String,
    /// Where the unit is, by which it is told from others of its adapter if it has no serial number.
    pub place: String,
}

/// A product's name with blanks.
pub(crate) type Product = [u8; 16];

/// Standard data: `kind` is the peripheral device type, `removable` the RMB bit.
pub(crate) fn standard(kind: u8, removable: bool, product: &Product) -> Vec<u8> {
    // SPC-3; format 2; 31 bytes follow; a disk's commands are queued.
    let queued = if kind == 0 { 0x02 } else { 0 };
    let mut data = vec![kind, u8::from(removable) << 7, 0x05, 0x02, 31, 0, 0, queued];
    data.extend(VENDOR);
    data.extend(product);
    data.extend(REVISION);
    data
}

/// What answers where there is no unit (SPC-4, 6.4.2, peripheral qualifier 011b).
pub(crate) fn nothing() -> Vec<u8> {
    standard(0x7f, false, b"                ")
}

/// What the well-known unit for REPORT LUNS is.
pub(crate) fn well_known() -> Vec<u8> {
    standard(0x1e, false, b"REPORT LUNS     ")
}

/// A page with its header.
pub(crate) fn with_header(kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
    let mut data = vec![kind, code];
    data.extend(u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
    data.extend(body);
    data
}

impl Identity {
    /// The pages that are the same for every kind of unit; `more` are those that it has besides.
    pub(crate) fn page(
        &self,
        kind: u8,
        code: u8,
        product: &Product,
        more: &[u8],
    ) -> Option<Vec<u8>> {
        let body = match code {
            page::SUPPORTED => {
                let serial: &[u8] = if self.serial.is_empty() { &[] } else { &[page::SERIAL] };
                [&[page::SUPPORTED], serial, &[page::IDENTIFICATION], more].concat()
            }
            page::SERIAL if !self.serial.is_empty() => self.serial.clone().into_bytes(),
            page::IDENTIFICATION => self.designator(product),
            _ => return None,
        };
        Some(with_header(kind, code, &body))
    }

    /// One designator of the unit: T10 vendor ID, in ASCII (SPC-4, 7.8.6.3).
    fn designator(&self, product: &Product) -> Vec<u8> {
        let name = if self.serial.is_empty() { &self.place } else { &self.serial };
        let mut id = VENDOR.to_vec();
        id.extend(product);
        id.extend(name.bytes().take(64));
        let mut body = vec![2, 1, 0, id.len() as u8];
        body.extend(id);
        body
    }
}
