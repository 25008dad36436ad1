//! (signatures; the cluster part fills them in)
use super::Cluster;
use super::endpoint::Endpoint;
use crate::addr::EndpointAddr;
use crate::worker::Worker;
use std::sync::Arc;
use tokio::net::TcpStream;

/// Why a connection to an endpoint could not be opened. Flag UF (UO for the circuit breaker).
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Refused, unreachable, reset ...
    #[error("connecting to {address}")]
    Failed {
        address: EndpointAddr,
        #[source]
        source: std::io::Error,
    },
    /// `connect_timeout` passed.
    #[error("connecting to {address}: connection timeout")]
    Timeout { address: EndpointAddr },
    /// max_connections of the circuit breaker.
    #[error("cluster {cluster} has max_connections open")]
    Overflow { cluster: Arc<str> },
}

/// A connection to an endpoint, counted as open until it is dropped.
#[derive(Debug)]
pub struct Upstream {
    /// The socket: BYPASS stamped before connect, TCP_NODELAY set.
    pub stream: TcpStream,
    /// Counts it in the cluster's and the endpoint's cx_active until dropped.
    pub open: OpenUpstream,
}

/// See [`Upstream::open`].
#[derive(Debug)]
pub struct OpenUpstream;

/// Connects to `endpoint` within the cluster's connect_timeout.
pub async fn connect(
    _worker: &Worker,
    _cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
) -> Result<Upstream, ConnectError> {
    let address = endpoint.address;
    let stream =
        TcpStream::connect(address.socket()).await.map_err(|source| ConnectError::Failed { address, source })?;
    Ok(Upstream { stream, open: OpenUpstream })
}
