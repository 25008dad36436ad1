//! A request and the wait for its response's head, on one connection.
//!
//! The request is written as far as it is there and the socket takes it; the endpoint may answer before it has all.

use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use http::{Method, Response, StatusCode};

use super::body::Body;
use super::connection::Connection;
use super::response::{Head, ParseError, Parsed, RequestKind, parse};
use super::sending::{SendError, Sending};

/// Bytes of a response's head, those of interim ones before it included: hyper's limit.
const MAX_HEAD_BYTES: usize = 8 * 1024 + 100 * 4 * 1024;

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nothing of the request was written.
    #[error("the request was not sent")]
    NotSent,
    /// The connection ended before the head did.
    #[error("the connection ended before the response")]
    Terminated,
    /// The endpoint speaks something else.
    #[error("the response's head")]
    Protocol(#[source] ParseError),
    /// The head does not end.
    #[error("the response's head is too large")]
    TooLarge,
    /// The request's own body failed.
    #[error("the request's body has failed")]
    Request,
}

/// See the module.
pub struct Call {
    /// `None` once it is the response's.
    connection: Option<Connection>,
    method: Method,
    upgrade: bool,
    /// `None` when all is written, or nothing more can be.
    sending: Option<Sending>,
    /// Writing failed: what comes may be the answer to why.
    broken: bool,
    written: bool,
    /// The beginning of a head.
    buffer: BytesMut,
    /// The buffer's length at which it is worth another look without an end of the head in it: twice the last one's, so
    /// that a head that arrives in small pieces is not parsed as often.
    look_at: usize,
    interim_bytes: usize,
    heard: bool,
}

impl Call {
    /// Begins to send.
    pub fn new(connection: Connection, method: Method, upgrade: bool, sending: Sending) -> Self {
        Self {
            connection: Some(connection),
            method,
            upgrade,
            sending: Some(sending),
            broken: false,
            written: false,
            buffer: BytesMut::new(),
            look_at: 0,
            interim_bytes: 0,
            heard: false,
        }
    }

    /// Whether the endpoint said anything at all.
    pub fn was_heard(&self) -> bool {
        self.heard
    }

    /// Goes on; ready with the response, and only once. `out` is as [`Sending::poll`] wants it, `scratch` is what is read
    /// into.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut Vec<u8>,
        scratch: &mut [u8],
    ) -> Poll<Result<Response<Body>, CallError>> {
        self.send(cx, out)?;
        loop {
            let Some(connection) = &self.connection else { return Poll::Ready(Err(CallError::Terminated)) };
            let read = ready!(connection.poll_read(cx, scratch));
            let Some(read) = read.ok().filter(|read| *read > 0) else {
                return Poll::Ready(Err(if self.written { CallError::Terminated } else { CallError::NotSent }));
            };
            self.heard = true;
            if let Some(head) = self.take(&scratch[..read])? {
                return Poll::Ready(self.answer(head));
            }
        }
    }

    fn send(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Result<(), CallError> {
        let (Some(sending), Some(connection)) = (&mut self.sending, &self.connection) else { return Ok(()) };
        let sent = sending.poll(cx, connection, out);
        self.written = sending.written() > 0;
        match sent {
            Poll::Pending => return Ok(()),
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(SendError::Body)) => return Err(CallError::Request),
            Poll::Ready(Err(SendError::Io(_))) if !self.written => return Err(CallError::NotSent),
            Poll::Ready(Err(SendError::Io(_))) => self.broken = true,
        }
        self.sending = None;
        Ok(())
    }

    /// Looks at what came behind what is kept already.
    fn take(&mut self, bytes: &[u8]) -> Result<Option<Head>, CallError> {
        if self.buffer.is_empty() {
            let (consumed, head) = self.scan(bytes)?;
            self.buffer = BytesMut::from(&bytes[consumed..]);
            return Ok(head);
        }
        let before = self.buffer.len();
        self.buffer.extend_from_slice(bytes);
        // One byte more than a head may have is enough to know.
        let look_at = self.look_at.min(MAX_HEAD_BYTES.saturating_sub(self.interim_bytes) + 1);
        if self.buffer.len() < look_at && !holds_end(&self.buffer[before.saturating_sub(3)..]) {
            return Ok(None);
        }
        let mut held = std::mem::take(&mut self.buffer);
        let (consumed, head) = self.scan(&held)?;
        held.advance(consumed);
        self.buffer = held;
        Ok(head)
    }

    /// Parses heads until the final one is there; how many bytes were parsed.
    fn scan(&mut self, bytes: &[u8]) -> Result<(usize, Option<Head>), CallError> {
        let to = RequestKind { method: &self.method, upgrade: self.upgrade };
        let mut consumed = 0;
        loop {
            match parse(&bytes[consumed..], to).map_err(CallError::Protocol)? {
                Parsed::Head(len, head) => return Ok((consumed + len, Some(head))),
                Parsed::Interim(len) => {
                    consumed += len;
                    self.interim_bytes += len;
                }
                Parsed::Partial if self.interim_bytes + bytes.len() - consumed > MAX_HEAD_BYTES => {
                    return Err(CallError::TooLarge);
                }
                Parsed::Partial => {
                    self.look_at = 2 * (bytes.len() - consumed);
                    return Ok((consumed, None));
                }
            }
        }
    }

    fn answer(&mut self, head: Head) -> Result<Response<Body>, CallError> {
        let Some(connection) = self.connection.take() else { return Err(CallError::Terminated) };
        let reusable = head.keep_alive && !self.broken && head.status != StatusCode::SWITCHING_PROTOCOLS;
        let rest = std::mem::take(&mut self.buffer);
        let body = Body::new(connection, head.decoder, rest, self.sending.take(), reusable);
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        Ok(response)
    }
}

/// Whether an empty line stands in `bytes`.
fn holds_end(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|two| two == b"\n\n") || bytes.windows(3).any(|three| three == b"\n\r\n")
}
