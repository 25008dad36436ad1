//! A worker's thread: its runtime, its accept loops, its proof that the loop turns.
//!
//! Before: the main thread, which bound the sockets. After: [`crate::pipeline::serve`], one task for each connection.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_local;

use crate::addr::ClientAddr;
use crate::listener::{Listener, TrafficDirection};
use crate::pipeline::{self, Accepted};
use crate::place::Place;
use crate::snapshot::Snapshot;
use crate::tcp::reset_on_drop;
use crate::worker::{Shared, TICK_INTERVAL, Worker};

/// Connections accepted in one go before those already there get their turn.
const ACCEPT_BATCH: u32 = 16;

/// The pause after an accept that failed for want of file descriptors or memory: they come back when connections
/// close, and until then trying is only work.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// What the main thread tells a worker.
#[derive(Debug)]
enum Command {
    /// Accept from these, the sockets of the listener `key` in `place`; answered when it does.
    Listen { place: Arc<Place>, key: SocketAddr, sockets: Vec<StdListener>, done: oneshot::Sender<()> },
    /// Serve what is in the accept queue of the listener `key` in a place and close it; answered when it is closed.
    Close { place: u64, key: SocketAddr, done: oneshot::Sender<()> },
    /// End, with whatever is still open.
    End,
}

/// The main thread's end of a worker.
#[derive(Debug)]
pub struct WorkerThread {
    commands: mpsc::UnboundedSender<Command>,
    thread: JoinHandle<()>,
}

impl WorkerThread {
    /// Starts worker `index`.
    ///
    /// # Errors
    /// No thread or no runtime to be had.
    pub fn start(index: usize, shared: Arc<Shared>) -> io::Result<Self> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (built, outcome) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name(format!("waylay-worker-{index}")).spawn(move || {
            // A runtime that runs local tasks itself cannot leave its thread.
            let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => return drop(built.send(Err(error))),
            };
            // Whoever started this thread waits for it.
            let _ = built.send(Ok(()));
            let worker = Rc::new(Worker::new(index, shared));
            runtime.block_on(run(worker, inbox));
        })?;
        outcome.recv().unwrap_or_else(|_| Err(io::Error::other("the worker's thread ended before it began")))?;
        Ok(Self { commands, thread })
    }

    /// Accepts from `sockets`; returns when it does.
    pub async fn listen(&self, place: Arc<Place>, key: SocketAddr, sockets: Vec<StdListener>) {
        let (done, answer) = oneshot::channel();
        // A worker that is gone answers with an error, which is as good an answer as any: there is nobody to accept.
        let _ = self.commands.send(Command::Listen { place, key, sockets, done });
        let _ = answer.await;
    }

    /// Stops accepting for the listener `key`; returns when its sockets are closed.
    pub async fn close(&self, place: &Place, key: SocketAddr) {
        let (done, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Close { place: place.id(), key, done });
        let _ = answer.await;
    }

    /// Ends the worker: closes everything it still has, and waits for its thread.
    pub fn end(self) {
        let _ = self.commands.send(Command::End);
        if self.thread.join().is_err() {
            tracing::error!("a worker panicked");
        }
    }
}

/// The accept loops of one listener.
struct Accepting {
    stop: watch::Sender<()>,
    loops: Vec<tokio::task::JoinHandle<()>>,
}

async fn run(worker: Rc<Worker>, mut inbox: mpsc::UnboundedReceiver<Command>) {
    spawn_local(tick(worker.clone()));
    let mut accepting: HashMap<(u64, SocketAddr), Accepting> = HashMap::new();
    while let Some(command) = inbox.recv().await {
        match command {
            Command::Listen { place, key, sockets, done } => {
                let (stop, _) = watch::channel(());
                let loops = sockets
                    .into_iter()
                    .map(|socket| spawn_local(accept(socket, key, place.clone(), worker.clone(), stop.subscribe())))
                    .collect();
                accepting.insert((place.id(), key), Accepting { stop, loops });
                let _ = done.send(());
            }
            Command::Close { place, key, done } => {
                if let Some(Accepting { stop, loops }) = accepting.remove(&(place, key)) {
                    drop(stop);
                    for accept_loop in loops {
                        let _ = accept_loop.await;
                    }
                }
                let _ = done.send(());
            }
            Command::End => return,
        }
    }
}

/// Proves that the loop turns: the main thread keeps the kernel's heartbeat going only while all workers do.
async fn tick(worker: Rc<Worker>) {
    let mut ticks = tokio::time::interval(TICK_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        worker.shared.turned(worker.index);
    }
}

/// Accepts until `stop` is dropped, then serves what is left in the accept queue: those clients are connected already.
async fn accept(
    socket: StdListener,
    key: SocketAddr,
    place: Arc<Place>,
    worker: Rc<Worker>,
    mut stop: watch::Receiver<()>,
) {
    let listener = match TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, address = %key, "the worker cannot watch a listening socket");
            return;
        }
    };
    let own = own_address(&listener);
    let mut batch = 0;
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.changed() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => begin(stream, client, key, own, &place, &worker),
            Err(error) => failed(&error, key, &worker).await,
        }
        batch += 1;
        if batch == ACCEPT_BATCH {
            batch = 0;
            tokio::task::yield_now().await;
        }
    }
    if let Ok(listener) = listener.into_std() {
        while let Ok((stream, client)) = listener.accept() {
            match into_tokio(stream) {
                Ok(stream) => begin(stream, client, key, own, &place, &worker),
                Err(error) => tracing::warn!(%error, "a connection in the accept queue is lost"),
            }
        }
    }
}

/// The address that connections to `listener` have at this end, unless it is any address of the host.
fn own_address(listener: &TcpListener) -> Option<SocketAddr> {
    listener.local_addr().ok().filter(|address| !address.ip().is_unspecified())
}

fn into_tokio(stream: StdStream) -> io::Result<TcpStream> {
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

/// Starts to serve a connection with the configuration of this moment.
fn begin(
    stream: TcpStream,
    client: SocketAddr,
    key: SocketAddr,
    own: Option<SocketAddr>,
    place: &Arc<Place>,
    worker: &Rc<Worker>,
) {
    let snapshot = worker.shared.snapshot.load_full();
    let Some(listener) = listener(&snapshot, key) else {
        // The configuration without the listener is in force, and its socket about to be closed.
        reset_on_drop(&stream);
        return;
    };
    let local = match (own, listener.direction) {
        (Some(own), TrafficDirection::Outbound) => own,
        // The kernel gives what arrives to this socket whatever its address is. It fails when the connection is gone.
        _ => stream.local_addr().unwrap_or(key),
    };
    let open = worker.shared.drain.open();
    let accepted =
        Accepted { stream, client: ClientAddr::new(client), local, place: place.clone(), listener, snapshot, open };
    spawn_local(pipeline::serve(accepted, worker.clone()));
}

fn listener(snapshot: &Snapshot, key: SocketAddr) -> Option<Arc<Listener>> {
    snapshot.listeners.bound_at(key).cloned()
}

/// Some errors are the connection's, which was gone before it was accepted; the others would repeat at once.
async fn failed(error: &io::Error, key: SocketAddr, worker: &Worker) {
    let code = error.raw_os_error().map(Errno::from_raw);
    if matches!(code, Some(Errno::ECONNABORTED | Errno::EINTR | Errno::EPROTO | Errno::EPERM)) {
        return;
    }
    if let Some(listener) = listener(&worker.shared.snapshot.load(), key) {
        listener.stats.downstream_cx_accept_error.inc();
    }
    tracing::debug!(%error, address = %key, "accepting");
    tokio::time::sleep(ACCEPT_BACKOFF).await;
}
