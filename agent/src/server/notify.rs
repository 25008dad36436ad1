//! Tells the service manager how the agent is, in the protocol of sd_notify(3): READY=1, RELOADING=1, STOPPING=1,
//! STATUS=, and WATCHDOG=1 for as long as every worker's loop turns.
//!
//! Before: [`super::life`] and [`super::reload`], which know. After: the socket that `NOTIFY_SOCKET` names. Without that
//! variable nothing is told, and nothing is started. The messages are written by a thread of their own: a service manager
//! that does not read must not hold up the main thread, whose heartbeat the kernel waits for.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::MissedTickBehavior;

use crate::worker::Shared;

/// Messages that wait to be written. What comes on top of them is dropped: by then nobody has read for long.
const MESSAGES_MAX: usize = 16;

/// On top of the drain timeout: for the last records, for detaching, and for a busy machine.
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// A state of the agent, in the service manager's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Message {
    Ready { status: String },
    Reloading,
    Stopping { status: String, within: Duration },
    Watchdog,
}

/// The way to the service manager, if there is one.
#[derive(Debug, Default)]
pub struct ServiceManager {
    messages: Option<SyncSender<Message>>,
}

impl ServiceManager {
    /// Nobody is told anything.
    pub fn none() -> Self {
        Self::default()
    }

    /// The one that `NOTIFY_SOCKET` names, if any.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn from_environment() -> io::Result<Self> {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Ok(Self::none());
        }
        let (messages, inbox) = sync_channel(MESSAGES_MAX);
        // Nobody waits for its end, which a service manager that does not read could put off for ever.
        std::thread::Builder::new().name("waylay-notify".to_owned()).spawn(move || write(&inbox))?;
        Ok(Self { messages: Some(messages) })
    }

    /// The agent serves, with the configuration of this version.
    pub fn ready(&self, version: u64) {
        self.tell(Message::Ready { status: format!("serving configuration {version}") });
    }

    /// The agent serves on with what it had: a reload came to nothing.
    pub fn refused(&self, error: &str) {
        let first = error.lines().next().unwrap_or_default();
        self.tell(Message::Ready { status: format!("the new configuration was not taken over: {first}") });
    }

    /// The agent is about to load its configuration again.
    pub fn reloading(&self) {
        self.tell(Message::Reloading);
    }

    /// The agent takes no new connections and lets the others finish for at most `drain_timeout`.
    pub fn stopping(&self, drain_timeout: Duration) {
        let within = drain_timeout.saturating_add(STOP_MARGIN);
        self.tell(Message::Stopping { status: "draining".to_owned(), within });
    }

    /// What keeps the service manager's watchdog quiet, if it has one for us: to be run for as long as the agent lives.
    pub fn watchdog(&self, shared: Arc<Shared>) -> impl Future<Output = ()> + use<> {
        let messages = self.messages.clone().zip(sd_notify::watchdog_enabled());
        async move {
            let Some((messages, limit)) = messages else { return };
            // sd_watchdog_enabled(3) asks for half of the limit.
            let mut beats = tokio::time::interval((limit / 2).max(Duration::from_millis(1)));
            beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                beats.tick().await;
                if shared.stalled_workers().is_empty() {
                    // A full queue is a service manager that does not read: it will see the next one.
                    let _ = messages.try_send(Message::Watchdog);
                }
            }
        }
    }

    fn tell(&self, message: Message) {
        if let Some(messages) = &self.messages
            && messages.try_send(message).is_err()
        {
            tracing::warn!("the service manager does not read what it is told");
        }
    }
}

fn write(inbox: &Receiver<Message>) {
    let mut failing = false;
    while let Ok(message) = inbox.recv() {
        match send(&message) {
            Ok(()) => failing = false,
            Err(error) if !failing => {
                failing = true;
                tracing::warn!(%error, "the service manager cannot be told how the agent is (NOTIFY_SOCKET)");
            }
            Err(_) => {}
        }
    }
}

fn send(message: &Message) -> io::Result<()> {
    match message {
        Message::Ready { status } => sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)]),
        Message::Reloading => {
            // systemd 253 and later take a reload for done only when READY=1 comes after this moment.
            let now = NotifyState::monotonic_usec_now()?;
            sd_notify::notify(&[NotifyState::Reloading, now, NotifyState::Status("loading the configuration again")])
        }
        Message::Stopping { status, within } => {
            let within = u32::try_from(within.as_micros()).unwrap_or(u32::MAX);
            sd_notify::notify(&[
                NotifyState::Stopping,
                NotifyState::Status(status),
                NotifyState::ExtendTimeoutUsec(within),
            ])
        }
        Message::Watchdog => sd_notify::notify(&[NotifyState::Watchdog]),
    }
}
