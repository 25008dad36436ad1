//! A worker: one thread with its own runtime, listening sockets and upstream pools. Nothing on the data path is shared
//! between workers but what [`Shared`] holds.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::cluster::balance::Balance;
use crate::drain::Drain;
use crate::http::pool::Pools;
use crate::kernel::Kernel;
use crate::snapshot::{Runtime, Snapshot};
use crate::telemetry::record::RecordSink;

/// What all workers see.
pub struct Shared {
    /// The configuration now.
    pub snapshot: ArcSwap<Snapshot>,
    /// What outlives it.
    pub runtime: Runtime,
    /// The kernel's side; `None` when nothing is intercepted.
    pub kernel: Option<Kernel>,
    /// Where records go.
    pub records: Arc<dyn RecordSink>,
    /// When to stop.
    pub drain: Drain,
    /// Of the next connection.
    pub next_connection_id: AtomicU64,
}

impl Shared {
    /// An id no other connection of this agent has.
    pub fn connection_id(&self) -> u64 {
        self.next_connection_id.fetch_add(1, Relaxed)
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
    random: RefCell<SmallRng>,
}

impl Worker {
    /// A worker without connections.
    pub fn new(index: usize, shared: Arc<Shared>) -> Self {
        let random = RefCell::new(SmallRng::from_rng(&mut rand::rng()));
        Self { index, shared, balance: Balance::default(), pools: Pools::default(), random }
    }

    /// A random number, for weights and balancing.
    pub fn random(&self) -> u64 {
        self.random.borrow_mut().random()
    }
}
