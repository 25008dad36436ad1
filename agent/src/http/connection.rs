//! One client connection that speaks HTTP: the codec, its idle time, its end.
//!
//! Before: the pipeline, which knows the filter chain. After: `service` for each request; and when the codec is
//! done, a tunnel, a polite close, or nothing. The pipeline gets a [`ConnectionEnd`] for its record.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::StatusCode;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::listener::filter::Detected;
use crate::place::Behalf;
use crate::snapshot::Snapshot;
use crate::telemetry::ResponseFlags;
use crate::telemetry::record::ConnectionInfo;
use crate::worker::Worker;

use super::gate::{Gate, Wire};
use super::h1;
use super::h1::server::{Rest, Spoken};
use super::http2;
use super::refusal::Refusal;
use super::tunnel::Tunnel;
use super::{CodecType, ConnectionContext, ConnectionEnd, HttpConnectionManager};

/// How long an HTTP/2 client that was told to end may take to agree.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a connection's requests share.
pub struct Connection {
    /// Who and where.
    pub info: Arc<ConnectionInfo>,
    /// The configuration that it began with.
    pub snapshot: Arc<Snapshot>,
    /// How HTTP is spoken.
    pub manager: Arc<HttpConnectionManager>,
    /// On whose behalf the agent connects to endpoints.
    pub behalf: Behalf,
    /// Whose thread this is.
    pub worker: Rc<Worker>,
    /// What moves on the socket.
    pub wire: Rc<Wire>,
    requests: Cell<u64>,
    active: Cell<u32>,
    idle_since: Cell<Instant>,
    flags: Cell<ResponseFlags>,
    details: RefCell<Option<String>>,
    tunnel: Cell<Option<Box<Tunnel>>>,
    lingers: Cell<bool>,
    cut_off: Cell<bool>,
    closing: Cell<bool>,
    stalled: Cell<bool>,
    patience: Cell<Option<Duration>>,
}

impl Connection {
    fn new(context: ConnectionContext, manager: Arc<HttpConnectionManager>, worker: Rc<Worker>) -> Self {
        let patience = Cell::new(manager.stream_idle_timeout);
        Self {
            info: Arc::new(context.info),
            behalf: context.behalf,
            snapshot: context.snapshot,
            manager,
            worker,
            wire: Rc::default(),
            requests: Cell::new(0),
            active: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            flags: Cell::new(ResponseFlags::NONE),
            details: RefCell::new(None),
            tunnel: Cell::new(None),
            lingers: Cell::new(false),
            cut_off: Cell::new(false),
            closing: Cell::new(false),
            stalled: Cell::new(false),
            patience,
        }
    }

    /// A request began.
    pub fn begin_request(&self) {
        self.requests.set(self.requests.get() + 1);
        self.active.set(self.active.get() + 1);
    }

    /// A request ended, now.
    pub fn end_request(&self, now: Instant) {
        self.active.set(self.active.get() - 1);
        self.idle_since.set(now);
    }

    /// A request was refused.
    pub fn note_refusal(&self, refusal: &Refusal) {
        let stats = &self.manager.stats;
        if refusal.status == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE {
            stats.downstream_rq_too_large.inc();
        }
        if refusal.flags.contains(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR) {
            self.note(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, refusal.details);
        }
    }

    /// What the connection's own record says; the first details stay.
    pub fn note(&self, flags: ResponseFlags, details: impl Into<String>) {
        let mut all = self.flags.get();
        if flags.contains(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR) && !all.contains(flags) {
            self.manager.stats.downstream_cx_protocol_error.inc();
        }
        all.insert(flags);
        self.flags.set(all);
        self.details.borrow_mut().get_or_insert_with(|| details.into());
    }

    /// The connection is given to `tunnel` when the codec is done with it.
    pub fn prepare_tunnel(&self, tunnel: Tunnel) {
        self.manager.stats.downstream_cx_upgrades_total.inc();
        self.tunnel.set(Some(Box::new(tunnel)));
    }

    /// The client may still be sending when the connection is closed.
    pub fn linger(&self) {
        self.lingers.set(true);
    }

    /// Whether the client may still be sending.
    pub fn lingers(&self) -> bool {
        self.lingers.get()
    }

    /// The tunnel that the connection is to become.
    pub fn take_tunnel(&self) -> Option<Box<Tunnel>> {
        self.tunnel.take()
    }

    /// A response was cut off whose end is the connection's.
    pub fn cut_off(&self) {
        self.cut_off.set(true);
    }

    /// Whether a response was cut off whose end is the connection's.
    pub fn is_cut_off(&self) -> bool {
        self.cut_off.get()
    }

    /// Since when no request was in flight, if none is.
    pub fn idle_since(&self) -> Instant {
        self.idle_since.get()
    }

    /// The agent is closing everything, and does not wait for this connection any longer.
    pub fn force_closed(&self) {
        self.closing.set(true);
        self.note(ResponseFlags::LOCAL_RESET, "drain_timeout");
    }

    /// Until when the client has to take some of what is there for it.
    pub fn reader_deadline(&self) -> Option<Instant> {
        self.wire.blocked_since().zip(self.patience.get()).map(|(since, patience)| since + patience)
    }

    /// The client has taken nothing for too long.
    pub fn give_up_reader(&self) {
        self.stalled.set(true);
        self.note(ResponseFlags::STREAM_IDLE_TIMEOUT, "stream_idle_timeout");
    }

    /// Whether the agent is closing everything.
    pub fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// How long the client may take nothing of a response, by the route of the request. Of several at once the most
    /// patient counts.
    pub fn wait_for_reader(&self, limit: Option<Duration>) {
        let others = if self.active.get() > 1 { self.patience.get() } else { limit };
        self.patience.set(limit.zip(others).map(|(one, other)| one.max(other)));
    }

    /// Whether the connection is given up because the client does not read.
    pub fn is_stalled(&self) -> bool {
        self.stalled.get()
    }

    /// Resolves when there is no point in waiting for the client any longer.
    pub async fn abandoned(&self) {
        let silent = async {
            self.idle().await;
            // The codec has been told to end; an HTTP/2 client has to agree, and may never do so.
            loop {
                tokio::time::sleep(FAREWELL).await;
                if self.active.get() == 0 && !self.wire.is_blocked() {
                    return;
                }
            }
        };
        tokio::select! {
            () = self.wire.blocks(|| self.patience.get()) => {
                self.give_up_reader();
            }
            () = silent => {}
        }
    }

    /// Resolves when no request was in flight for the idle timeout.
    pub async fn idle(&self) {
        let Some(timeout) = self.manager.idle_timeout else { return std::future::pending().await };
        loop {
            let deadline = match self.active.get() {
                0 => self.idle_since.get() + timeout,
                _ => Instant::now() + timeout,
            };
            if deadline <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(deadline).await;
        }
    }

    fn end(&self) -> ConnectionEnd {
        ConnectionEnd {
            flags: self.flags.get(),
            details: self.details.borrow_mut().take(),
            requests: self.requests.get(),
            bytes_received: self.wire.received.get(),
            bytes_sent: self.wire.sent.get(),
        }
    }
}

/// Serves a client's connection until it ends.
pub async fn serve(
    stream: TcpStream,
    context: ConnectionContext,
    manager: Arc<HttpConnectionManager>,
    worker: Rc<Worker>,
) -> ConnectionEnd {
    Serving::new(stream, context, manager, worker).run().await
}

/// A client's connection that is about to be served. It is made apart from the future that serves it: what a future is
/// given it holds twice.
pub struct Serving {
    connection: Rc<Connection>,
    begins: Begins,
}

/// How a connection begins.
enum Begins {
    /// With HTTP/1, perhaps; until it is over.
    Http1(Option<h1::server::Server>),
    /// With HTTP/2; until it is begun.
    Http2(Option<TcpStream>),
}

impl Serving {
    /// Chooses the codec.
    pub fn new(
        stream: TcpStream,
        context: ConnectionContext,
        manager: Arc<HttpConnectionManager>,
        worker: Rc<Worker>,
    ) -> Self {
        let detected = context.detected;
        let connection = Rc::new(Connection::new(context, manager, worker));
        let spoken = match (connection.manager.codec_type, detected) {
            (CodecType::Http2, _) | (CodecType::Auto, Some(Detected::H2c)) => None,
            (CodecType::Http1, _) | (CodecType::Auto, Some(Detected::Http10 | Detected::Http11)) => Some(Spoken::Http1),
            (CodecType::Auto, Some(Detected::Tls) | None) => Some(Spoken::Either),
        };
        let begins = match spoken {
            Some(spoken) => Begins::Http1(Some(h1::server::Server::new(&connection, stream, spoken))),
            None => Begins::Http2(Some(stream)),
        };
        Self { connection, begins }
    }

    /// On whose behalf it is served.
    pub fn behalf(&self) -> &Behalf {
        &self.connection.behalf
    }

    /// Serves the connection until it ends.
    pub async fn run(&mut self) -> ConnectionEnd {
        let connection = &self.connection;
        let rest = match &mut self.begins {
            Begins::Http1(server) => match server.as_mut() {
                Some(running) => {
                    let conclusion = running.run().await;
                    server.take().map_or(Rest::Nothing, |server| server.rest(conclusion))
                }
                None => Rest::Nothing,
            },
            Begins::Http2(stream) => stream.take().map_or(Rest::Nothing, |stream| Rest::Http2(stream, BytesMut::new())),
        };
        // Of a connection that only waits for requests, this future would be the largest part.
        if !matches!(rest, Rest::Nothing) {
            Box::pin(finish(connection, rest)).await;
        }
        connection.end()
    }
}

/// What comes when no more HTTP/1 requests do.
async fn finish(connection: &Rc<Connection>, rest: Rest) {
    match rest {
        Rest::Nothing => {}
        Rest::Linger(lingering) => unless_forced(connection, lingering).await,
        Rest::Http2(stream, first) => unless_forced(connection, http2::serve(connection, stream, first)).await,
        Rest::Tunnel(stream, first, tunnel) => {
            let gate = Gate::new(stream, BytesMut::new(), connection.wire.clone());
            unless_forced(connection, tunnel.run(gate, first)).await;
        }
    }
}

/// `served`, unless the agent closes everything first.
async fn unless_forced(connection: &Connection, served: impl Future<Output = ()>) {
    let drain = connection.worker.shared.drain.clone();
    tokio::select! {
        () = served => {}
        () = drain.closing() => connection.force_closed(),
    }
}
