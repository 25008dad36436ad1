//! A request's body, read from the client's socket by whoever polls it: no channel, no task, no buffer of its own.
//!
//! Before: [`super::io`]. After: [`crate::http::request_body`]. The first poll of a body for which the client waits with an
//! `expect: 100-continue` asks for it.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::io::Io;
use crate::http::h1::decode::{DecodeError, Decoded};
use crate::http::h1::encode::CONTINUE;

/// See the module.
pub struct Body {
    io: Rc<Io>,
    request: u64,
}

/// Why a request's body ends early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Its framing, or its end.
    #[error(transparent)]
    Framing(#[from] DecodeError),
    /// The client's connection failed.
    #[error("reading from the client's connection")]
    Io(#[from] std::io::Error),
}

impl Body {
    /// Of the request with this number, which is the current one.
    pub fn new(io: Rc<Io>, request: u64) -> Self {
        Self { io, request }
    }

    fn poll_decoded(&self, cx: &mut Context<'_>) -> Poll<Result<Decoded, BodyError>> {
        loop {
            let asks = {
                let mut input = self.io.input.borrow_mut();
                if input.request != self.request {
                    return Poll::Ready(Err(DecodeError::Truncated.into()));
                }
                std::mem::take(&mut input.expects)
            };
            // As Envoy does, also when the body came with the head: whoever asks gets an answer.
            self.io.poll_interim(cx, if asks { CONTINUE } else { &[] })?;
            let decoded = {
                let input = &mut *self.io.input.borrow_mut();
                input.decoder.decode(&mut input.buffer)
            };
            match decoded {
                Ok(Decoded::More) => {}
                Ok(decoded) => return Poll::Ready(Ok(decoded)),
                Err(error) => {
                    self.io.connection.wire.broken.set(true);
                    return Poll::Ready(Err(error.into()));
                }
            }
            if ready!(self.io.poll_fill_body(cx))? == 0 {
                self.io.input.borrow_mut().decoder.end_of_input()?;
            }
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let decoded = ready!(self.poll_decoded(cx));
        if decoded.is_err() || self.io.is_complete() {
            self.io.body_ended(cx);
        }
        Poll::Ready(match decoded {
            Ok(Decoded::Data(data)) => Some(Ok(Frame::data(data))),
            Ok(Decoded::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Ok(Decoded::More | Decoded::End) => None,
            Err(error) => Some(Err(error)),
        })
    }

    fn is_end_stream(&self) -> bool {
        let input = self.io.input.borrow();
        input.request != self.request || input.decoder.is_complete()
    }

    fn size_hint(&self) -> SizeHint {
        let input = self.io.input.borrow();
        if input.request == self.request { input.decoder.size_hint() } else { SizeHint::with_exact(0) }
    }
}
