//! The L4 proxy: connections that are served as bytes.
//!
//! Before: the filter chain match. After: an endpoint of the cluster. This module decides nothing about filter chains,
//! and knows nothing of what the bytes mean.

mod direction;
pub mod early;
pub mod pipes;
pub mod proxy;
pub mod pump;

use rustix::net::sockopt;
use tokio::net::TcpStream;

/// Whether a connection's bytes may be handed on without being copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Splicing {
    /// When it pays.
    #[default]
    Allowed,
    /// Never: one of its sockets is in a map through which the kernel redirects messages, and splicing passes those by.
    Never,
}

/// Makes dropping `stream` a reset: an orderly end would tell the peer that it got everything.
pub fn reset_on_drop(stream: &TcpStream) {
    if let Err(error) = sockopt::set_socket_linger(stream, Some(std::time::Duration::ZERO)) {
        tracing::debug!(%error, "a connection ends in order instead of with a reset");
    }
}
