//! Gives memory back to the system that the agent no longer needs: what the start took, the configuration before a
//! reload, and that of connections which have gone.
//!
//! Before: [`super::life`]. After: [`waylay_common::memory`]. The allocator keeps freed memory behind whatever is still in
//! use, for good: what 9,000 connections took stayed with the process. To look for it holds up whoever allocates, so it
//! is done seldom, and when little happens.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use waylay_common::memory;

use crate::worker::Shared;

/// How often the agent looks whether there is something to give back.
const LOOK: Duration = Duration::from_secs(1);

/// So many connections must have gone: their memory is some megabytes.
const GONE_MIN: u64 = 1_000;

/// While more than this share of the most that were open comes or goes from one look to the next, it is no quiet moment.
const QUIET_SHARE: u64 = 16;

/// Looks after the memory of the process, as long as it lives.
pub(super) async fn keep_tidy(shared: Arc<Shared>) {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tide = Tide::default();
    if shared.kernel().is_some() {
        memory::release_constants();
    }
    loop {
        looks.tick().await;
        let open = shared.runtime.stats.server.total_connections.value();
        let version = shared.snapshot.load().origin.version;
        if tide.has_fallen(u64::try_from(open).unwrap_or(0), version) {
            memory::release_free();
        }
    }
}

/// The most connections that were open since memory was last given back.
#[derive(Debug, Default)]
struct Tide {
    peak: u64,
    last: u64,
    /// Of the configuration, when memory was last given back; 0 before the start.
    version: u64,
}

impl Tide {
    /// Whether there is something to give back, and this is a moment for it. `open`: connections that are open now.
    fn has_fallen(&mut self, open: u64, version: u64) -> bool {
        self.peak = self.peak.max(open);
        let last = std::mem::replace(&mut self.last, open);
        let quiet = last.abs_diff(open) <= self.peak / QUIET_SHARE;
        let gone = self.peak - open >= GONE_MIN && open <= self.peak / 2;
        let fallen = quiet && (gone || version != self.version);
        if fallen {
            (self.peak, self.version) = (open, version);
        }
        fallen
    }
}

#[cfg(test)]
mod tests {
    use super::Tide;

    /// How many connections are open at each look, and whether memory is given back there.
    fn check(looks: &[(u64, u64, bool)]) {
        let mut tide = Tide::default();
        for (place, (open, version, expected)) in looks.iter().enumerate() {
            assert_eq!(tide.has_fallen(*open, *version), *expected, "look {place} of {looks:?}");
        }
    }

    #[test]
    fn what_the_start_and_a_reload_took_is_given_back_once() {
        check(&[(0, 1, true), (0, 1, false), (10, 1, false), (10, 2, true), (10, 2, false)]);
    }

    #[test]
    fn memory_is_given_back_when_most_connections_have_gone_and_no_more_go() {
        check(&[
            (0, 1, true),
            (9_000, 1, false),
            (9_000, 1, false),
            // They are going.
            (4_000, 1, false),
            (100, 1, false),
            (90, 1, true),
            (90, 1, false),
        ]);
    }

    #[test]
    fn a_few_connections_or_less_than_half_of_them_are_not_worth_it() {
        check(&[(0, 1, true), (900, 1, false), (900, 1, false), (0, 1, false), (0, 1, false)]);
        check(&[(0, 1, true), (9_000, 1, false), (5_000, 1, false), (5_000, 1, false)]);
    }

    #[test]
    fn a_reload_waits_for_a_quiet_moment() {
        check(&[(0, 1, true), (9_000, 1, false), (6_000, 2, false), (5_900, 2, true)]);
    }
}
