//! Timers of one worker: to set one, to move it and to take it back costs a few instructions, no lock and no allocation.
//!
//! Whoever waits polls a [`Timer`] with the deadline that holds now. A deadline that moved back is not told to the wheel:
//! when the earlier one comes, the waiter is woken, polls again, and only then the timer is moved. So a deadline that is
//! pushed on by whatever moves costs nothing while it is pushed on.
//!
//! A hierarchical timing wheel (Varghese and Lauck, 1987): level 0 has a slot a millisecond, each slot of the next level
//! spans all of the level below. One task of the worker sleeps until the first slot that holds anything; it is started by
//! the first timer, which therefore has to be set inside of the worker's `LocalSet`. No timer fires early, and none
//! later than a millisecond after its time, as far as the worker's loop turns.

use std::cell::{Cell, RefCell, RefMut};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const LEVELS: usize = 7;
/// The last tick, in milliseconds: 139 years. What is later waits until then, and is asked again.
const LAST_TICK: u64 = (1 << (SLOT_BITS as u64 * LEVELS as u64)) - 1;

/// The wheel of one worker. Cheap to clone.
#[derive(Clone, Default)]
pub struct Timers(Rc<RefCell<Wheel>>);

/// One timer; without a place in the wheel until it is first polled, and gone from it when it is dropped.
pub struct Timer {
    timers: Timers,
    place: Option<u32>,
}

/// Resolves at its deadline.
pub struct Sleep {
    timer: Timer,
    deadline: Instant,
}

impl Timers {
    /// A timer that is not set.
    pub fn timer(&self) -> Timer {
        Timer { timers: self.clone(), place: None }
    }

    /// Resolves at `deadline`.
    pub fn sleep_until(&self, deadline: Instant) -> Sleep {
        Sleep { timer: self.timer(), deadline }
    }

    /// Resolves after `duration`.
    pub fn sleep(&self, duration: Duration) -> Sleep {
        self.sleep_until(Instant::now() + duration)
    }

    /// What `future` resolves to, or `None` when it takes longer than `limit`. It has to be pinned already: here, it would
    /// be held twice.
    pub async fn timeout<F: Future + Unpin>(&self, limit: Duration, mut future: F) -> Option<F::Output> {
        let mut sleep = self.sleep(limit);
        poll_fn(|cx| match Pin::new(&mut future).poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => Pin::new(&mut sleep).poll(cx).map(|()| None),
        })
        .await
    }

    fn wheel(&self) -> RefMut<'_, Wheel> {
        let mut wheel = self.0.borrow_mut();
        if wheel.start.is_none() {
            let start = Instant::now();
            wheel.start = Some(start);
            tokio::task::spawn_local(turn(Rc::downgrade(&self.0), start));
        }
        wheel
    }
}

impl Timer {
    /// Ready when `deadline` has passed; otherwise the task is woken then, or earlier. Each call may name another one.
    pub fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let mut wheel = self.timers.wheel();
        let tick = wheel.tick(deadline);
        if tick <= wheel.now {
            return Poll::Ready(());
        }
        let place = *self.place.get_or_insert_with(|| wheel.new_entry());
        let entry = &mut wheel.entries[place as usize];
        if !entry.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            entry.waker = Some(cx.waker().clone());
        }
        if entry.slot == Entry::UNLINKED || tick < entry.tick {
            wheel.unlink(place);
            wheel.entries[place as usize].tick = tick;
            wheel.link(place);
            wheel.hurry();
        }
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            let mut wheel = self.timers.0.borrow_mut();
            wheel.unlink(place);
            let waker = wheel.free_entry(place);
            drop(wheel);
            drop(waker);
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = self.deadline;
        self.timer.poll(cx, deadline)
    }
}

/// The time of day, without asking the system for each instant.
#[derive(Debug, Default)]
pub struct WallClock(Cell<Option<(Instant, SystemTime)>>);

/// How long the system's answer is good for: as long, a clock that is set anew goes unnoticed.
const WALL_TIME_HOLDS: Duration = Duration::from_secs(1);

impl WallClock {
    /// What time it was at `instant`, which has to be now or just before.
    pub fn at(&self, instant: Instant) -> SystemTime {
        if let Some((then, time)) = self.0.get() {
            let since = instant.saturating_duration_since(then);
            if since < WALL_TIME_HOLDS {
                return time + since;
            }
        }
        let time = SystemTime::now();
        self.0.set(Some((instant, time)));
        time
    }
}

struct Entry {
    /// When it is due.
    tick: u64,
    waker: Option<Waker>,
    /// Its neighbours in the slot's list; of a free entry, `next` is the next free one.
    previous: u32,
    next: u32,
    /// `level * SLOTS + slot`.
    slot: u16,
}

impl Entry {
    /// Not in the wheel: not set yet, or fired.
    const UNLINKED: u16 = u16::MAX;
}

const NONE: u32 = u32::MAX;

struct Wheel {
    start: Option<Instant>,
    /// Milliseconds since `start` at the last turn.
    now: u64,
    /// Heads of the lists.
    slots: Box<[u32]>,
    /// Which slots hold anything, by level.
    occupied: [u64; LEVELS],
    entries: Vec<Entry>,
    free: u32,
    /// Until when the task sleeps.
    due: u64,
    task: Option<Waker>,
}

impl Default for Wheel {
    fn default() -> Self {
        Self {
            start: None,
            now: 0,
            slots: vec![NONE; LEVELS * SLOTS].into(),
            occupied: [0; LEVELS],
            entries: Vec::new(),
            free: NONE,
            // The task looks for itself when it begins.
            due: 0,
            task: None,
        }
    }
}

impl Wheel {
    /// The first tick at or after `deadline`.
    fn tick(&self, deadline: Instant) -> u64 {
        let since = self.start.map_or(Duration::ZERO, |start| deadline.saturating_duration_since(start));
        let ms =
            since.as_secs().saturating_mul(1000).saturating_add(u64::from(since.subsec_nanos().div_ceil(1_000_000)));
        ms.min(LAST_TICK)
    }

    fn new_entry(&mut self) -> u32 {
        let fresh = Entry { tick: 0, waker: None, previous: NONE, next: NONE, slot: Entry::UNLINKED };
        match self.free {
            NONE => {
                self.entries.push(fresh);
                // More timers than descriptors there can be none.
                u32::try_from(self.entries.len() - 1).unwrap_or(NONE)
            }
            place => {
                self.free = std::mem::replace(&mut self.entries[place as usize], fresh).next;
                place
            }
        }
    }

    fn free_entry(&mut self, place: u32) -> Option<Waker> {
        let next = std::mem::replace(&mut self.free, place);
        let entry = &mut self.entries[place as usize];
        entry.next = next;
        entry.waker.take()
    }

    /// Puts an entry that is due after `now` into the slot of the highest digit in which the two differ.
    fn link(&mut self, place: u32) {
        let tick = self.entries[place as usize].tick;
        let level = (63 - (tick ^ self.now).leading_zeros()) / SLOT_BITS;
        let slot = (tick >> (level * SLOT_BITS)) as usize % SLOTS;
        self.occupied[level as usize] |= 1 << slot;
        let index = level as usize * SLOTS + slot;
        let next = std::mem::replace(&mut self.slots[index], place);
        if next != NONE {
            self.entries[next as usize].previous = place;
        }
        let entry = &mut self.entries[place as usize];
        (entry.previous, entry.next, entry.slot) = (NONE, next, index as u16);
    }

    fn unlink(&mut self, place: u32) {
        let entry = &mut self.entries[place as usize];
        let slot = std::mem::replace(&mut entry.slot, Entry::UNLINKED);
        if slot == Entry::UNLINKED {
            return;
        }
        let (previous, next) = (entry.previous, entry.next);
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        if previous != NONE {
            self.entries[previous as usize].next = next;
            return;
        }
        self.slots[usize::from(slot)] = next;
        if next == NONE {
            self.occupied[usize::from(slot) / SLOTS] &= !(1 << (usize::from(slot) % SLOTS));
        }
    }

    /// The first slot that holds anything, and when it is due. All that is on a level is due before what is above it.
    fn first(&self) -> Option<(usize, u64)> {
        let level = self.occupied.iter().position(|slots| *slots != 0)?;
        let slot = self.occupied[level].trailing_zeros() as usize;
        let shift = SLOT_BITS as usize * level;
        let above = self.now >> shift >> SLOT_BITS << SLOT_BITS;
        Some((level * SLOTS + slot, (above | slot as u64) << shift))
    }

    /// Moves on to the tick `now`: what is due by then fires, what has come near goes down.
    fn advance(&mut self, now: u64, fired: &mut Vec<Waker>) {
        while let Some((slot, at)) = self.first().filter(|(_, at)| *at <= now) {
            self.now = at;
            self.occupied[slot / SLOTS] &= !(1 << (slot % SLOTS));
            let mut place = std::mem::replace(&mut self.slots[slot], NONE);
            while place != NONE {
                let entry = &mut self.entries[place as usize];
                let next = entry.next;
                if entry.tick <= at {
                    entry.slot = Entry::UNLINKED;
                    fired.extend(entry.waker.take());
                } else {
                    self.link(place);
                }
                place = next;
            }
        }
        self.now = self.now.max(now);
    }

    /// Wakes the task if it would sleep for too long.
    fn hurry(&mut self) {
        if self.first().is_some_and(|(_, at)| at < self.due)
            && let Some(task) = self.task.take()
        {
            task.wake();
        }
    }
}

impl Drop for Wheel {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.wake();
        }
    }
}

/// Turns the wheel, until it is gone.
async fn turn(wheel: Weak<RefCell<Wheel>>, start: Instant) {
    let mut sleep = pin!(tokio::time::sleep_until(start));
    let mut fired = Vec::new();
    poll_fn(|cx| {
        loop {
            let Some(wheel) = wheel.upgrade() else { return Poll::Ready(()) };
            let now = Instant::now().saturating_duration_since(start);
            wheel.borrow_mut().advance(u64::try_from(now.as_millis()).unwrap_or(LAST_TICK), &mut fired);
            // Not while the wheel is borrowed.
            fired.drain(..).for_each(Waker::wake);
            let mut wheel = wheel.borrow_mut();
            wheel.task = Some(cx.waker().clone());
            let Some((_, at)) = wheel.first() else {
                wheel.due = u64::MAX;
                return Poll::Pending;
            };
            wheel.due = at;
            drop(wheel);
            let deadline = start + Duration::from_millis(at);
            if sleep.deadline() != deadline || sleep.is_elapsed() {
                sleep.as_mut().reset(deadline);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await;
}

#[cfg(test)]
mod tests;
