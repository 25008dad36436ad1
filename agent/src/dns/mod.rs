//! DNS questions of the clients, answered by the agent: from its cache, else by the configured resolvers or by the one that
//! was asked.
//!
//! Before: the hooks of UDP sockets, which send questions here and know which resolver each was meant for. After: the
//! resolvers. Questions over TCP are connections like any others and do not come here.
//!
//! One thread serves all places, with the cache and the questions under way for itself, so that none of it is locked. It
//! proves that its loop turns as workers do: when it hangs, the hooks leave questions alone.

mod cache;
mod serve;
mod socket;
mod upstream;
mod wire;
#[cfg(test)]
mod wire_samples;

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::{LocalSet, spawn_local};

use crate::kernel::KernelError;
use crate::place::Place;
use crate::server::Ports;
use crate::worker::{Shared, TICK_INTERVAL};

pub use cache::CacheLimits;
pub use wire::KeepLimits;

use serve::{Door, Responder};
use socket::Bound;

/// Ports in a row that the agent needs in each network namespace, from the configured one on.
pub const PORTS: u16 = 8;

const _: () = assert!(PORTS as u32 == waylay_common::dns::V6_SLOTS);

/// How DNS questions are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsOptions {
    /// Where the agent itself can be asked, from its own host or from within a place; its port is the one that questions
    /// are redirected to.
    pub address: SocketAddrV4,
    /// Who is asked, in this order; empty: the resolver that the client asked.
    pub upstreams: Vec<SocketAddr>,
    /// Of one try.
    pub timeout: Duration,
    /// Tries with each resolver.
    pub attempts: u32,
    /// How much is kept.
    pub cache: CacheLimits,
    /// How long.
    pub keep: KeepLimits,
    /// Questions of one place that wait for an answer at once; more are answered SERVFAIL.
    pub max_pending: usize,
}

/// Why the questions of a place are not answered.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// No sockets.
    #[error("dns cannot listen on UDP ports {first} to {} in the network namespace of {place}: {remedy}", first + PORTS - 1)]
    Bind {
        /// The first.
        first: u16,
        /// Whose.
        place: String,
        /// What to do.
        remedy: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The thread cannot watch the sockets, or is gone.
    #[error("watching the sockets for DNS questions")]
    Listen(#[source] io::Error),
    /// See the source.
    #[error("taking DNS questions")]
    Kernel(#[from] KernelError),
}

enum Command {
    Open { place: Arc<Place>, netns_cookie: u64, bound: Bound, done: oneshot::Sender<io::Result<()>> },
    Close { place: u64, done: oneshot::Sender<()> },
    End,
}

/// Opens and closes places for questions. Cheap to clone.
#[derive(Clone)]
pub struct DnsListener {
    commands: mpsc::UnboundedSender<Command>,
    shared: Arc<Shared>,
    ports: Ports,
}

impl DnsListener {
    /// Answers the questions of `place` from now on: opens sockets in it, then asks the hooks to send questions there.
    /// Does nothing when nothing is intercepted.
    ///
    /// # Errors
    /// The place has no room for the sockets, or the kernel's maps none for the place; its questions go to their resolvers.
    pub async fn open(&self, place: &Arc<Place>) -> Result<(), DnsError> {
        let snapshot = self.shared.snapshot.load_full();
        let (Some(options), Some(kernel)) = (&snapshot.dns, self.shared.kernel()) else { return Ok(()) };
        let port = if self.ports == Ports::Ephemeral { 0 } else { options.address.port() };
        let failed = |source: io::Error| DnsError::Bind {
            first: options.address.port(),
            place: place.workload().map_or_else(|| "the agent".to_owned(), |workload| workload.to_string()),
            remedy: match source.kind() {
                io::ErrorKind::AddrInUse => "another process uses one of them: stop it, or choose another dns.address",
                io::ErrorKind::PermissionDenied => {
                    "ports below 1024 need CAP_NET_BIND_SERVICE: choose another dns.address"
                }
                _ => "the system refused",
            },
            source,
        };
        let bound = place.run(move || socket::bind(port)).await.and_then(|bound| bound).map_err(failed)?;
        let netns_cookie = if place.netns().is_some() { place.id() } else { kernel.netns_cookie() };
        let (port, has_v6) = (bound.port, bound.has_v6());
        let (done, answer) = oneshot::channel();
        let open = Command::Open { place: place.clone(), netns_cookie, bound, done };
        let gone = || DnsError::Listen(io::Error::other("the thread for DNS is gone"));
        self.commands.send(open).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?.map_err(DnsError::Listen)?;
        if let Err(error) = kernel.take_questions(netns_cookie, port, has_v6) {
            self.close(place).await;
            return Err(error.into());
        }
        tracing::debug!(port, place = place.id(), "answering DNS questions");
        Ok(())
    }

    /// Answers no more questions of `place`: they go to their resolvers, and its sockets are closed.
    pub async fn close(&self, place: &Place) {
        if let Some(kernel) = self.shared.kernel() {
            let netns_cookie = if place.netns().is_some() { place.id() } else { kernel.netns_cookie() };
            if let Err(error) = kernel.leave_questions(netns_cookie) {
                tracing::error!(%error, place = place.id(), "DNS questions of a place that is closed are still redirected");
            }
        }
        let (done, answer) = oneshot::channel();
        // A thread that is gone has closed everything.
        let _ = self.commands.send(Command::Close { place: place.id(), done });
        let _ = answer.await;
    }
}

/// The thread that answers.
pub struct DnsThread {
    listener: DnsListener,
    thread: JoinHandle<()>,
}

impl DnsThread {
    /// Starts it; it proves that it turns as worker `index`.
    ///
    /// # Errors
    /// No thread or no runtime to be had.
    pub fn start(index: usize, shared: Arc<Shared>, ports: Ports) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (commands, inbox) = mpsc::unbounded_channel();
        // The first heartbeat does not wait for the thread to be scheduled.
        shared.turned(index);
        let listener = DnsListener { commands, shared: shared.clone(), ports };
        let thread = std::thread::Builder::new().name("waylay-dns".to_owned()).spawn(move || {
            LocalSet::new().block_on(&runtime, run(index, shared, inbox));
        })?;
        Ok(Self { listener, thread })
    }

    /// Opens and closes places.
    pub fn listener(&self) -> &DnsListener {
        &self.listener
    }

    /// Ends it, with whatever still waits for an answer.
    pub fn end(self) {
        let _ = self.listener.commands.send(Command::End);
        if self.thread.join().is_err() {
            tracing::error!("the thread for DNS panicked");
        }
    }
}

async fn run(index: usize, shared: Arc<Shared>, mut inbox: mpsc::UnboundedReceiver<Command>) {
    spawn_local(tick(index, shared.clone()));
    let responder = Rc::new(Responder::new(shared));
    let mut doors: HashMap<u64, Rc<Door>> = HashMap::new();
    while let Some(command) = inbox.recv().await {
        match command {
            Command::Open { place, netns_cookie, bound, done } => {
                let id = place.id();
                let opened = Door::open(place, netns_cookie, bound, &responder);
                // Whoever asked may have left.
                let _ = done.send(opened.map(|door| {
                    if let Some(old) = doors.insert(id, door) {
                        old.close(&responder);
                    }
                }));
            }
            Command::Close { place, done } => {
                if let Some(door) = doors.remove(&place) {
                    door.close(&responder);
                }
                let _ = done.send(());
            }
            Command::End => return,
        }
    }
}

async fn tick(index: usize, shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(TICK_INTERVAL);
    loop {
        ticks.tick().await;
        shared.turned(index);
    }
}
