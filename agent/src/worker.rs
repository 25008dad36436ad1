//! A worker: one thread with its own runtime, listening sockets and upstream pools. Nothing on the data path is shared
//! between workers but what [`Shared`] holds.
//!
//! Before: [`crate::server`], which starts the workers. After: [`crate::pipeline`], which serves what they accept.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::SetOnce;

use crate::cluster::balance::Balance;
use crate::drain::Drain;
use crate::http::pool::Pools;
use crate::http::request_id::RequestIds;
use crate::kernel::Kernel;
use crate::place::Place;
use crate::snapshot::{Runtime, Snapshot};
use crate::tcp::pipes::Pipes;
use crate::telemetry::record::RecordSink;
use crate::timer::{Timers, WallClock};
use crate::workload::Workloads;
use crate::workload::status::EnrolmentStatus;

/// How often a worker proves that its loop turns.
pub const TICK_INTERVAL: Duration = Duration::from_millis(100);

/// A worker whose last proof is older has stalled. Ten ticks: a long burst of work is no stall. Shorter than the
/// kernel's patience with a missing heartbeat, so that a hang is noticed by the agent first.
pub const STALL_AFTER: Duration = Duration::from_secs(1);

/// Bytes of a worker's scratch buffer: what one system call moves at most. Larger gains little, because a socket's
/// receive buffer seldom holds more; it has to hold what the largest listener filter looks at.
pub const SCRATCH_BYTES: usize = 64 * 1024;

/// What all workers see.
pub struct Shared {
    /// The configuration now.
    pub snapshot: ArcSwap<Snapshot>,
    /// What outlives it.
    pub runtime: Runtime,
    /// Where records go.
    pub records: Arc<dyn RecordSink>,
    /// When to stop.
    pub drain: Drain,
    /// Of the next connection.
    pub next_connection_id: AtomicU64,
    /// Addresses of the agent's own listening sockets, as bound.
    pub own_listeners: ArcSwap<OwnListeners>,
    /// The agent's own namespace.
    pub host: Arc<Place>,
    /// Pods and containers of this node.
    pub workloads: ArcSwap<Workloads>,
    /// What became of each of them, for people.
    pub enrolments: ArcSwap<Vec<EnrolmentStatus>>,
    /// Why the last reload was refused; `None` when it was not.
    pub reload_failure: ArcSwapOption<ReloadFailure>,
    /// When the agent started.
    pub started_at: SystemTime,
    kernel: SetOnce<Option<Kernel>>,
    state: AtomicU8,
    clock: Instant,
    turns_ms: Vec<AtomicU64>,
}

/// What `/ready` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not every worker accepts yet, or the kernel's side is not attached.
    Initializing,
    /// Serving.
    Live,
    /// No new connections.
    Draining,
}

/// Why a configuration was refused.
#[derive(Clone, Debug)]
pub struct ReloadFailure {
    /// When it was.
    pub at: SystemTime,
    /// One problem a line.
    pub message: String,
}

/// Where the agent itself listens. Connecting there for a client would be a loop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnListeners(Vec<SocketAddr>);

impl OwnListeners {
    /// Of these addresses, as bound.
    pub fn new(addresses: Vec<SocketAddr>) -> Self {
        Self(addresses)
    }

    /// Whether a connection to `address` would reach one of them. A wildcard listener is reached by any loopback
    /// address; by which others is the host's matter, and the kernel's exemptions cover those.
    pub fn contains(&self, address: SocketAddr) -> bool {
        self.0.iter().any(|own| {
            own.port() == address.port()
                && (own.ip() == address.ip()
                    || (own.ip().is_unspecified()
                        && own.is_ipv4() == address.is_ipv4()
                        && (address.ip().is_loopback() || address.ip().is_unspecified())))
        })
    }

    /// All of them.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.0
    }
}

impl Shared {
    /// What `workers` workers share, before any of them runs.
    pub fn new(
        snapshot: Arc<Snapshot>,
        runtime: Runtime,
        records: Arc<dyn RecordSink>,
        drain: Drain,
        workers: usize,
    ) -> Self {
        Self {
            snapshot: ArcSwap::new(snapshot),
            runtime,
            records,
            drain,
            next_connection_id: AtomicU64::new(1),
            own_listeners: ArcSwap::default(),
            host: Place::host(),
            workloads: ArcSwap::default(),
            enrolments: ArcSwap::default(),
            reload_failure: ArcSwapOption::empty(),
            started_at: SystemTime::now(),
            kernel: SetOnce::new(),
            state: AtomicU8::new(0),
            clock: Instant::now(),
            turns_ms: (0..workers).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// An id no other connection of this agent has.
    pub fn connection_id(&self) -> u64 {
        self.next_connection_id.fetch_add(1, Relaxed)
    }

    /// The kernel's side; `None` when nothing is intercepted, or not yet.
    pub fn kernel(&self) -> Option<&Kernel> {
        self.kernel.get().and_then(Option::as_ref)
    }

    /// The kernel's side, once it is known whether there is one. A connection can arrive while the programs are being
    /// attached, before the maps' handles are here.
    pub async fn kernel_attached(&self) -> Option<&Kernel> {
        self.kernel.wait().await.as_ref()
    }

    /// Says that the kernel's side is attached, or that there is none. The first call counts.
    pub fn set_kernel(&self, kernel: Option<Kernel>) {
        if self.kernel.set(kernel).is_err() {
            tracing::debug!("the kernel's side was already known");
        }
    }

    /// Where the agent is in its life, for `/ready`.
    pub fn state(&self) -> State {
        match self.state.load(Relaxed) {
            _ if self.drain.is_draining() => State::Draining,
            0 => State::Initializing,
            1 => State::Live,
            _ => State::Draining,
        }
    }

    /// Workers accept, and the kernel's side is attached.
    pub fn set_live(&self) {
        self.state.store(1, Relaxed);
    }

    /// No new connections from now on; those that are open are served on.
    pub fn set_draining(&self) {
        self.state.store(2, Relaxed);
    }

    /// Worker `index` proves that its loop turns.
    pub fn turned(&self, index: usize) {
        if let Some(turn) = self.turns_ms.get(index) {
            turn.store(self.now_ms(), Relaxed);
        }
    }

    /// The workers whose loop did not turn lately.
    pub fn stalled_workers(&self) -> Vec<usize> {
        let latest_ms = self.now_ms().saturating_sub(u64::try_from(STALL_AFTER.as_millis()).unwrap_or(u64::MAX));
        (0..self.turns_ms.len()).filter(|index| self.turns_ms[*index].load(Relaxed) < latest_ms).collect()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// What one worker has for itself. Lives in an `Rc` on its thread.
pub struct Worker {
    /// 0 for the first.
    pub index: usize,
    /// What all workers see.
    pub shared: Arc<Shared>,
    /// Whose turn it is in each cluster.
    pub balance: Balance,
    /// Connections to endpoints that can be used again.
    pub pools: Pools,
    /// What waits for a time.
    pub timers: Timers,
    /// Ids of requests that came without one.
    pub request_ids: RequestIds,
    /// What time it is for people.
    pub wall: WallClock,
    /// For bytes that are spliced.
    pub pipes: Pipes,
    random: RefCell<SmallRng>,
    scratch: RefCell<Box<[u8]>>,
}

impl Worker {
    /// A worker without connections.
    pub fn new(index: usize, shared: Arc<Shared>) -> Self {
        Self {
            index,
            shared,
            balance: Balance::default(),
            pools: Pools::default(),
            timers: Timers::default(),
            request_ids: RequestIds::default(),
            wall: WallClock::default(),
            pipes: Pipes::default(),
            random: RefCell::new(SmallRng::from_rng(&mut rand::rng())),
            scratch: RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice()),
        }
    }

    /// A random number, for weights and balancing.
    pub fn random(&self) -> u64 {
        self.random.borrow_mut().random()
    }

    /// Lends the scratch buffer for the length of one synchronous step: all connections of the worker share it, so
    /// that an idle connection holds no memory for bytes it does not have.
    pub fn with_scratch<R>(&self, use_it: impl FnOnce(&mut [u8]) -> R) -> R {
        use_it(&mut self.scratch.borrow_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("address")
    }

    #[test]
    fn own_listeners_are_met_by_their_address_or_behind_a_wildcard_by_loopback() {
        let own = OwnListeners::new(vec![address("127.0.0.1:15001"), address("0.0.0.0:15006")]);
        for (to, expected) in [
            ("127.0.0.1:15001", true),
            ("127.0.0.2:15001", false),
            ("127.0.0.2:15006", true),
            ("0.0.0.0:15006", true),
            ("[::1]:15006", false),
            ("10.0.0.1:15006", false),
        ] {
            assert_eq!(own.contains(address(to)), expected, "{to}");
        }
    }
}
