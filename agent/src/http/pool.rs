//! Connections to endpoints that are open already: one pool for each worker.
//!
//! Before: `upstream`, which asks here first. HTTP/1 connections carry one request at a time and are used again in
//! LIFO order, so that those which are not needed grow old and are closed; HTTP/2 connections are shared. The runtime hears
//! of the endpoint closing one, so a dead connection is noticed before it is used, unless the close and the request cross
//! on the wire: that race is the router's to mend.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http2;
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::cluster::endpoint::Endpoint;
use crate::listener::TrafficDirection;
use crate::place::{Behalf, Place};

use super::h1::client::Connection;
use super::request_body::RequestBody;
use super::upstream_io::Traffic;

/// Idle HTTP/1 connections to one endpoint: above it, the oldest is closed. The circuit breaker's default for
/// connections of a whole cluster is 1024.
const MAX_IDLE_PER_ENDPOINT: usize = 1024;

/// Streams on one HTTP/2 connection before another is opened: the least that RFC 9113 section 6.5.2 recommends to allow.
const MAX_STREAMS: u32 = 100;

/// How often idle connections are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Larger buffers are not kept, in bytes.
const MAX_OUTPUT_BYTES: usize = 64 * 1024;

/// What is spoken with an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// One request at a time.
    Http1,
    /// Many.
    Http2,
}

/// An HTTP/2 connection, shared by requests.
pub struct Http2Connection {
    /// Sends a request.
    pub sender: http2::SendRequest<RequestBody>,
    /// What moved on it.
    pub traffic: Rc<Traffic>,
    served: Cell<u32>,
    streams: Cell<u32>,
    idle_since: Cell<Instant>,
}

impl Http2Connection {
    /// A new connection.
    pub fn new(sender: http2::SendRequest<RequestBody>, traffic: Rc<Traffic>) -> Self {
        let idle_since = Cell::new(Instant::now());
        Self { sender, traffic, served: Cell::new(0), streams: Cell::new(0), idle_since }
    }

    fn takes_more(&self, cluster: &Cluster) -> bool {
        let worn_out = cluster.max_requests_per_connection.is_some_and(|max| self.served.get() >= max);
        !self.sender.is_closed() && !worn_out && self.streams.get() < MAX_STREAMS
    }
}

/// One request's use of an HTTP/2 connection.
pub struct Stream(pub Rc<Http2Connection>);

impl Stream {
    /// Counts as used until it is dropped.
    pub fn new(connection: Rc<Http2Connection>) -> Self {
        connection.streams.set(connection.streams.get() + 1);
        connection.served.set(connection.served.get() + 1);
        Self(connection)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
        self.0.idle_since.set(Instant::now());
    }
}

struct Idle {
    connection: Connection,
    since: Instant,
}

struct Host {
    place: Arc<Place>,
    // Keeps the address, by which the host is found, from being given to another endpoint.
    _endpoint: Arc<Endpoint>,
    cluster: Arc<Cluster>,
    /// The one used last is at the end.
    idle: Vec<Idle>,
    shared: Vec<Rc<Http2Connection>>,
    /// Held while an HTTP/2 connection is being opened, so that requests wait for that one.
    opening: Rc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct Inner {
    hosts: HashMap<Key, Host, BuildHasherDefault<Spread>>,
    sweeping: bool,
    output: Vec<u8>,
}

/// All of a worker's connections that can be used again.
#[derive(Clone, Default)]
pub struct Pools(Rc<RefCell<Inner>>);

/// Whose: an address is another machine's in another network namespace. And what was opened for the one direction is not
/// for the other: a connection from a pod to an address of its own leads to the agent's inbound side, one of the inbound
/// side itself to the application.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    /// Its address in memory, which [`Host`] keeps from being given to another one.
    endpoint: usize,
    place: u64,
    direction: TrafficDirection,
}

impl Key {
    fn new(behalf: &Behalf, endpoint: &Arc<Endpoint>) -> Self {
        let endpoint = Arc::as_ptr(endpoint).addr();
        Self { endpoint, place: behalf.place.id(), direction: behalf.direction }
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.endpoint as u64 ^ self.place.rotate_left(24) ^ self.direction as u64);
    }
}

/// Spreads a [`Key`]'s one number, which no peer chooses.
#[derive(Clone, Copy, Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        // Fibonacci hashing: 2^64 divided by the golden ratio. The table takes its bits from both ends.
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Pools {
    /// A free HTTP/1 connection to `endpoint`.
    pub fn take_http1(&self, behalf: &Behalf, endpoint: &Arc<Endpoint>) -> Option<Connection> {
        let mut inner = self.0.borrow_mut();
        let host = inner.hosts.get_mut(&Key::new(behalf, endpoint))?;
        while let Some(idle) = host.idle.pop() {
            if idle.connection.is_quiet() {
                return Some(idle.connection);
            }
        }
        None
    }

    /// Gives a connection back after its response was read to the end, which was at `since`.
    pub fn put_http1(
        &self,
        behalf: &Behalf,
        cluster: &Arc<Cluster>,
        endpoint: &Arc<Endpoint>,
        connection: Connection,
        since: Instant,
    ) {
        let worn_out = cluster.max_requests_per_connection.is_some_and(|max| connection.served >= max);
        if worn_out || !connection.is_quiet() || behalf.place.is_gone() {
            return;
        }
        let mut inner = self.0.borrow_mut();
        let host = inner.host(behalf, cluster, endpoint);
        if host.idle.len() >= MAX_IDLE_PER_ENDPOINT {
            host.idle.remove(0);
        }
        host.idle.push(Idle { connection, since });
        self.sweep(&mut inner);
    }

    /// A stream on an HTTP/2 connection to `endpoint` that has room.
    pub fn take_http2(&self, behalf: &Behalf, cluster: &Cluster, endpoint: &Arc<Endpoint>) -> Option<Stream> {
        let mut inner = self.0.borrow_mut();
        let host = inner.hosts.get_mut(&Key::new(behalf, endpoint))?;
        host.shared.retain(|connection| !connection.sender.is_closed());
        let connection = host.shared.iter().find(|connection| connection.takes_more(cluster))?;
        Some(Stream::new(connection.clone()))
    }

    /// Shares a new connection.
    pub fn share_http2(
        &self,
        behalf: &Behalf,
        cluster: &Arc<Cluster>,
        endpoint: &Arc<Endpoint>,
        connection: &Rc<Http2Connection>,
    ) {
        let mut inner = self.0.borrow_mut();
        inner.host(behalf, cluster, endpoint).shared.push(connection.clone());
        self.sweep(&mut inner);
    }

    /// To be held while a new HTTP/2 connection to `endpoint` is opened.
    pub fn opening(
        &self,
        behalf: &Behalf,
        cluster: &Arc<Cluster>,
        endpoint: &Arc<Endpoint>,
    ) -> Rc<tokio::sync::Mutex<()>> {
        self.0.borrow_mut().host(behalf, cluster, endpoint).opening.clone()
    }

    /// Closes the connection of `cluster` that was idle longest, to make room under the circuit breaker's limit.
    pub fn close_oldest(&self, cluster: &Cluster) -> bool {
        let mut inner = self.0.borrow_mut();
        let hosts = inner.hosts.values_mut().filter(|host| host.cluster.name == cluster.name && !host.idle.is_empty());
        let oldest = hosts.min_by_key(|host| host.idle[0].since);
        oldest.is_some_and(|host| {
            host.idle.remove(0);
            true
        })
    }

    /// How many connections are kept.
    pub fn len(&self) -> usize {
        self.0.borrow().hosts.values().map(|host| host.idle.len() + host.shared.len()).sum()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An empty buffer to write a head into. While it is out, others get one without memory.
    pub fn output(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.borrow_mut().output)
    }

    /// Gives the buffer back.
    pub fn keep_output(&self, mut output: Vec<u8>) {
        if (1..=MAX_OUTPUT_BYTES).contains(&output.capacity()) {
            output.clear();
            self.0.borrow_mut().output = output;
        }
    }

    /// Sees to it that idle connections are closed in time.
    fn sweep(&self, inner: &mut Inner) {
        if !std::mem::replace(&mut inner.sweeping, true) {
            tokio::task::spawn_local(sweep(Rc::downgrade(&self.0)));
        }
    }
}

impl Inner {
    fn host(&mut self, behalf: &Behalf, cluster: &Arc<Cluster>, endpoint: &Arc<Endpoint>) -> &mut Host {
        let host = self.hosts.entry(Key::new(behalf, endpoint)).or_insert_with(|| Host {
            place: behalf.place.clone(),
            _endpoint: endpoint.clone(),
            cluster: cluster.clone(),
            idle: Vec::new(),
            shared: Vec::new(),
            opening: Rc::default(),
        });
        if !Arc::ptr_eq(&host.cluster, cluster) {
            host.cluster = cluster.clone();
        }
        host
    }

    fn close_idle(&mut self, now: Instant) {
        self.hosts.retain(|_, host| {
            // Its sockets would keep the namespace alive.
            if host.place.is_gone() {
                return false;
            }
            let timeout = host.cluster.idle_timeout;
            let expired = |since: Instant| timeout.is_some_and(|timeout| now.duration_since(since) >= timeout);
            let stats = &host.cluster.stats;
            host.idle.retain(|idle| {
                let keep = !expired(idle.since);
                let quiet = idle.connection.is_quiet();
                if !keep && quiet {
                    stats.upstream_cx_idle_timeout.inc();
                }
                keep && quiet
            });
            host.shared.retain(|connection| {
                let keep = connection.streams.get() > 0 || !expired(connection.idle_since.get());
                if !keep && !connection.sender.is_closed() {
                    stats.upstream_cx_idle_timeout.inc();
                }
                keep && !connection.sender.is_closed()
            });
            !host.idle.is_empty() || !host.shared.is_empty() || Rc::strong_count(&host.opening) > 1
        });
    }
}

/// Closes what was idle for too long, until nothing is left or the worker is gone.
async fn sweep(pools: Weak<RefCell<Inner>>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let Some(pools) = pools.upgrade() else { return };
        let mut inner = pools.borrow_mut();
        inner.close_idle(Instant::now());
        if inner.hosts.is_empty() {
            inner.sweeping = false;
            return;
        }
    }
}
