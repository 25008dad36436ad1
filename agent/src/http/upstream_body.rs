//! A response's body as an endpoint sends it, whichever protocol it speaks.
//!
//! Before: a codec. After: [`super::response_body`], which counts and watches it.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::h1;
use super::h1::client::{BodyError, Connection};
use super::upstream_io::UpgradedIo;

/// See the module.
pub enum Upstream {
    /// Read by hyper.
    Hyper(Incoming),
    /// Read from a bare socket.
    Http1(h1::client::Body),
}

impl Upstream {
    /// The HTTP/1 connection, if the response is over and another request may follow.
    pub fn release(&mut self) -> Option<Connection> {
        match self {
            Self::Hyper(_) => None,
            Self::Http1(body) => body.release(),
        }
    }

    /// The HTTP/1 connection after a 101.
    pub fn into_upgraded(self) -> Option<UpgradedIo> {
        match self {
            Self::Hyper(_) => None,
            Self::Http1(body) => body.into_upgraded(),
        }
    }
}

/// Why the endpoint's body ends early.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// What hyper says.
    #[error(transparent)]
    Hyper(hyper::Error),
    /// What the agent's own codec says.
    #[error(transparent)]
    Http1(BodyError),
}

impl UpstreamError {
    /// Whether the endpoint reset the stream, and the connection goes on.
    pub fn is_remote_reset(&self) -> bool {
        match self {
            Self::Hyper(error) => super::upstream::reset_reason(error).is_some(),
            Self::Http1(_) => false,
        }
    }
}

impl Body for Upstream {
    type Data = Bytes;
    type Error = UpstreamError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        match &mut *self {
            Self::Hyper(incoming) => Pin::new(incoming).poll_frame(cx).map_err(UpstreamError::Hyper),
            Self::Http1(body) => Pin::new(body).poll_frame(cx).map_err(UpstreamError::Http1),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Hyper(incoming) => incoming.is_end_stream(),
            Self::Http1(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Hyper(incoming) => incoming.size_hint(),
            Self::Http1(body) => body.size_hint(),
        }
    }
}
