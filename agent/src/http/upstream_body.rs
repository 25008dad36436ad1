//! A response's body as an endpoint sends it, whichever protocol it speaks.
//!
//! Before: a codec. After: [`super::response_body`], which counts and watches it.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// See the module.
pub enum Upstream {
    /// Read by hyper.
    Hyper(Incoming),
}

/// Why the endpoint's body ends early.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// What hyper says.
    #[error(transparent)]
    Hyper(hyper::Error),
}

impl UpstreamError {
    /// Whether the endpoint reset the stream, and the connection goes on.
    pub fn is_remote_reset(&self) -> bool {
        match self {
            Self::Hyper(error) => super::upstream::reset_reason(error).is_some(),
        }
    }
}

impl Body for Upstream {
    type Data = Bytes;
    type Error = UpstreamError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        match &mut *self {
            Self::Hyper(incoming) => Pin::new(incoming).poll_frame(cx).map_err(UpstreamError::Hyper),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Hyper(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Hyper(incoming) => incoming.size_hint(),
        }
    }
}
