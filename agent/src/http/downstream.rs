//! A request's body as it comes from the client, whichever codec reads it.
//!
//! Before: the server codecs. After: [`super::request_body`], which counts it and hands it on.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::h1::server::{Body as Http1Body, BodyError};

/// See the module.
pub enum Downstream {
    /// By hyper: HTTP/2.
    Hyper(Incoming),
    /// By the agent's own codec.
    Http1(Http1Body),
}

/// The client's side of a request failed.
#[derive(Debug, thiserror::Error)]
pub enum DownstreamError {
    /// What hyper says.
    #[error(transparent)]
    Hyper(hyper::Error),
    /// In HTTP/1.
    #[error(transparent)]
    Http1(BodyError),
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
            Self::Http1(body) => Pin::new(body).poll_frame(cx).map_err(DownstreamError::Http1),
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
