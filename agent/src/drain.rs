//! The end of the agent's life, in three steps: stop accepting, let what is in flight finish, close what remains.
//!
//! Written by the signal handler; read by every worker and connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Where the agent is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Accepting and serving.
    Serving,
    /// No new connections; those in flight have until the deadline.
    Draining {
        /// What is left then is closed.
        deadline: Instant,
    },
    /// Everything is closed now.
    Closing,
}

/// Tells the phase to whoever has to know. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Drain {
    phase: watch::Receiver<Phase>,
    open: Arc<OpenCount>,
}

/// Moves the phase on; the main thread has the only one.
#[derive(Debug)]
pub struct DrainControl {
    phase: watch::Sender<Phase>,
    open: Arc<OpenCount>,
}

/// An agent that serves, and the control to end it.
pub fn channel() -> (DrainControl, Drain) {
    let (phase, receiver) = watch::channel(Phase::Serving);
    let open = Arc::new(OpenCount::default());
    (DrainControl { phase, open: open.clone() }, Drain { phase: receiver, open })
}

impl DrainControl {
    /// Begins to drain: done when nothing is open any more or `timeout` has passed. Returns how many connections were
    /// closed by force.
    pub async fn drain(&self, timeout: Duration) -> usize {
        let deadline = Instant::now() + timeout;
        self.phase.send_replace(Phase::Draining { deadline });
        let finished = tokio::time::timeout_at(deadline, self.open.none()).await;
        self.close();
        if finished.is_ok() { 0 } else { self.open.count.load(SeqCst) }
    }

    /// Closes everything at once.
    pub fn close(&self) {
        self.phase.send_replace(Phase::Closing);
        self.open.close();
    }

    /// Waits until nothing is open any more, after the forced close: long enough for records to be written.
    pub async fn closed(&self, timeout: Duration) {
        let _ = tokio::time::timeout(timeout, self.open.none()).await;
    }
}

/// The agent is gone with it.
impl Drop for DrainControl {
    fn drop(&mut self) {
        self.open.close();
    }
}

impl Drain {
    /// The phase now.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Whether no new work should be begun.
    pub fn is_draining(&self) -> bool {
        self.phase() != Phase::Serving
    }

    /// Resolves when draining begins.
    pub async fn draining(&self) {
        let mut phase = self.phase.clone();
        // An error means that the control is gone, and with it the agent.
        let _ = phase.wait_for(|phase| *phase != Phase::Serving).await;
    }

    /// Resolves when everything has to close.
    pub async fn closing(&self) {
        // Before the look: whoever closes afterwards is heard. Every connection waits here all its life,
        // so it is not the phase's own channel, whose waiting takes twice the memory.
        let mut closing = std::pin::pin!(self.open.closing.notified());
        closing.as_mut().enable();
        if !self.open.is_closing.load(SeqCst) {
            closing.await;
        }
    }

    /// Counts one open connection until the guard is dropped.
    pub fn open(&self) -> Open {
        self.open.count.fetch_add(1, SeqCst);
        Open(self.open.clone())
    }
}

/// One open connection.
#[derive(Debug)]
pub struct Open(Arc<OpenCount>);

impl Drop for Open {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, SeqCst) == 1 {
            self.0.none.notify_waiters();
        }
    }
}

/// How many connections are open. Every connection of every worker changes it, so it is one number and no lock.
#[derive(Debug, Default)]
struct OpenCount {
    count: AtomicUsize,
    /// Told whenever the count falls to zero.
    none: Notify,
    /// Everything has to close.
    is_closing: AtomicBool,
    /// Told when it has.
    closing: Notify,
}

impl OpenCount {
    fn close(&self) {
        self.is_closing.store(true, SeqCst);
        self.closing.notify_waiters();
    }

    /// Resolves when nothing is open.
    async fn none(&self) {
        loop {
            // Before the look at the count: whoever closes the last connection afterwards is heard.
            let mut none = std::pin::pin!(self.none.notified());
            none.as_mut().enable();
            if self.count.load(SeqCst) == 0 {
                return;
            }
            none.await;
        }
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
