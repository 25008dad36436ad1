//! Answers for as long as they hold, bounded in number and in bytes; those not asked for the longest go first.
//!
//! Before: [`super::serve`]. After: nothing. The time is handed in.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::wire::{Question, Response};

/// Memory of an entry besides its name and its bytes, roughly: two map entries and the reference counts.
const ENTRY_BYTES: usize = 200;

/// Whose answers they are. Resolvers may answer differently, and the same address may be another resolver in another
/// network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The configured resolvers, for everybody; their number changes when they do.
    Upstreams(u64),
    /// The resolver that was asked, from the place with this id.
    Asked(u64, IpAddr),
}

/// A question to somebody.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// To whom.
    pub source: Source,
    /// What.
    pub question: Question,
}

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// Answers; 0 keeps none.
    pub entries: usize,
    /// Memory, roughly.
    pub bytes: usize,
}

/// The answers.
#[derive(Debug, Default)]
pub struct Cache {
    entries: HashMap<Rc<Key>, Entry>,
    /// When each was last asked for, by a number that only grows.
    used: BTreeMap<u64, Rc<Key>>,
    next_use: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    response: Rc<Response>,
    stored_at: Instant,
    keep: Duration,
    used: u64,
}

impl Cache {
    /// The answer and its age, if there is one that still holds.
    pub fn find(&mut self, key: &Key, now: Instant) -> Option<(Rc<Response>, Duration)> {
        let next = self.next_use;
        let entry = self.entries.get_mut(key)?;
        let age = now.saturating_duration_since(entry.stored_at);
        if age >= entry.keep {
            self.remove(key);
            return None;
        }
        let found = (entry.response.clone(), age);
        if let Some(key) = self.used.remove(&std::mem::replace(&mut entry.used, next)) {
            self.used.insert(next, key);
        }
        self.next_use += 1;
        Some(found)
    }

    /// Keeps an answer, if it may be kept and fits.
    pub fn store(&mut self, key: Key, response: Rc<Response>, now: Instant, limits: CacheLimits) {
        let Some(keep) = response.keep else { return };
        let size = size(&key, &response);
        if limits.entries == 0 || size > limits.bytes {
            return;
        }
        self.remove(&key);
        self.shrink(CacheLimits { entries: limits.entries - 1, bytes: limits.bytes - size });
        let (key, used) = (Rc::new(key), self.next_use);
        self.next_use += 1;
        self.bytes += size;
        self.used.insert(used, key.clone());
        self.entries.insert(key, Entry { response, stored_at: now, keep, used });
    }

    /// Drops what does not fit any more.
    pub fn shrink(&mut self, limits: CacheLimits) {
        while self.entries.len() > limits.entries || self.bytes > limits.bytes {
            let Some(oldest) = self.used.first_key_value().map(|(_, key)| key.clone()) else { return };
            self.remove(&oldest);
        }
    }

    /// Forgets the answers of one place, or all.
    pub fn forget(&mut self, which: impl Fn(&Source) -> bool) {
        let keys: Vec<_> = self.entries.keys().filter(|key| which(&key.source)).cloned().collect();
        for key in keys {
            self.remove(&key);
        }
    }

    /// How many answers there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.used.remove(&entry.used);
            self.bytes -= size(key, &entry.response);
        }
    }
}

fn size(key: &Key, response: &Response) -> usize {
    ENTRY_BYTES + key.question.len() + response.len()
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
