//! When a sender of much is waited for longer: its socket wakes nobody before some hundred KiB are there (`SO_RCVLOWAT`).
//!
//! Before: `direction`, which tells what it moves. After: it raises and lowers the mark on the sender's socket. Pure: the
//! clock is given.
//!
//! A wake-up costs as much as to move tens of KiB, and a reader that keeps up with its sender is woken for each segment.
//! The price of the mark is that what is below it, such as the rest of a burst, lies there until somebody asks. So it lies
//! there for [`PATIENCE`] at most, and seldom: the mark goes up behind many bytes only, and behind twice as many after each
//! rest that had to wait. A sender's end wakes the reader wherever the mark is, and so does a receive window that is
//! nearly full.

use std::time::Duration;

use tokio::time::Instant;

use super::pipes::PIPE_BYTES;

/// Where the mark is while it is up: as much as one splice takes.
pub const BYTES: usize = PIPE_BYTES;

/// How long bytes below the mark may wait. It is the resolution of the worker's timers.
const PATIENCE: Duration = Duration::from_millis(1);

/// So many bytes are spliced before the mark goes up: what takes longer than a rest may wait.
const FIRST: u64 = 8 * 1024 * 1024;

/// So often that is doubled at most: to 8 TiB.
const DOUBLINGS_MAX: u32 = 20;

/// See the module.
#[derive(Debug, Default)]
pub struct LowWater {
    /// Spliced since the mark was down last.
    spliced: u64,
    rests: u32,
    /// The mark is up, and this is when bytes below it will have waited for long enough.
    due: Option<Instant>,
}

impl LowWater {
    /// Counts what was spliced `now`. True: now the mark goes up.
    pub fn spliced(&mut self, bytes: usize, now: Instant) -> bool {
        self.spliced = self.spliced.saturating_add(bytes as u64);
        let is_time = self.spliced >= FIRST << self.rests.min(DOUBLINGS_MAX);
        let rises = self.due.is_none() && is_time;
        if is_time {
            self.due = Some(now + PATIENCE);
        }
        rises
    }

    /// The receiver was slower than the sender until `now`: what came meanwhile has not waited for the mark.
    pub fn caught_up(&mut self, now: Instant) {
        if self.due.is_some() {
            self.due = Some(now + PATIENCE);
        }
    }

    /// Whether the mark is up, and when it goes down unless the sender is ready before.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// True: nothing came for so long that now the mark goes down.
    pub fn falls(&mut self, now: Instant) -> bool {
        let falls = self.due.is_some_and(|due| due <= now);
        if falls {
            *self = Self { spliced: 0, rests: self.rests.saturating_add(1), due: None };
        }
        falls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    /// Splices until the mark goes up; how many bytes that took.
    fn until_up(mark: &mut LowWater, now: Instant) -> Option<usize> {
        (1..=1024).find(|_| mark.spliced(MIB / 4, now)).map(|splices| splices * MIB / 4)
    }

    #[test]
    fn the_mark_goes_up_behind_many_bytes_and_stays_while_they_come() {
        let (mut mark, start) = (LowWater::default(), Instant::now());
        assert_eq!((until_up(&mut mark, start), mark.due()), (Some(8 * MIB), Some(start + PATIENCE)));
        let later = start + PATIENCE / 2;
        assert!(!mark.spliced(1, later), "it is up already");
        assert_eq!(mark.due(), Some(later + PATIENCE));
        assert!(!mark.falls(start + PATIENCE), "more has come since");
        mark.caught_up(start + PATIENCE * 9);
        assert!(!mark.falls(start + PATIENCE * 9), "it was the receiver who was slow");
    }

    #[test]
    fn each_rest_that_waited_asks_for_twice_as_many_bytes() {
        let (mut mark, now) = (LowWater::default(), Instant::now());
        for rest in 0..5 {
            assert_eq!(until_up(&mut mark, now), Some((8 * MIB) << rest));
            assert!(mark.falls(now + PATIENCE));
            assert_eq!(mark.due(), None);
            assert!(!mark.falls(now + PATIENCE), "it is down");
        }
    }

    #[test]
    fn where_the_mark_is_down_nothing_is_due() {
        let (mut mark, now) = (LowWater::default(), Instant::now());
        mark.spliced(MIB, now);
        mark.caught_up(now);
        assert!(mark.due().is_none() && !mark.falls(now + PATIENCE));
    }
}
