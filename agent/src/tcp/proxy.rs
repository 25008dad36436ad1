//! One connection, proxied as bytes: cluster, endpoint, pump.
//!
//! Before: the filter chain match, and sometimes an [`Early`] connection. After: [`super::pump`]. Every way to fail ends
//! in a reset of the client's connection: an orderly end would look like an empty answer.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::early::Early;
use super::pump::{self, End, Limits, Moved};
use super::reset_on_drop;
use crate::addr::EndpointAddr;
use crate::cluster::connect::{ConnectError, FirstWord, Upstream, complete_handshake, connect};
use crate::cluster::endpoint::Endpoint;
use crate::cluster::select::{Affinity, SelectError, select};
use crate::cluster::{Cluster, ClusterSpecifier};
use crate::listener::TcpProxy;
use crate::place::Behalf;
use crate::telemetry::ResponseFlags;
use crate::telemetry::record::ConnectionRecord;
use crate::telemetry::stats::ListenerStats;
use crate::worker::Worker;

/// A connection to an endpoint, and how it was come by.
#[derive(Debug)]
pub struct Connected {
    /// Of the endpoint.
    pub cluster: Arc<Cluster>,
    /// Which one.
    pub endpoint: Arc<Endpoint>,
    /// The connection.
    pub upstream: Upstream,
}

/// Why there is no connection to an endpoint.
#[derive(Debug)]
pub struct Failure {
    /// For the record.
    pub flags: ResponseFlags,
    /// A sentence, with its causes.
    pub details: String,
    /// The endpoint tried last.
    pub endpoint: Option<EndpointAddr>,
}

/// What a connection is served with.
pub struct Job<'a> {
    /// The network filter.
    pub tcp: &'a TcpProxy,
    /// On whose behalf the agent connects.
    pub behalf: Behalf,
    /// A connection that was opened while the client was silent, to this very chain's cluster.
    pub early: Option<Early>,
}

/// Turns of the worker's loop for which the end of the handshake with an endpoint waits for the client's first bytes, which
/// would say the same. A client of this host that speaks first has mostly spoken by then; on an idle worker a turn takes a
/// microsecond.
const TURNS: usize = 2;

/// A connection that is connected to an endpoint: only bytes are left to be handed on.
pub struct Proxying {
    client: TcpStream,
    connected: Connected,
    behalf: Behalf,
    limits: Limits,
    first: FirstWord,
}

/// Connects to an endpoint for `client`. `None`: that failed, `record` says why, and the client is reset.
pub async fn begin(
    client: TcpStream,
    job: Job<'_>,
    record: &mut ConnectionRecord,
    worker: &Worker,
) -> Option<Proxying> {
    let Job { tcp, behalf, early } = job;
    // A client of this host has mostly spoken by the time that the endpoint is connected.
    let first = if early.is_some() { FirstWord::Unknown } else { FirstWord::Ours };
    let deadline = tcp.max_downstream_connection_duration.map(|duration| Instant::now() + duration);
    let connected = tokio::select! {
        biased;
        connected = connected(&client, tcp, &behalf, early, record, worker) => connected,
        reason = behalf.cut(&worker.shared.drain) => Err((ResponseFlags::LOCAL_RESET, reason.to_owned())),
    };
    match connected {
        Ok(connected) => {
            record.endpoint = Some(connected.endpoint.address);
            let limits = Limits { idle: tcp.idle_timeout, deadline };
            Some(Proxying { client, connected, behalf, limits, first })
        }
        Err((flags, details)) => {
            reset_on_drop(&client);
            record.flags.insert(flags);
            record.details = Some(details);
            None
        }
    }
}

async fn connected(
    client: &TcpStream,
    tcp: &TcpProxy,
    behalf: &Behalf,
    early: Option<Early>,
    record: &mut ConnectionRecord,
    worker: &Worker,
) -> Result<Connected, (ResponseFlags, String)> {
    let cluster = match &early {
        Some(early) => early.cluster().clone(),
        None => cluster_of(&tcp.cluster, worker).map_err(|failure| (failure.flags, failure.details))?,
    };
    // Before it can fail: the record names the cluster that had no endpoint.
    record.cluster = Some(cluster.name.clone());
    let hash = tcp.hash(record.info.client.ip(), record.info.source_pod.as_deref());
    let connecting = async {
        match early {
            Some(early) => early.connected().await,
            None => connect_to(worker, cluster, behalf, hash, tcp.max_connect_attempts, FirstWord::Ours).await,
        }
    };
    let connected = tokio::select! {
        // First: once connected, a reset is handed on by the pump.
        biased;
        connected = connecting => connected,
        // A client that only ends its side still wants an answer; one that resets does not.
        _ = client.ready(Interest::ERROR) => {
            return Err((ResponseFlags::DOWNSTREAM_TERMINATION, "client reset before the endpoint answered".to_owned()));
        }
    };
    connected.map_err(|failure| {
        record.endpoint = failure.endpoint;
        (failure.flags, failure.details)
    })
}

impl Proxying {
    /// Hands on bytes to the end and fills in `record`; counts them in `stats`, of the listener that serves it.
    pub async fn run(&self, stats: &ListenerStats, record: &mut ConnectionRecord, worker: &Worker) {
        let Self { client, connected: Connected { cluster, upstream, .. }, behalf, limits, first } = self;
        // Whether the endpoint waits for the end of the handshake.
        let waits = Cell::new(*first == FirstWord::Ours);
        let mut account = |moved: Moved| {
            waits.set(waits.get() && moved.to_endpoint == 0);
            record.bytes_received += moved.from_client;
            record.bytes_sent += moved.to_client;
            stats.downstream_cx_rx_bytes_total.add(moved.from_client);
            stats.downstream_cx_tx_bytes_total.add(moved.to_client);
            if let Some(pod) = behalf.stats() {
                pod.downstream_cx_rx_bytes_total.add(moved.from_client);
                pod.downstream_cx_tx_bytes_total.add(moved.to_client);
            }
            cluster.stats.upstream_cx_tx_bytes_total.add(moved.to_endpoint);
            cluster.stats.upstream_cx_rx_bytes_total.add(moved.from_endpoint);
        };
        let cut_short = CutShort(&upstream.stream);
        let mut pump = pin!(pump::run(client, &upstream.stream, worker, limits, &mut account));
        let end = match first_turns(pump.as_mut(), &waits, &upstream.stream).await {
            Some(end) => Ok(end),
            None => tokio::select! {
                biased;
                end = pump => Ok(end),
                reason = behalf.cut(&worker.shared.drain) => Err(reason),
            },
        };
        let ended = match end {
            Ok(end) => {
                std::mem::forget(cut_short);
                ended(end)
            }
            Err(reason) => {
                reset_on_drop(&self.client);
                drop(cut_short);
                Some((ResponseFlags::LOCAL_RESET, reason))
            }
        };
        if let Some((flags, details)) = ended {
            record.flags.insert(flags);
            record.details = Some(details.to_owned());
        }
    }
}

/// Polls `pump` for the few turns of the worker's loop in which an endpoint that waits for the end of the handshake may get it
/// with the client's first bytes; then it gets it alone. How the pump ended, if it did.
async fn first_turns(
    mut pump: Pin<&mut impl Future<Output = End>>,
    waits: &Cell<bool>,
    endpoint: &TcpStream,
) -> Option<End> {
    for turn in 0..=TURNS {
        let end = once(pump.as_mut()).await;
        if end.is_some() || !waits.get() {
            return end;
        }
        if turn < TURNS {
            tokio::task::yield_now().await;
        }
    }
    complete_handshake(endpoint);
    None
}

/// Dropped with the pump when the agent ends: the endpoint must not take half of what the client sends for all of it.
struct CutShort<'a>(&'a TcpStream);

impl Drop for CutShort<'_> {
    fn drop(&mut self) {
        reset_on_drop(self.0);
    }
}

fn ended(end: End) -> Option<(ResponseFlags, &'static str)> {
    match end {
        End::Complete => None,
        End::ClientReset => Some((ResponseFlags::DOWNSTREAM_TERMINATION, "client reset the connection")),
        End::EndpointReset => Some((ResponseFlags::UPSTREAM_CONNECTION_TERMINATION, "endpoint reset the connection")),
        End::Idle => Some((ResponseFlags::STREAM_IDLE_TIMEOUT, "idle timeout")),
        End::Deadline => Some((ResponseFlags::DURATION_TIMEOUT, "max_downstream_connection_duration")),
    }
}

/// The cluster that `specifier` names for this connection.
pub fn cluster_of(specifier: &ClusterSpecifier, worker: &Worker) -> Result<Arc<Cluster>, Failure> {
    match specifier {
        ClusterSpecifier::Cluster(cluster) => Ok(cluster.clone()),
        ClusterSpecifier::Weighted(weighted) => Ok(weighted.pick(worker.random()).clone()),
        ClusterSpecifier::Header(header) => Err(Failure {
            flags: ResponseFlags::NO_CLUSTER,
            details: format!("the cluster is named by the header {header}, and bytes have no headers"),
            endpoint: None,
        }),
    }
}

/// Connects to an endpoint of `cluster`, by `hash` if it balances so, and to another one as long as that fails and attempts
/// are left.
pub async fn connect_to(
    worker: &Worker,
    cluster: Arc<Cluster>,
    behalf: &Behalf,
    hash: Option<u64>,
    max_attempts: u32,
    first: FirstWord,
) -> Result<Connected, Failure> {
    let mut tried = Vec::new();
    loop {
        let affinity = Affinity { original_dst: behalf.original_dst, hash };
        let endpoint = select(worker, &cluster, affinity, &tried).map_err(|error| not_selected(&error, &tried))?;
        let error = match connect(worker, behalf, &cluster, &endpoint, first).await {
            Ok(upstream) => return Ok(Connected { cluster, endpoint, upstream }),
            Err(error) => error,
        };
        tried.push(endpoint.address);
        if let ConnectError::Overflow { .. } = error {
            return Err(not_connected(&error, ResponseFlags::UPSTREAM_OVERFLOW, endpoint.address));
        }
        if tried.len() >= max_attempts.max(1) as usize {
            let mut flags = ResponseFlags::UPSTREAM_CONNECTION_FAILURE;
            flags.insert(ResponseFlags::UPSTREAM_RETRY_LIMIT);
            return Err(not_connected(&error, flags, endpoint.address));
        }
        tracing::debug!(%error, "trying another endpoint");
    }
}

fn not_selected(error: &SelectError, tried: &[EndpointAddr]) -> Failure {
    Failure { flags: ResponseFlags::NO_HEALTHY_UPSTREAM, details: error.to_string(), endpoint: tried.last().copied() }
}

fn not_connected(error: &ConnectError, flags: ResponseFlags, endpoint: EndpointAddr) -> Failure {
    let mut details = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        details.push_str(": ");
        details.push_str(&error.to_string());
        cause = error.source();
    }
    Failure { flags, details, endpoint: Some(endpoint) }
}

/// What `future` resolves to, if it does when it is polled once.
async fn once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}
