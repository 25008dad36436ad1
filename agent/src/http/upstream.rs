//! One try: a request sent to one endpoint, until the response's headers are there.
//!
//! Before: [`super::router`], which chose the endpoint. After: the response, with a [`Ticket`] that gives the connection
//! back when the body is read. An error says what became of the request, so that the router can judge whether another try
//! is safe; nothing is judged here.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::cluster::breaker::Permit;
use crate::cluster::connect::{ConnectError, FirstWord, Upstream, connect};
use crate::cluster::endpoint::Endpoint;
use crate::place::Behalf;
use crate::worker::Worker;

use super::codec_body::Upstream as UpstreamBody;
use super::h1::client::{Call, CallError, Connection, Sending};
use super::h1::encode::{self, Framing, Length};
use super::pool::{Pools, Protocol, Stream};
use super::request_body::RequestBody;
use super::upstream_io;

/// A request as it leaves the agent, for any number of tries.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The method.
    pub method: Method,
    /// The path, rewritten.
    pub path: PathAndQuery,
    /// End-to-end headers; `host` is the authority.
    pub headers: HeaderMap,
    /// The `upgrade` header, when the connection is to be handed over.
    pub upgrade: Option<HeaderValue>,
}

/// What went wrong with a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The connection could not be opened.
    ConnectFailed,
    /// The connection was not open in time.
    ConnectTimeout,
    /// A circuit breaker refused.
    Overflow,
    /// The connection was gone, or going, before the endpoint looked at the request.
    NotSent,
    /// The connection ended before the response's headers.
    Terminated,
    /// The endpoint reset the stream.
    RemoteReset,
    /// The endpoint says that it did not look at the request.
    RefusedStream,
    /// The endpoint does not speak the protocol.
    Protocol,
    /// The try took too long.
    PerTryTimeout,
    /// The request's own body failed.
    Request,
}

/// Why a try came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What went wrong.
    pub kind: FailureKind,
    /// On a connection that had served before, and that stayed silent: most likely the endpoint closed it just then.
    pub stale: bool,
}

impl From<FailureKind> for Failure {
    fn from(kind: FailureKind) -> Self {
        Self { kind, stale: false }
    }
}

/// A response's head, and what is needed to read and end it.
pub struct Answer {
    /// Head and body.
    pub response: Response<UpstreamBody>,
    /// To be finished with the body.
    pub ticket: Ticket,
}

/// A request in flight to one endpoint: counted until it is dropped.
pub struct Ticket {
    pools: Pools,
    behalf: Behalf,
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    // Counts the request as one of its HTTP/2 connection's.
    stream: Option<Stream>,
    began: Instant,
    // When it was finished.
    ended: Option<Instant>,
    // Counts the request as in flight to the cluster.
    _permit: Permit,
}

impl Ticket {
    /// `None` when the circuit breaker refuses.
    fn new(pools: &Pools, behalf: &Behalf, cluster: &Arc<Cluster>, endpoint: &Arc<Endpoint>) -> Option<Self> {
        let permit = cluster.try_request()?;
        cluster.stats.upstream_rq_total.inc();
        endpoint.stats.rq_total.inc();
        endpoint.stats.rq_active.inc();
        Some(Self {
            pools: pools.clone(),
            behalf: behalf.clone(),
            cluster: cluster.clone(),
            endpoint: endpoint.clone(),
            stream: None,
            began: Instant::now(),
            ended: None,
            _permit: permit,
        })
    }

    /// How long ago the try began.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// The response was read to its end: the connection is free, unless the request is still being sent.
    pub fn finish(mut self, body: &mut UpstreamBody) {
        let now = Instant::now();
        self.ended = Some(now);
        if let Some(connection) = body.release() {
            self.pools.put_http1(&self.behalf, &self.cluster, &self.endpoint, connection, now);
        }
    }

    /// The response was cut off by the endpoint.
    pub fn note_reset(&self) {
        self.cluster.stats.upstream_rq_rx_reset.inc();
        self.endpoint.stats.rq_error.inc();
    }

    /// The route's timeout passed.
    pub fn note_timeout(&self) {
        self.cluster.stats.upstream_rq_timeout.inc();
        self.endpoint.stats.rq_timeout.inc();
    }

    fn note_status(&self, status: StatusCode) {
        let stats = &self.cluster.stats;
        match status.as_u16() / 100 {
            1 => stats.upstream_rq_1xx.inc(),
            2 => stats.upstream_rq_2xx.inc(),
            3 => stats.upstream_rq_3xx.inc(),
            4 => stats.upstream_rq_4xx.inc(),
            _ => stats.upstream_rq_5xx.inc(),
        }
        let error = status.is_server_error();
        if error { &self.endpoint.stats.rq_error } else { &self.endpoint.stats.rq_success }.inc();
    }

    fn note_failure(&self, kind: FailureKind) {
        // A full circuit breaker and a client that broke off are none of the endpoint's errors.
        if !matches!(kind, FailureKind::Overflow | FailureKind::Request) {
            self.endpoint.stats.rq_error.inc();
        }
        match kind {
            FailureKind::Request | FailureKind::PerTryTimeout => self.cluster.stats.upstream_rq_tx_reset.inc(),
            FailureKind::Terminated | FailureKind::RemoteReset | FailureKind::RefusedStream | FailureKind::Protocol => {
                self.cluster.stats.upstream_rq_rx_reset.inc();
            }
            _ => {}
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let ended = self.ended.unwrap_or_else(Instant::now);
        self.cluster.stats.upstream_rq_time.observe(ended.saturating_duration_since(self.began));
        self.endpoint.stats.rq_active.dec();
    }
}

/// Sends `outgoing` to `endpoint`.
///
/// # Errors
/// See [`FailureKind`].
pub async fn send(
    worker: &Worker,
    behalf: &Behalf,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    protocol: Protocol,
    outgoing: &Outgoing,
    body: RequestBody,
) -> Result<Answer, Failure> {
    let ticket = Ticket::new(&worker.pools, behalf, cluster, endpoint).ok_or(FailureKind::Overflow)?;
    // In an allocation of its own: what is around it is moved several times before it is polled.
    let sent = match protocol {
        Protocol::Http1 => Box::pin(send_http1(worker, ticket, outgoing, body)).await,
        Protocol::Http2 => Box::pin(send_http2(worker, ticket, outgoing, body)).await,
    };
    if let Ok(answer) = &sent {
        answer.ticket.note_status(answer.response.status());
    }
    sent
}

async fn send_http1(
    worker: &Worker,
    ticket: Ticket,
    outgoing: &Outgoing,
    body: RequestBody,
) -> Result<Answer, Failure> {
    let mut connection = match worker.pools.take_http1(&ticket.behalf, &ticket.endpoint) {
        Some(connection) => connection,
        None => Connection::new(Box::pin(open(worker, &ticket)).await?, &ticket.cluster.stats),
    };
    let reused = connection.served > 0;
    connection.served += 1;
    let mut out = worker.pools.output();
    let sending = http1_request(&mut out, outgoing, body);
    let mut call = Call::new(connection, outgoing.method.clone(), outgoing.upgrade.is_some(), sending);
    // What the first poll does not write, the call keeps.
    let mut out = Some(out);
    let called = poll_fn(|cx| {
        let mut first = out.take();
        let polled = worker.with_scratch(|scratch| call.poll(cx, first.as_mut().unwrap_or(&mut Vec::new()), scratch));
        if let Some(first) = first {
            worker.pools.keep_output(first);
        }
        polled
    });
    match called.await {
        Ok(response) => Ok(Answer { response: response.map(UpstreamBody::Http1), ticket }),
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "request to an endpoint failed");
            let kind = match error {
                CallError::NotSent => FailureKind::NotSent,
                CallError::Terminated => FailureKind::Terminated,
                CallError::Protocol(_) | CallError::TooLarge => FailureKind::Protocol,
                CallError::Request => FailureKind::Request,
            };
            ticket.note_failure(kind);
            Err(Failure { kind, stale: reused && !call.was_heard() })
        }
    }
}

async fn send_http2(
    worker: &Worker,
    mut ticket: Ticket,
    outgoing: &Outgoing,
    body: RequestBody,
) -> Result<Answer, Failure> {
    let (stream, reused) = match worker.pools.take_http2(&ticket.behalf, &ticket.cluster, &ticket.endpoint) {
        Some(stream) => (stream, true),
        None => open_http2(worker, &ticket).await?,
    };
    let silent_at = stream.0.traffic.received.get();
    let request = http2_request(outgoing, body).ok_or(FailureKind::Request)?;
    let sent = stream.0.sender.clone().try_send_request(request).await;
    let silent = stream.0.traffic.received.get() == silent_at;
    match sent {
        Ok(response) => {
            ticket.stream = Some(stream);
            let response = response.map(UpstreamBody::Http2);
            Ok(Answer { response, ticket })
        }
        Err(mut error) => {
            let kind = match error.take_message() {
                Some(_) => FailureKind::NotSent,
                None => failure_kind(error.error()),
            };
            ticket.note_failure(kind);
            Err(Failure { kind, stale: reused && silent })
        }
    }
}

async fn open_http2(worker: &Worker, ticket: &Ticket) -> Result<(Stream, bool), Failure> {
    let opening = worker.pools.opening(&ticket.behalf, &ticket.cluster, &ticket.endpoint);
    let _one_at_a_time = opening.lock().await;
    if let Some(stream) = worker.pools.take_http2(&ticket.behalf, &ticket.cluster, &ticket.endpoint) {
        return Ok((stream, true));
    }
    let upstream = open(worker, ticket).await?;
    let speaking = upstream_io::http2(upstream, &ticket.cluster.stats).await;
    let connection = Rc::new(speaking.map_err(|_| FailureKind::Terminated)?);
    worker.pools.share_http2(&ticket.behalf, &ticket.cluster, &ticket.endpoint, &connection);
    Ok((Stream::new(connection), false))
}

/// A new connection, if the circuit breaker lets the request wait for one.
async fn open(worker: &Worker, ticket: &Ticket) -> Result<Upstream, Failure> {
    let Ticket { behalf, cluster, endpoint, .. } = ticket;
    let _pending = cluster.try_pending().ok_or(FailureKind::Overflow)?;
    let mut connected = connect(worker, behalf, cluster, endpoint, FirstWord::Ours).await;
    if matches!(connected, Err(ConnectError::Overflow { .. })) && worker.pools.close_oldest(cluster) {
        // An idle connection to another endpoint was in the way.
        connected = connect(worker, behalf, cluster, endpoint, FirstWord::Ours).await;
    }
    connected.map_err(|error| {
        tracing::debug!(cluster = &*cluster.name, "{error}");
        let kind = match error {
            ConnectError::Failed { .. } => FailureKind::ConnectFailed,
            ConnectError::Timeout { .. } => FailureKind::ConnectTimeout,
            ConnectError::Overflow { .. } => FailureKind::Overflow,
        };
        ticket.note_failure(kind);
        Failure::from(kind)
    })
}

/// Writes the head to `out`.
fn http1_request(out: &mut Vec<u8>, outgoing: &Outgoing, body: RequestBody) -> Sending {
    let Outgoing { method, path, headers, upgrade } = outgoing;
    let mut with_upgrade;
    let mut headers = headers;
    if let Some(upgrade) = upgrade {
        with_upgrade = headers.clone();
        with_upgrade.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        with_upgrade.insert(header::UPGRADE, upgrade.clone());
        headers = &with_upgrade;
    }
    let framing = encode::request(out, method, path, headers, Length::of(&body));
    let announced = match framing {
        Framing::Chunked => headers.get_all(header::TRAILER).iter().cloned().collect(),
        _ => Vec::new(),
    };
    Sending::new(body, framing, announced)
}

/// `None` when the host cannot be an `:authority`.
fn http2_request(outgoing: &Outgoing, body: RequestBody) -> Option<Request<RequestBody>> {
    let Outgoing { method, path, mut headers, .. } = outgoing.clone();
    let authority = headers.remove(header::HOST)?;
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = authority.as_bytes().try_into().ok();
    parts.path_and_query = Some(path);
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = Uri::from_parts(parts).ok()?;
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = headers;
    Some(request)
}

/// With which code an HTTP/2 endpoint reset the stream, if it did.
pub fn reset_reason(error: &hyper::Error) -> Option<h2::Reason> {
    let error = http2_error(error)?;
    if error.is_remote() && error.is_reset() { error.reason() } else { None }
}

fn http2_error(error: &hyper::Error) -> Option<&h2::Error> {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref() {
            return Some(error);
        }
        source = error.source();
    }
    None
}

fn failure_kind(error: &hyper::Error) -> FailureKind {
    tracing::debug!(error = error as &dyn std::error::Error, "request to an endpoint failed");
    if error.is_user() {
        return FailureKind::Request;
    }
    if error.is_parse() {
        return FailureKind::Protocol;
    }
    match http2_error(error) {
        Some(error) if error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM) => {
            FailureKind::RefusedStream
        }
        Some(error) if error.is_remote() && error.is_reset() => FailureKind::RemoteReset,
        // Only streams behind the last one that the endpoint looked at end in this way (RFC 9113 section 6.8).
        Some(error) if error.is_go_away() && error.is_remote() => FailureKind::NotSent,
        Some(error) if error.is_io() => FailureKind::Terminated,
        Some(_) => FailureKind::Protocol,
        None => FailureKind::Terminated,
    }
}
