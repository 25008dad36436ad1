//! The tables of what the kernel dispatches by itself, and the ring in which it tells of those connections.
//!
//! Before it: [`crate::dispatch`], which says for each destination which endpoints there are, and how often. After it: the
//! connect hooks, which see the old choice of a destination or the new one, whole. Nothing that a hook may still be reading
//! is written over: a slice or a number that is no longer named rests for `REST` before it is given away again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use aya::maps::{Array, HashMap, MapData, RingBuf};
use serde::Serialize;
use waylay_common::{
    addr::Endpoint,
    dispatch::{Choice, SLICE_SLOTS_MAX},
    limits,
    settings::{Switch, dispatching},
};

use super::{Kernel, KernelError, load::Loaded, maps, ring::Unmapped};

pub use waylay_common::dispatch::{ConnectionEvent, Draw, Ending, Moment, Slot, client_hash, mark};

/// Names of the maps, as the kernel shows them.
pub mod name {
    pub const DESTINATIONS: &str = "WAYLAY_DISPATCH";
    pub const CHOICES: &str = "WAYLAY_CHOICES";
    pub const SLOTS: &str = "WAYLAY_SLOTS";
    pub const CONNECTIONS: &str = "WAYLAY_CONNS";
    pub const UNTOLD: &str = "WAYLAY_UNTOLD";
}

/// How long what was given back is not given away again. A hook runs for microseconds, unless its CPU is taken away from it.
pub const REST: Duration = Duration::from_secs(2);

pub(super) type Destinations = HashMap<MapData, Endpoint, u32>;
pub(super) type Choices = Array<MapData, u64>;
pub(super) type Slots = Array<MapData, Slot>;

/// What becomes of connections to one destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Or the wildcard address, for all that have that port and no row of their own.
    pub address: SocketAddr,
    /// How one of the slots is drawn.
    pub draw: Draw,
    /// At most 65,535; none: the agent serves the connection.
    pub slots: Vec<Slot>,
}

/// The tables.
pub struct DispatchTable {
    kernel: Kernel,
    destinations: Destinations,
    choices: Choices,
    slots: Slots,
    slices: Slices,
    numbers: Numbers,
    rows: BTreeMap<Endpoint, Row>,
}

#[derive(Debug)]
struct Row {
    number: u32,
    first: Option<u32>,
    destination: Destination,
}

impl DispatchTable {
    pub(super) fn new(loaded: &Loaded, kernel: Kernel) -> Result<Self, KernelError> {
        Ok(Self {
            kernel,
            destinations: maps::typed(name::DESTINATIONS, loaded.map(name::DESTINATIONS)?)?,
            choices: maps::typed(name::CHOICES, loaded.map(name::CHOICES)?)?,
            slots: maps::typed(name::SLOTS, loaded.map(name::SLOTS)?)?,
            slices: Slices::new(limits::DISPATCH_SLOTS),
            numbers: Numbers::new(limits::DISPATCH_ENTRIES),
            rows: BTreeMap::new(),
        })
    }

    /// From now on the kernel dispatches exactly these destinations; each changes at once for each connection. What is
    /// unchanged is not written again.
    ///
    /// # Errors
    /// The first destination for which there is no room, or whose map cannot be written: it is the agent's, the others
    /// are in force.
    pub fn replace(&mut self, wanted: Vec<Destination>) -> Result<(), KernelError> {
        let now = Instant::now();
        self.slices.wake(now);
        self.numbers.wake(now);
        let keys: BTreeSet<Endpoint> = wanted.iter().map(|one| one.address.into()).collect();
        let gone: Vec<Endpoint> = self.rows.keys().filter(|key| !keys.contains(key)).copied().collect();
        let removed: Vec<_> = gone.into_iter().map(|key| self.remove(key, now)).collect();
        let written: Vec<_> = wanted.into_iter().map(|destination| self.put(destination, now)).collect();
        let switched = self.kernel.set(Switch::Dispatching, self.kinds());
        removed.into_iter().chain(written).chain([switched]).collect()
    }

    /// For [`Switch::Dispatching`].
    fn kinds(&self) -> u64 {
        let kind = |key: &Endpoint| {
            if key.ip().is_unspecified() { dispatching::WILDCARDS } else { dispatching::ADDRESSES }
        };
        let hashed = self.rows.values().any(|row| row.destination.draw == Draw::Hashed);
        let asked = if hashed { dispatching::HASHED } else { 0 };
        self.rows.keys().map(kind).fold(asked, |kinds, kind| kinds | kind)
    }

    fn put(&mut self, destination: Destination, now: Instant) -> Result<(), KernelError> {
        let key = Endpoint::from(destination.address);
        if self.rows.get(&key).is_some_and(|row| row.destination == destination) {
            return Ok(());
        }
        let (first, filled) = match self.fill(&destination) {
            Ok(first) => (first, Ok(())),
            Err(error) => (None, Err(error)),
        };
        let choice = match (first, u16::try_from(destination.slots.len())) {
            (Some(first), Ok(slots)) => Choice { first, slots, draw: destination.draw },
            _ => Choice::AGENT,
        };
        let address = destination.address;
        // One that did not fit is remembered as empty, and so tried again with the next call.
        let destination = if filled.is_ok() { destination } else { Destination { slots: Vec::new(), ..destination } };
        if let Some(row) = self.rows.get_mut(&key) {
            let (number, old) = (row.number, std::mem::replace(&mut row.first, first));
            row.destination = destination;
            self.choose(number, choice)?;
            self.slices.rest(old, now);
            return filled;
        }
        let Some(number) = self.numbers.take() else {
            self.slices.rest(first, now);
            return Err(KernelError::DispatchFull { destination: address });
        };
        self.choose(number, choice)?;
        self.destinations
            .insert(key, number, 0)
            .map_err(|source| KernelError::map("entering a destination that the kernel dispatches", source))?;
        self.rows.insert(key, Row { number, first, destination });
        filled
    }

    /// Writes the slots into a slice that nobody reads; `None` where there are none.
    fn fill(&mut self, destination: &Destination) -> Result<Option<u32>, KernelError> {
        let full = || KernelError::DispatchFull { destination: destination.address };
        let count = u32::try_from(destination.slots.len()).ok().filter(|count| *count <= SLICE_SLOTS_MAX);
        let count = count.ok_or_else(full)?;
        if count == 0 || destination.draw == Draw::Agent {
            return Ok(None);
        }
        let first = self.slices.take(count).ok_or_else(full)?;
        for (index, slot) in (first..).zip(&destination.slots) {
            let written = self.slots.set(index, slot, 0);
            written.map_err(|source| KernelError::map("writing endpoints for the kernel to choose from", source))?;
        }
        Ok(Some(first))
    }

    fn choose(&mut self, number: u32, choice: Choice) -> Result<(), KernelError> {
        let written = self.choices.set(number, choice.word(), 0);
        written.map_err(|source| KernelError::map("changing what the kernel chooses from", source))
    }

    fn remove(&mut self, key: Endpoint, now: Instant) -> Result<(), KernelError> {
        let Some(row) = self.rows.remove(&key) else { return Ok(()) };
        let removed = maps::ensure_removed(
            self.destinations.remove(&key),
            "removing a destination that the kernel no longer dispatches",
        );
        let chosen = self.choose(row.number, Choice::AGENT);
        self.slices.rest(row.first, now);
        self.numbers.rest(row.number, now);
        removed.and(chosen)
    }
}

/// What becomes of connections to one destination, as `waylay maps` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DispatchRow {
    /// Or the wildcard address.
    pub destination: SocketAddr,
    /// `in turn`, `random`, `by hash`, or `agent`: the kernel leaves it to the agent.
    pub draw: &'static str,
    /// In the order of their first turns.
    pub endpoints: Vec<DispatchEndpoint>,
}

/// An endpoint that the kernel chooses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DispatchEndpoint {
    /// `None`: the original destination, or the agent where [`Self::target`] is 0.
    pub endpoint: Option<SocketAddr>,
    /// How many of the turns are its own.
    pub slots: u32,
    /// The agent's number for the listener, the cluster and the endpoint; 0: no endpoint takes traffic.
    pub target: u32,
}

/// All rows, by destination.
pub(super) fn rows(
    destinations: &Destinations,
    choices: &Choices,
    slots: &Slots,
) -> Result<Vec<DispatchRow>, KernelError> {
    let reading = |name: &str| format!("reading the map {name}");
    let mut rows = Vec::new();
    for (key, number) in maps::entries(name::DESTINATIONS, destinations.keys(), |key| destinations.get(key, 0))? {
        let word = choices.get(&number, 0).map_err(|source| KernelError::map(reading(name::CHOICES), source))?;
        let choice = Choice::from_word(word);
        let mut endpoints: Vec<DispatchEndpoint> = Vec::new();
        for index in choice.first..choice.first.saturating_add(choice.slots.into()) {
            let slot = slots.get(&index, 0).map_err(|source| KernelError::map(reading(name::SLOTS), source))?;
            match endpoints.iter_mut().find(|one| one.target == slot.target) {
                Some(known) => known.slots += 1,
                None => {
                    let endpoint = (!slot.endpoint.is_none()).then(|| slot.endpoint.into());
                    endpoints.push(DispatchEndpoint { endpoint, slots: 1, target: slot.target });
                }
            }
        }
        let draw = match choice.draw {
            Draw::Agent => "agent",
            Draw::InTurn => "in turn",
            Draw::Random => "random",
            Draw::Hashed => "by hash",
        };
        rows.push(DispatchRow { destination: key.into(), draw, endpoints });
    }
    rows.sort_by_key(|row| row.destination);
    Ok(rows)
}

/// The ring of dispatched connections; mapped from the first destination on that the kernel dispatches.
pub struct DispatchEvents {
    unmapped: Unmapped,
    ring: Option<RingBuf<MapData>>,
    untold: HashMap<MapData, u64, u64>,
}

impl DispatchEvents {
    pub(super) fn new(loaded: &Loaded) -> Result<Self, KernelError> {
        Ok(Self {
            unmapped: Unmapped::new(name::CONNECTIONS, loaded.map(name::CONNECTIONS)?),
            ring: None,
            untold: maps::typed(name::UNTOLD, loaded.map(name::UNTOLD)?)?,
        })
    }

    /// There will be events. Calling it again changes nothing.
    ///
    /// # Errors
    /// The ring cannot be mapped: the kernel keeps the events, as far as there is room, until a later call maps it.
    pub fn open(&mut self) -> Result<(), KernelError> {
        if self.ring.is_none() {
            self.ring = Some(self.unmapped.map()?);
        }
        Ok(())
    }

    /// The next event; `None` when there is none at the moment. Never waits.
    #[expect(clippy::should_implement_trait, reason = "no iterator: None is not the end")]
    pub fn next(&mut self) -> Option<ConnectionEvent> {
        let ring = self.ring.as_mut()?;
        loop {
            if let Some(event) = ConnectionEvent::from_bytes(&ring.next()?) {
                return Some(event);
            }
        }
    }

    /// Cookies of connections whose end found no room in the ring; each is told once.
    pub fn take_untold(&mut self) -> Vec<u64> {
        let cookies: Vec<u64> = self.untold.keys().filter_map(Result::ok).collect();
        cookies.into_iter().filter(|cookie| self.untold.remove(cookie).is_ok()).collect()
    }
}

/// Ranges of slots, the first that is large enough; those that were given back rest first.
#[derive(Debug)]
struct Slices {
    size: u32,
    /// First and length.
    taken: BTreeMap<u32, u32>,
    resting: Vec<(Instant, u32)>,
}

impl Slices {
    fn new(size: u32) -> Self {
        Self { size, taken: BTreeMap::new(), resting: Vec::new() }
    }

    fn take(&mut self, count: u32) -> Option<u32> {
        let mut first = 0_u32;
        for (taken, length) in &self.taken {
            if taken - first >= count {
                break;
            }
            first = taken + length;
        }
        if self.size - first < count {
            return None;
        }
        self.taken.insert(first, count);
        Some(first)
    }

    fn rest(&mut self, first: Option<u32>, now: Instant) {
        self.resting.extend(first.map(|first| (now, first)));
    }

    fn wake(&mut self, now: Instant) {
        let taken = &mut self.taken;
        self.resting.retain(|(since, first)| {
            let rests = now.saturating_duration_since(*since) < REST;
            if !rests {
                taken.remove(first);
            }
            rests
        });
    }
}

/// Numbers of destinations; those that were given back rest first.
#[derive(Debug)]
struct Numbers {
    free: Vec<u32>,
    resting: Vec<(Instant, u32)>,
}

impl Numbers {
    fn new(count: u32) -> Self {
        Self { free: (0..count).rev().collect(), resting: Vec::new() }
    }

    fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    fn rest(&mut self, number: u32, now: Instant) {
        self.resting.push((now, number));
    }

    fn wake(&mut self, now: Instant) {
        let free = &mut self.free;
        self.resting.retain(|(since, number)| {
            let rests = now.saturating_duration_since(*since) < REST;
            if !rests {
                free.push(*number);
            }
            rests
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_slice_that_was_given_back_rests_before_it_is_given_away_again() {
        let mut slices = Slices::new(10);
        let now = Instant::now();
        assert_eq!((slices.take(4), slices.take(4), slices.take(4)), (Some(0), Some(4), None));
        slices.rest(Some(0), now);
        slices.wake(now + REST / 2);
        assert_eq!(slices.take(4), None);
        slices.wake(now + REST);
        assert_eq!((slices.take(3), slices.take(2), slices.take(1)), (Some(0), Some(8), Some(3)));
        assert_eq!(slices.take(1), None);
    }

    #[test]
    fn a_number_rests_as_well() {
        let mut numbers = Numbers::new(1);
        let now = Instant::now();
        assert_eq!((numbers.take(), numbers.take()), (Some(0), None));
        numbers.rest(0, now);
        numbers.wake(now);
        assert_eq!(numbers.take(), None);
        numbers.wake(now + REST);
        assert_eq!(numbers.take(), Some(0));
    }

    proptest! {
        #[test]
        fn slices_never_overlap(steps in prop::collection::vec((any::<bool>(), 1..40_u32), 1..200)) {
            let mut slices = Slices::new(256);
            let (mut now, mut held) = (Instant::now(), Vec::new());
            for (takes, count) in steps {
                now += REST / 3;
                slices.wake(now);
                if takes {
                    held.extend(slices.take(count).map(|first| (first, count)));
                } else if !held.is_empty() {
                    let (first, _) = held.swap_remove(count as usize % held.len());
                    slices.rest(Some(first), now);
                }
                let mut sorted = held.clone();
                sorted.sort_unstable();
                prop_assert!(sorted.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
                prop_assert!(sorted.iter().all(|(first, count)| first + count <= 256));
            }
        }
    }
}
