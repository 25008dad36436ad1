//! The L4 proxy: connections that are served as bytes.
//!
//! Before: the filter chain match. After: an endpoint of the cluster. This module decides nothing about filter chains,
//! and knows nothing of what the bytes mean.

mod direction;
pub mod early;
mod low_water;
pub mod pipes;
pub mod proxy;
pub mod pump;

use std::io;

use rustix::net::sockopt;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Tells the reactor that `stream` has no more to read (or takes no more), as a call that moved less than was asked for
/// has shown. That saves the call that would find out; what changes meanwhile raises a new edge, and an end stays known.
pub fn exhausted(stream: &TcpStream, interest: Interest) {
    let _ = stream.try_io(interest, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
}

/// Makes dropping `stream` a reset: an orderly end would tell the peer that it got everything.
pub fn reset_on_drop(stream: &TcpStream) {
    if let Err(error) = sockopt::set_socket_linger(stream, Some(std::time::Duration::ZERO)) {
        tracing::debug!(%error, "a connection ends in order instead of with a reset");
    }
}
