//! (signatures; the cluster part fills them in)
use super::Cluster;
use super::endpoint::Endpoint;
use crate::addr::{EndpointAddr, OrigDstAddr};
use crate::worker::Worker;
use std::sync::Arc;

/// Why no endpoint could be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// Flag UH.
    #[error("no healthy endpoint in cluster {0}")]
    NoHealthyEndpoint(Arc<str>),
    /// An original_dst cluster was asked for a connection that the kernel had not redirected. Flag UH.
    #[error("cluster {0} needs an original destination, and this connection has none")]
    NoOriginalDst(Arc<str>),
    /// The original destination is one of the agent's own listeners. Flag UH.
    #[error("{0} is one of the agent's own listeners: connecting to it would be a loop")]
    OwnListener(EndpointAddr),
}

/// Chooses an endpoint of `cluster`, not one of `tried` unless there is no other.
pub fn select(
    _worker: &Worker,
    cluster: &Arc<Cluster>,
    _original_dst: Option<OrigDstAddr>,
    _tried: &[EndpointAddr],
) -> Result<Arc<Endpoint>, SelectError> {
    cluster
        .endpoints
        .load()
        .usable()
        .first()
        .map(|m| m.endpoint.clone())
        .ok_or(SelectError::NoHealthyEndpoint(cluster.name.clone()))
}
