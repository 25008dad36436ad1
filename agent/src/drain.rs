//! The end of the agent's life, in three steps: stop accepting, let what is in flight finish, close what remains.
//!
//! Written by the signal handler; read by every worker and connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Where the agent is in its life; it only moves on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Accepting and serving.
    Serving,
    /// No new connections; those in flight have until the deadline.
    Draining,
    /// Everything is closed now.
    Closing,
}

/// Tells the phase to whoever has to know. Cheap to clone, and to ask.
#[derive(Clone, Debug)]
pub struct Drain(Arc<Life>);

/// Moves the phase on; the main thread has the only one.
#[derive(Debug)]
pub struct DrainControl(Arc<Life>);

/// An agent that serves, and the control to end it.
pub fn channel() -> (DrainControl, Drain) {
    let life = Arc::<Life>::default();
    (DrainControl(life.clone()), Drain(life))
}

impl DrainControl {
    /// Begins to drain: done when nothing is open any more or `timeout` has passed. Returns how many connections were
    /// closed by force.
    pub async fn drain(&self, timeout: Duration) -> usize {
        let deadline = Instant::now() + timeout;
        self.0.move_on(Phase::Draining);
        let finished = tokio::time::timeout_at(deadline, self.0.none()).await;
        self.close();
        if finished.is_ok() { 0 } else { self.0.open.0.load(SeqCst) }
    }

    /// Closes everything at once.
    pub fn close(&self) {
        self.0.move_on(Phase::Closing);
    }

    /// Waits until nothing is open any more, after the forced close: long enough for records to be written.
    pub async fn closed(&self, timeout: Duration) {
        let _ = tokio::time::timeout(timeout, self.0.none()).await;
    }
}

/// The agent is gone with it.
impl Drop for DrainControl {
    fn drop(&mut self) {
        self.0.is_over.store(true, SeqCst);
        self.0.draining.notify_waiters();
        self.0.closing.notify_waiters();
    }
}

impl Drain {
    /// The phase now.
    pub fn phase(&self) -> Phase {
        self.0.phase()
    }

    /// Whether no new work should be begun.
    pub fn is_draining(&self) -> bool {
        self.phase() != Phase::Serving
    }

    /// Resolves when draining begins.
    pub async fn draining(&self) {
        wait(&self.0.draining, || self.is_draining() || self.0.is_over.load(SeqCst)).await;
    }

    /// Resolves when everything has to close.
    pub async fn closing(&self) {
        wait(&self.0.closing, || self.phase() == Phase::Closing || self.0.is_over.load(SeqCst)).await;
    }

    /// Counts one open connection until the guard is dropped.
    pub fn open(&self) -> Open {
        self.0.open.0.fetch_add(1, SeqCst);
        Open(self.0.clone())
    }
}

/// Resolves when `holds` does; whoever makes it so tells `told`. Every connection waits here all its life: a channel of
/// phases would take three times the memory.
async fn wait(told: &Notify, holds: impl Fn() -> bool) {
    loop {
        // Before the look: whoever tells afterwards is heard.
        let mut told = std::pin::pin!(told.notified());
        told.as_mut().enable();
        if holds() {
            return;
        }
        told.await;
    }
}

/// One open connection.
#[derive(Debug)]
pub struct Open(Arc<Life>);

impl Drop for Open {
    fn drop(&mut self) {
        if self.0.open.0.fetch_sub(1, SeqCst) == 1 {
            self.0.none.notify_waiters();
        }
    }
}

/// What control and workers share.
#[derive(Debug, Default)]
struct Life {
    /// How many connections are open.
    open: OpenCount,
    /// Told whenever that falls to zero.
    none: Notify,
    /// A [`Phase`].
    phase: AtomicU8,
    /// The control is gone, and with it the agent, whatever the phase.
    is_over: AtomicBool,
    /// Told when draining or closing begins.
    draining: Notify,
    /// Told when closing begins.
    closing: Notify,
}

/// Every connection of every worker changes it, so it is one number and no lock, on a cache line of its own: the phase is
/// read for each request.
#[derive(Debug, Default)]
#[repr(align(128))]
struct OpenCount(AtomicUsize);

impl Life {
    fn phase(&self) -> Phase {
        match self.phase.load(SeqCst) {
            0 => Phase::Serving,
            1 => Phase::Draining,
            _ => Phase::Closing,
        }
    }

    fn move_on(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, SeqCst);
        self.draining.notify_waiters();
        if phase == Phase::Closing {
            self.closing.notify_waiters();
        }
    }

    /// Resolves when nothing is open.
    async fn none(&self) {
        wait(&self.none, || self.open.0.load(SeqCst) == 0).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn draining_ends_when_the_last_connection_closes() {
        let (control, drain) = channel();
        let connection = drain.open();
        tokio::spawn(async move {
            drain.draining().await;
            drop(connection);
        });
        assert_eq!(control.drain(Duration::from_secs(30)).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_outlives_the_deadline_is_counted_and_told_to_close() {
        let (control, drain) = channel();
        let _connection = drain.open();
        assert_eq!(control.drain(Duration::from_secs(30)).await, 1);
        drain.closing().await;
        assert_eq!(drain.phase(), Phase::Closing);
    }
}
