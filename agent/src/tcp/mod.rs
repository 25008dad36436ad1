//! The L4 proxy: connections that are served as bytes.
//!
//! Before: the filter chain match. After: an endpoint of the cluster. This module decides nothing about filter chains,
//! and knows nothing of what the bytes mean.

pub mod early;
pub mod proxy;
pub mod pump;

use rustix::net::sockopt;
use tokio::net::TcpStream;

/// Makes dropping `stream` a reset: an orderly end would tell the peer that it got everything.
pub fn reset_on_drop(stream: &TcpStream) {
    if let Err(error) = sockopt::set_socket_linger(stream, Some(std::time::Duration::ZERO)) {
        tracing::debug!(%error, "a connection ends in order instead of with a reset");
    }
}
