//! Decision events: what the connect and inbound hooks decided, live, while somebody reads.
//!
//! The ring has room for one reader. The agent holds the only [`Trace`] and passes events on to all who watch.

use std::{
    net::SocketAddr,
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use aya::maps::{MapData, RingBuf};
use serde::{Serialize, Serializer};
use waylay_common::{
    counter::Counter,
    event::{HookSide, RawEvent},
    settings::Switch,
};

use super::{KernelError, Process, maps, ring::Unmapped};
use crate::listener::TrafficDirection;

/// What a hook did with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Redirected,
    /// Sent to an endpoint by the kernel itself.
    Dispatched,
    Passed,
    Refused,
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DecisionEvent {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
    /// Whether a process connects, or something arrives.
    #[serde(serialize_with = "direction_name")]
    pub direction: TrafficDirection,
    /// Who connects; of what arrives, only the network namespace is known.
    pub process: Process,
    /// Where it comes from; not known yet of a process that connects.
    pub source: Option<SocketAddr>,
    pub destination: SocketAddr,
    pub verdict: Verdict,
    /// The exit that was taken; its name tells the reason.
    #[serde(serialize_with = "counter_name")]
    pub reason: Counter,
}

fn counter_name<S: Serializer>(counter: &Counter, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(counter.name())
}

fn direction_name<S: Serializer>(direction: &TrafficDirection, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(direction.name())
}

impl DecisionEvent {
    /// `None`: not a record of this build's layout.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let raw = RawEvent::from_bytes(bytes)?;
        let reason = Counter::from_raw(raw.counter)?;
        let verdict = match reason {
            Counter::RedirectedV4
            | Counter::RedirectedV6
            | Counter::RedirectedV4Mapped
            | Counter::InboundRedirectedV4
            | Counter::InboundRedirectedV6 => Verdict::Redirected,
            Counter::DispatchedV4
            | Counter::DispatchedV6
            | Counter::DispatchedV4Mapped
            | Counter::DispatchedOriginalDst => Verdict::Dispatched,
            Counter::RefusedAgentLost => Verdict::Refused,
            _ => Verdict::Passed,
        };
        Some(Self {
            time_ns: raw.process.connect_time_ns,
            direction: match HookSide::from_raw(raw.side)? {
                HookSide::Connect => TrafficDirection::Outbound,
                HookSide::Inbound => TrafficDirection::Inbound,
            },
            process: raw.process.into(),
            source: (!raw.source.is_none()).then(|| raw.source.into()),
            destination: raw.destination.into(),
            verdict,
            reason,
        })
    }
}

/// The ring, and the switch that makes the hooks fill it; shared by all clones of [`super::Kernel`].
pub(super) struct Tracing {
    pub(super) switches: Arc<Mutex<maps::Switches>>,
    pub(super) ring: Unmapped,
    /// A [`Trace`] reads it.
    pub(super) is_read: AtomicBool,
}

/// The reader of decisions; tracing is on as long as it lives.
///
/// Its descriptor becomes readable when there are events: wrap it in tokio's `AsyncFd`, and call [`Self::next`] until
/// there is none before waiting again.
pub struct Trace {
    ring: RingBuf<MapData>,
    tracing: Arc<Tracing>,
}

impl Trace {
    pub(super) fn start(tracing: Arc<Tracing>) -> Result<Self, KernelError> {
        let ring = tracing.ring.map()?;
        if tracing.is_read.swap(true, Ordering::SeqCst) {
            return Err(KernelError::TraceBusy);
        }
        let mut trace = Self { ring, tracing };
        // Events of an earlier reader that nobody took are not this reader's.
        while trace.next().is_some() {}
        maps::set_switch(&mut lock(&trace.tracing.switches), Switch::Tracing, 1)?;
        Ok(trace)
    }

    /// The next decision; `None` when there is none at the moment. Never waits.
    #[expect(clippy::should_implement_trait, reason = "no iterator: None is not the end")]
    pub fn next(&mut self) -> Option<DecisionEvent> {
        loop {
            if let Some(event) = DecisionEvent::decode(&self.ring.next()?) {
                return Some(event);
            }
        }
    }
}

impl AsRawFd for Trace {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // The switch can only fail to be set when the maps are gone, and then nothing is traced either.
        let _ = maps::set_switch(&mut lock(&self.tracing.switches), Switch::Tracing, 0);
        self.tracing.is_read.store(false, Ordering::SeqCst);
    }
}

/// The data under these locks is a handle: a panic elsewhere leaves it whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
