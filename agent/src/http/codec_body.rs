//! The body of a message as it comes off the wire, whichever codec reads it: a request's from the client, a response's
//! from an endpoint.
//!
//! Before: a codec. After: [`super::request_body`] and [`super::response_body`], which count and watch it.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::h1;
use super::h1::client::Connection;
use super::http2;
use super::upstream_io::UpgradedIo;

/// A request's body, from the client.
pub type Downstream = CodecBody<h1::server::Body, http2::Body>;

/// Why a request's body ends early.
pub type DownstreamError = CodecError<h1::server::BodyError, h2::Error>;

/// A response's body, from an endpoint.
pub type Upstream = CodecBody<h1::client::Body, Incoming>;

/// Why a response's body ends early.
pub type UpstreamError = CodecError<h1::client::BodyError, hyper::Error>;

/// See the module.
pub enum CodecBody<One, Two> {
    /// Of HTTP/1: read by the agent's own codec.
    Http1(One),
    /// Of HTTP/2.
    Http2(Two),
}

/// Why a body ends early.
#[derive(Debug, thiserror::Error)]
pub enum CodecError<One, Two> {
    /// What the agent's own codec says.
    #[error(transparent)]
    Http1(One),
    /// What that of HTTP/2 says.
    #[error(transparent)]
    Http2(Two),
}

impl<One, Two> Body for CodecBody<One, Two>
where
    One: Body<Data = Bytes> + Unpin,
    Two: Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = CodecError<One::Error, Two::Error>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            Self::Http1(body) => Pin::new(body).poll_frame(cx).map_err(CodecError::Http1),
            Self::Http2(body) => Pin::new(body).poll_frame(cx).map_err(CodecError::Http2),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
        }
    }
}

impl Upstream {
    /// The HTTP/1 connection, if the response is over and another request may follow.
    pub fn release(&mut self) -> Option<Connection> {
        match self {
            Self::Http2(_) => None,
            Self::Http1(body) => body.release(),
        }
    }

    /// The HTTP/1 connection after a 101.
    pub fn into_upgraded(self) -> Option<UpgradedIo> {
        match self {
            Self::Http2(_) => None,
            Self::Http1(body) => body.into_upgraded(),
        }
    }
}

impl UpstreamError {
    /// Whether the endpoint reset the stream, and the connection goes on.
    pub fn is_remote_reset(&self) -> bool {
        match self {
            Self::Http2(error) => super::upstream::reset_reason(error).is_some(),
            Self::Http1(_) => false,
        }
    }
}
