//! Ids of requests that came without one.
//!
//! Before: [`super::headers`], which knows that one is missing. After: the `x-request-id` header, and the record, which
//! share the bytes. They are made by the batch, one allocation each: most of what an id would cost on its own.

use std::cell::RefCell;

use bytes::Bytes;
use http::HeaderValue;

/// Of an id in text, in bytes.
const LENGTH: usize = 36;

/// Ids made at once. A record that waits keeps its whole batch in memory: so it should not be large.
const BATCH: usize = 16;

/// A worker's ids.
#[derive(Debug, Default)]
pub struct RequestIds(RefCell<Bytes>);

impl RequestIds {
    /// An id that no other request has; `random` tells random numbers.
    pub fn next(&self, random: impl Fn() -> u64) -> HeaderValue {
        let mut ready = self.0.borrow_mut();
        if ready.is_empty() {
            let mut batch = Vec::with_capacity(BATCH * LENGTH);
            (0..BATCH).for_each(|_| batch.extend_from_slice(&uuid(random(), random())));
            *ready = batch.into();
        }
        let id = ready.split_to(LENGTH);
        HeaderValue::from_maybe_shared(id).unwrap_or_else(|_| HeaderValue::from_static(""))
    }
}

/// A UUID of version 4 (RFC 9562 section 5.4).
fn uuid(high: u64, low: u64) -> [u8; LENGTH] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    /// Where each byte's two digits stand: dashes follow the bytes 4, 6, 8 and 10.
    const PLACES: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
    let bits = (u128::from(high) << 64) | u128::from(low);
    let bits = (bits & !(0xf << 76)) | (0x4 << 76);
    let bits = (bits & !(0x3 << 62)) | (0x2 << 62);
    let mut text = [b'-'; LENGTH];
    for (place, byte) in PLACES.into_iter().zip(bits.to_be_bytes()) {
        text[place] = HEX[usize::from(byte >> 4)];
        text[place + 1] = HEX[usize::from(byte & 0xf)];
    }
    text
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_request_id_is_a_uuid_of_version_4() {
        for (high, low, expected) in [
            (0, 0, "00000000-0000-4000-8000-000000000000"),
            (u64::MAX, u64::MAX, "ffffffff-ffff-4fff-bfff-ffffffffffff"),
            (0x0123_4567_89ab_cdef, 0x0123_4567_89ab_cdef, "01234567-89ab-4def-8123-456789abcdef"),
        ] {
            assert_eq!(uuid(high, low), *expected.as_bytes());
        }
    }

    #[test]
    fn each_request_has_its_own_over_several_batches() {
        let (ids, number) = (RequestIds::default(), Cell::new(0));
        let next = || ids.next(|| number.replace(number.get() + 1));
        let all: HashSet<_> = (0..3 * BATCH).map(|_| next()).collect();
        assert_eq!(all.len(), 3 * BATCH);
        assert!(all.iter().all(|id| id.len() == LENGTH));
    }
}
