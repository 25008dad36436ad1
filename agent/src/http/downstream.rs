//! A request's body as it comes from the client, whichever codec reads it.
//!
//! Before: the server codecs. After: [`super::request_body`], which counts it and hands it on.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// See the module.
pub enum Downstream {
    /// By hyper.
    Hyper(Incoming),
}

/// The client's side of a request failed.
#[derive(Debug, thiserror::Error)]
pub enum DownstreamError {
    /// In hyper's codec.
    #[error("hyper reading it")]
    Hyper(#[source] hyper::Error),
}

impl Body for Downstream {
    type Data = Bytes;
    type Error = DownstreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, DownstreamError>>> {
        match &mut *self {
            Self::Hyper(incoming) => Pin::new(incoming).poll_frame(cx).map_err(DownstreamError::Hyper),
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
