//! The request on its way to the socket, as far as it is not there yet.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::HeaderValue;
use http_body::{Body as _, Frame};

use super::connection::Connection;
use crate::http::h1::encode::{self, Framing};
use crate::http::request_body::RequestBody;

/// Up to so many bytes, a piece of the body is copied behind what is written before it, which is cheaper than to tell the
/// kernel of two places.
const COPIED_BYTES: usize = 4 * 1024;
/// What is collected for one write, in bytes.
const WRITE_BYTES: usize = 16 * 1024;

/// See the module.
pub struct Sending {
    body: RequestBody,
    framing: Framing,
    /// The `trailer` headers: what they do not name is not sent.
    announced: Vec<HeaderValue>,
    /// The body has nothing more to give.
    ended: bool,
    /// Was to be written, but the socket was full.
    pending: [Bytes; 3],
    written: u64,
}

/// Why the rest is not sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The socket does not take it.
    #[error("writing to the endpoint")]
    Io(#[source] io::Error),
    /// There is none: the client's side failed, or another try reads it now.
    #[error("the request's body has failed")]
    Body,
}

impl Sending {
    /// A request of which nothing is written.
    pub fn new(body: RequestBody, framing: Framing, announced: Vec<HeaderValue>) -> Self {
        let ended = framing == Framing::None;
        Self { body, framing, announced, ended, pending: [const { Bytes::new() }; 3], written: 0 }
    }

    /// So many bytes went to the socket.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Sends what is there; ready when that was all. `out` holds what has to be written first, at the first call the
    /// head; it is empty afterwards.
    ///
    /// # Errors
    /// See `SendError`.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        connection: &Connection,
        out: &mut Vec<u8>,
    ) -> Poll<Result<(), SendError>> {
        loop {
            ready!(self.poll_pending(cx, connection)).map_err(SendError::Io)?;
            let large = self.collect(cx, out)?;
            if out.is_empty() && large.is_empty() {
                return if self.ended { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
            let suffix: &[u8] =
                if self.framing == Framing::Chunked && !large.is_empty() { encode::CHUNK_END } else { b"" };
            let pieces = [IoSlice::new(out), IoSlice::new(&large), IoSlice::new(suffix)];
            let used = if large.is_empty() { 1 } else { 3 };
            let written = connection.try_write(&pieces[..used]).map_err(SendError::Io)?;
            self.written += written as u64;
            if written < out.len() + large.len() + suffix.len() {
                self.pending = [Bytes::copy_from_slice(out), large, Bytes::from_static(suffix_of(suffix))];
                advance(&mut self.pending, written);
            }
            out.clear();
        }
    }

    /// Writes what the socket did not take before.
    fn poll_pending(&mut self, cx: &mut Context<'_>, connection: &Connection) -> Poll<io::Result<()>> {
        while self.pending.iter().any(|piece| !piece.is_empty()) {
            ready!(connection.poll_write_ready(cx))?;
            let pieces = self.pending.each_ref().map(|piece| IoSlice::new(piece));
            let written = connection.try_write(&pieces)?;
            self.written += written as u64;
            advance(&mut self.pending, written);
        }
        Poll::Ready(Ok(()))
    }

    /// Puts pieces of the body behind `out`, framed, as long as they are there and small; a large one, whose end still
    /// lacks its framing, is given back.
    fn collect(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Result<Bytes, SendError> {
        while !self.ended && out.len() < WRITE_BYTES {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Err(_))) => return Err(SendError::Body),
                Poll::Ready(Some(Ok(frame))) => {
                    if let Some(large) = self.frame(frame, out)? {
                        return Ok(large);
                    }
                }
                Poll::Ready(None) => {
                    if self.framing == Framing::Chunked {
                        out.extend_from_slice(encode::LAST_CHUNK);
                    }
                    self.end()?;
                }
            }
            if !self.ended && self.framing != Framing::Chunked && self.body.is_end_stream() {
                self.end()?;
            }
        }
        Ok(Bytes::new())
    }

    fn frame(&mut self, frame: Frame<Bytes>, out: &mut Vec<u8>) -> Result<Option<Bytes>, SendError> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                if let (Some(trailers), Framing::Chunked) = (frame.trailers_ref(), self.framing) {
                    encode::trailers(out, trailers, &self.announced);
                }
                self.end()?;
                return Ok(None);
            }
        };
        if data.is_empty() {
            return Ok(None);
        }
        match &mut self.framing {
            Framing::Chunked => encode::chunk_start(out, data.len()),
            Framing::Length(left) => *left = left.checked_sub(data.len() as u64).ok_or(SendError::Body)?,
            Framing::None | Framing::UntilClose => {}
        }
        if data.len() > COPIED_BYTES {
            return Ok(Some(data));
        }
        out.extend_from_slice(&data);
        if self.framing == Framing::Chunked {
            out.extend_from_slice(encode::CHUNK_END);
        }
        Ok(None)
    }

    /// The body is over: it must be as long as it was said to be.
    fn end(&mut self) -> Result<(), SendError> {
        self.ended = true;
        match self.framing {
            Framing::Length(left) if left > 0 => Err(SendError::Body),
            _ => Ok(()),
        }
    }
}

fn suffix_of(suffix: &[u8]) -> &'static [u8] {
    if suffix.is_empty() { b"" } else { encode::CHUNK_END }
}

fn advance(pieces: &mut [Bytes], mut written: usize) {
    for piece in pieces {
        let taken = written.min(piece.len());
        piece.advance(taken);
        written -= taken;
    }
}
