//! The body of an endpoint's response, read from its connection as it is asked for.
//!
//! While it is read, what is left of the request goes on being sent. At its end it gives the connection back, if that can
//! serve another request.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};

use super::connection::Connection;
use super::sending::{SendError, Sending};
use crate::http::h1::decode::{DecodeError, Decoded, Decoder};
use crate::http::upstream_io::UpgradedIo;

/// One read of a body, in bytes, and with it a frame of it.
const MAX_READ_BYTES: usize = 64 * 1024;
/// The same when nobody knows how much is to come.
const READ_BYTES: usize = 16 * 1024;
/// Asked for beyond what is to come: a read that does not fill its buffer says that the socket is empty, and what an
/// endpoint sends beyond its response is seen.
const BEYOND_BYTES: usize = 16;

/// See the module.
pub struct Body {
    /// `None` once the body is over.
    connection: Option<Connection>,
    decoder: Decoder,
    /// Read, but not handed out: nothing while the endpoint is waited for.
    buffer: BytesMut,
    /// What is left of the request.
    sending: Option<Box<Sending>>,
    /// Another request may follow on the connection.
    reusable: bool,
}

/// Why a body breaks off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Reading failed: most likely a reset.
    #[error("reading from the endpoint")]
    Io(#[source] io::Error),
    /// It ended too early, or is framed wrong.
    #[error(transparent)]
    Decode(DecodeError),
    /// The rest of the request cannot be sent, so nobody knows what the endpoint makes of it.
    #[error("the request's body has failed")]
    Request,
}

impl Body {
    /// The body behind a head; `buffer` holds what came with that.
    pub(super) fn new(
        connection: Connection,
        decoder: Decoder,
        buffer: BytesMut,
        sending: Option<Sending>,
        reusable: bool,
    ) -> Self {
        Self { connection: Some(connection), decoder, buffer, sending: sending.map(Box::new), reusable }
    }

    /// The connection, if the response is over and another request may follow. If it may not, it is closed.
    pub fn release(&mut self) -> Option<Connection> {
        let over = self.decoder.is_complete() && self.buffer.is_empty() && self.sending.is_none();
        self.connection.take().filter(|_| self.reusable && over)
    }

    /// The connection after a 101, with what came behind the head. `None` when the request is not sent yet.
    pub fn into_upgraded(self) -> Option<UpgradedIo> {
        let connection = self.connection.filter(|_| self.sending.is_none())?;
        Some(connection.into_upgraded(self.buffer.freeze()))
    }

    fn send(&mut self, cx: &mut Context<'_>) -> Result<(), BodyError> {
        let (Some(sending), Some(connection)) = (&mut self.sending, &self.connection) else { return Ok(()) };
        match sending.poll(cx, connection, &mut Vec::new()) {
            Poll::Pending => return Ok(()),
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(SendError::Body)) => return Err(BodyError::Request),
            // The endpoint wants no more of it. Its answer counts.
            Poll::Ready(Err(SendError::Io(_))) => self.reusable = false,
        }
        self.sending = None;
        Ok(())
    }

    /// Reads once; whether there was an end instead.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let Some(connection) = &self.connection else { return Poll::Ready(Ok(true)) };
        let room = match self.decoder.data_ahead() {
            Some(ahead) if ahead > 0 => usize::try_from(ahead).unwrap_or(MAX_READ_BYTES).min(MAX_READ_BYTES),
            _ => READ_BYTES,
        };
        let read = ready!(connection.poll_read_into(cx, &mut self.buffer, room + BEYOND_BYTES))?;
        Poll::Ready(Ok(read == 0))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            match this.decoder.decode(&mut this.buffer).map_err(BodyError::Decode)? {
                Decoded::Data(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Decoded::Trailers(trailers) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Decoded::End => return Poll::Ready(None),
                Decoded::More => {}
            }
            this.send(cx)?;
            if ready!(this.poll_read(cx)).map_err(BodyError::Io)? {
                this.reusable = false;
                this.decoder.end_of_input().map_err(BodyError::Decode)?;
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.decoder.is_complete()
    }

    fn size_hint(&self) -> SizeHint {
        self.decoder.size_hint()
    }
}
