//! Header maps that have served: the next heads are put into them, which saves their allocations.
//!
//! Before: whoever has read or written a head to its end. After: the codecs, which parse the next one. Each thread has
//! its own.

use std::cell::RefCell;

use http::HeaderMap;

/// So many maps are kept: what is in flight at once, as a rule.
const MAX_MAPS: usize = 64;
/// A map with room for fewer fields is not worth keeping: it would have to grow.
const MIN_FIELDS: usize = 12;
/// A map with room for more fields is not kept. A field takes about a hundred bytes.
const MAX_FIELDS: usize = 64;

thread_local! {
    static SPARE: RefCell<Vec<HeaderMap>> = const { RefCell::new(Vec::new()) };
}

/// An empty map with room for so many fields.
pub fn headers(fields: usize) -> HeaderMap {
    if fields <= MIN_FIELDS
        && let Some(map) = SPARE.with_borrow_mut(Vec::pop)
    {
        return map;
    }
    HeaderMap::with_capacity(fields.max(MIN_FIELDS))
}

/// `map` is not needed any longer.
pub fn keep(mut map: HeaderMap) {
    if (MIN_FIELDS..=MAX_FIELDS).contains(&map.capacity()) {
        map.clear();
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < MAX_MAPS {
                spare.push(map);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_map_comes_back_empty_and_a_large_one_not_at_all() {
        let mut small = headers(4);
        small.append("x-a", HeaderValue::from_static("1"));
        small.append("x-a", HeaderValue::from_static("2"));
        let room = small.capacity();
        keep(small);
        let again = headers(1);
        assert_eq!((again.len(), again.capacity()), (0, room));
        for useless in [1, 10 * MAX_FIELDS] {
            keep(HeaderMap::with_capacity(useless));
            assert!((MIN_FIELDS..=MAX_FIELDS).contains(&headers(1).capacity()), "{useless}");
        }
        assert!(headers(3 * MIN_FIELDS).capacity() >= 3 * MIN_FIELDS);
    }
}
