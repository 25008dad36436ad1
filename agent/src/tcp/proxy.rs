//! One connection, proxied as bytes: cluster, endpoint, pump.
//!
//! Before: the filter chain match, and sometimes an [`Early`] connection. After: [`super::pump`]. Every way to fail ends
//! in a reset of the client's connection: an orderly end would look like an empty answer.

use std::sync::Arc;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::early::Early;
use super::pump::{self, End, Limits, Moved};
use super::reset_on_drop;
use crate::addr::EndpointAddr;
use crate::cluster::connect::{ConnectError, Upstream, connect};
use crate::cluster::endpoint::Endpoint;
use crate::cluster::select::{SelectError, select};
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
    pub behalf: &'a Behalf,
    /// A connection that was opened while the client was silent, to this very chain's cluster.
    pub early: Option<Early>,
    /// Of the listener that serves it.
    pub stats: &'a ListenerStats,
}

/// Serves `client` to its end and fills in `record`.
pub async fn serve(client: TcpStream, job: Job<'_>, record: &mut ConnectionRecord, worker: &Worker) {
    let deadline = job.tcp.max_downstream_connection_duration.map(|duration| Instant::now() + duration);
    let (drain, behalf) = (worker.shared.drain.clone(), job.behalf.clone());
    let served = tokio::select! {
        biased;
        served = proxy(&client, job, record, worker, deadline) => served,
        reason = behalf.cut(&drain) => Err((ResponseFlags::LOCAL_RESET, reason.to_owned())),
    };
    if let Err((flags, details)) = served {
        reset_on_drop(&client);
        record.flags.insert(flags);
        record.details = Some(details);
    }
}

async fn proxy(
    client: &TcpStream,
    job: Job<'_>,
    record: &mut ConnectionRecord,
    worker: &Worker,
    deadline: Option<Instant>,
) -> Result<(), (ResponseFlags, String)> {
    let Job { tcp, behalf, early, stats } = job;
    let cluster = match &early {
        Some(early) => early.cluster().clone(),
        None => cluster_of(&tcp.cluster, worker).map_err(|failure| (failure.flags, failure.details))?,
    };
    // Before it can fail: the record names the cluster that had no endpoint.
    record.cluster = Some(cluster.name.clone());
    let connecting = async {
        match early {
            Some(early) => early.connected().await,
            None => connect_to(worker, cluster, behalf, tcp.max_connect_attempts).await,
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
    let Connected { cluster, endpoint, upstream } = match connected {
        Ok(connected) => connected,
        Err(failure) => {
            record.endpoint = failure.endpoint;
            return Err((failure.flags, failure.details));
        }
    };
    record.endpoint = Some(endpoint.address);
    let pod = behalf.stats();
    let account = |moved: Moved| {
        record.bytes_received += moved.from_client;
        record.bytes_sent += moved.to_client;
        stats.downstream_cx_rx_bytes_total.add(moved.from_client);
        stats.downstream_cx_tx_bytes_total.add(moved.to_client);
        if let Some(pod) = pod {
            pod.downstream_cx_rx_bytes_total.add(moved.from_client);
            pod.downstream_cx_tx_bytes_total.add(moved.to_client);
        }
        cluster.stats.upstream_cx_tx_bytes_total.add(moved.to_endpoint);
        cluster.stats.upstream_cx_rx_bytes_total.add(moved.from_endpoint);
    };
    let limits = Limits { idle: tcp.idle_timeout, deadline };
    let cut_short = CutShort(&upstream.stream);
    let end = pump::run(client, &upstream.stream, worker, limits, account).await;
    std::mem::forget(cut_short);
    if let Some((flags, details)) = ended(end) {
        record.flags.insert(flags);
        record.details = Some(details.to_owned());
    }
    Ok(())
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

/// Connects to an endpoint of `cluster`, and to another one as long as that fails and attempts are left.
pub async fn connect_to(
    worker: &Worker,
    cluster: Arc<Cluster>,
    behalf: &Behalf,
    max_attempts: u32,
) -> Result<Connected, Failure> {
    let mut tried = Vec::new();
    loop {
        let endpoint =
            select(worker, &cluster, behalf.original_dst, &tried).map_err(|error| not_selected(&error, &tried))?;
        tried.push(endpoint.address);
        match connect(worker, behalf, &cluster, &endpoint).await {
            Ok(upstream) => return Ok(Connected { cluster, endpoint, upstream }),
            Err(error @ ConnectError::Overflow { .. }) => {
                return Err(not_connected(&error, ResponseFlags::UPSTREAM_OVERFLOW, endpoint.address));
            }
            Err(error) if tried.len() >= max_attempts.max(1) as usize => {
                let mut flags = ResponseFlags::UPSTREAM_CONNECTION_FAILURE;
                flags.insert(ResponseFlags::UPSTREAM_RETRY_LIMIT);
                return Err(not_connected(&error, flags, endpoint.address));
            }
            Err(error) => tracing::debug!(%error, "trying another endpoint"),
        }
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
