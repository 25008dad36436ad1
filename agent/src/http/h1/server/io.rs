//! The client's socket, what was read from it and not used yet, and what waits to be written.
//!
//! Shared, in one task as a rule, by the connection's loop and the body of the request that it serves. One read for each
//! wake-up: a read that did not fill its buffer has emptied the socket, and the reactor is told so, which saves the read
//! that would find out. An idle connection has no buffer: bytes are read into the worker's own.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::head::Framing;
use crate::http::connection::Connection;
use crate::http::h1::decode::Decoder;
use crate::tcp::exhausted;
use crate::worker::SCRATCH_BYTES;

/// Of a long body, so much is read at once.
const LARGE_READ: usize = SCRATCH_BYTES;
/// Of a chunked one, whose length nobody knows, so much.
const CHUNKED_READ: usize = 16 * 1024;

/// The state that the loop and the request's body share.
pub struct Io {
    /// Whose socket it is.
    pub connection: Rc<Connection>,
    /// The socket.
    pub stream: TcpStream,
    /// What arrived.
    pub input: RefCell<Input>,
    /// An interim response that the socket did not take at once.
    interim: Cell<&'static [u8]>,
    /// The loop, while another task reads the body.
    watcher: Cell<Option<Waker>>,
}

/// See [`Io`].
#[derive(Debug)]
pub struct Input {
    /// Read and not used.
    pub buffer: BytesMut,
    /// Where the current request's body ends.
    pub decoder: Decoder,
    /// The number of the current request: an earlier one's body reads nothing any more.
    pub request: u64,
    /// The client waits for a `100 Continue`.
    pub expects: bool,
}

impl Io {
    /// Of a connection on which nothing was read.
    pub fn new(connection: Rc<Connection>, stream: TcpStream) -> Self {
        let input = Input { buffer: BytesMut::new(), decoder: Decoder::length(0), request: 0, expects: false };
        Self { connection, stream, input: RefCell::new(input), interim: Cell::new(&[]), watcher: Cell::new(None) }
    }

    /// A request's head was taken out of the buffer; its body is next.
    pub fn begin_body(&self, framing: Framing, expects: bool) -> u64 {
        let mut input = self.input.borrow_mut();
        input.decoder = match framing {
            Framing::Length(bytes) => Decoder::length(bytes),
            Framing::Chunked => Decoder::chunked(),
        };
        input.expects = expects && !input.decoder.is_complete();
        input.request += 1;
        input.request
    }

    /// Whether the request has arrived in full.
    pub fn is_complete(&self) -> bool {
        self.input.borrow().decoder.is_complete()
    }

    /// Reads behind what is in the buffer, by way of the worker's scratch buffer; 0 at the end of the stream. Not for a
    /// request's body: whoever polls that may have lent the scratch buffer already.
    pub fn poll_fill(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.poll_read(cx, |buffer| {
            self.connection.worker.with_scratch(|scratch| {
                let read = self.stream.try_read(scratch)?;
                if buffer.is_empty() {
                    *buffer = BytesMut::from(&scratch[..read]);
                } else {
                    buffer.extend_from_slice(&scratch[..read]);
                }
                Ok((read, scratch.len()))
            })
        })
    }

    /// Reads some of the body behind what is in the buffer, into memory that becomes the body's data; 0 at the end of the
    /// stream.
    pub fn poll_fill_body(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let ahead = self.input.borrow().decoder.size_hint().exact();
        let room = ahead
            .map_or(CHUNKED_READ, |bytes| usize::try_from(bytes).map_or(LARGE_READ, |bytes| bytes.min(LARGE_READ)));
        self.poll_read(cx, |buffer| {
            buffer.reserve(room);
            let room = buffer.capacity() - buffer.len();
            Ok((self.stream.try_read_buf(buffer)?, room))
        })
    }

    /// Reads once with `read`, which says how much it read and for how much there was room.
    fn poll_read(
        &self,
        cx: &mut Context<'_>,
        read: impl Fn(&mut BytesMut) -> io::Result<(usize, usize)>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match read(&mut self.input.borrow_mut().buffer) {
                Ok((read, room)) => {
                    if read > 0 && read < room {
                        exhausted(&self.stream, Interest::READABLE);
                    }
                    let received = &self.connection.wire.received;
                    received.set(received.get() + read as u64);
                    return Poll::Ready(Ok(read));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// The body is read by a task of its own, perhaps; this one is told when it is through.
    pub fn watch(&self, cx: &Context<'_>) {
        let known = self.watcher.take().filter(|watcher| watcher.will_wake(cx.waker()));
        self.watcher.set(Some(known.unwrap_or_else(|| cx.waker().clone())));
    }

    /// Nothing more is to be read of the body.
    pub fn body_ended(&self, cx: &Context<'_>) {
        if let Some(watcher) = self.watcher.take().filter(|watcher| !watcher.will_wake(cx.waker())) {
            watcher.wake();
        }
    }

    /// Sends an interim response as soon as the socket takes it.
    pub fn poll_interim(&self, cx: &mut Context<'_>, response: &'static [u8]) -> io::Result<()> {
        if !response.is_empty() {
            self.interim.set(response);
        }
        while !self.interim.get().is_empty() {
            match self.try_write(&[IoSlice::new(self.interim.get())]) {
                Ok(sent) => self.interim.set(self.interim.get().get(sent..).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match self.stream.poll_write_ready(cx) {
                    Poll::Ready(ready) => ready?,
                    Poll::Pending => return Ok(()),
                },
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn try_write(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let sent = match pieces {
            [piece] => self.stream.try_write(piece)?,
            pieces => self.stream.try_write_vectored(pieces)?,
        };
        if sent < pieces.iter().map(|piece| piece.len()).sum() {
            exhausted(&self.stream, Interest::WRITABLE);
        }
        let wire = &self.connection.wire;
        wire.sent.set(wire.sent.get() + sent as u64);
        Ok(sent)
    }

    /// Writes all of `output`.
    pub fn poll_send(&self, cx: &mut Context<'_>, output: &mut Output) -> Poll<io::Result<()>> {
        self.poll_interim(cx, &[])?;
        if !self.interim.get().is_empty() {
            return Poll::Pending;
        }
        while !output.is_empty() {
            match output.write(|pieces| self.try_write(pieces)) {
                Ok(()) => self.connection.wire.flows(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.stream.poll_write_ready(cx)?.is_pending() {
                        self.connection.wire.block();
                        return Poll::Pending;
                    }
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Data up to this size is copied.
const COPIED_BYTES: usize = 2 * 1024;
/// So much is written before more is gathered.
const PLENTY_BYTES: usize = 16 * 1024;

/// What is to be written next, in this order. Goes out in one system call, if the socket takes it.
#[derive(Debug, Default)]
pub struct Output {
    /// A head, or a chunk's size.
    pub before: Vec<u8>,
    sent: usize,
    /// Of the body.
    pub data: Bytes,
    /// A chunk's end, the last chunk.
    pub behind: &'static [u8],
}

impl Output {
    /// Nothing yet; `buffer` is empty.
    pub fn new(buffer: Vec<u8>) -> Self {
        Self { before: buffer, ..Self::default() }
    }

    /// Adds data of a body, and what stands behind it. A little is copied behind what goes before it: one piece costs the
    /// kernel less than several.
    pub fn push(&mut self, data: Bytes, behind: &'static [u8]) {
        if data.len() <= COPIED_BYTES {
            self.before.extend_from_slice(&data);
            self.before.extend_from_slice(behind);
        } else {
            (self.data, self.behind) = (data, behind);
        }
    }

    /// Whether it is to be written before anything is added.
    pub fn is_plenty(&self) -> bool {
        !self.data.is_empty() || !self.behind.is_empty() || self.before.len() >= PLENTY_BYTES
    }

    /// Whether all is written.
    pub fn is_empty(&self) -> bool {
        self.sent == self.before.len() && self.data.is_empty() && self.behind.is_empty()
    }

    fn write(&mut self, write: impl FnOnce(&[IoSlice<'_>]) -> io::Result<usize>) -> io::Result<()> {
        let before = &self.before[self.sent..];
        let pieces = [IoSlice::new(before), IoSlice::new(&self.data), IoSlice::new(self.behind)];
        let first = pieces.iter().position(|piece| !piece.is_empty()).unwrap_or_default();
        let last = pieces.iter().rposition(|piece| !piece.is_empty()).unwrap_or_default();
        let mut sent = write(&pieces[first..=last])?;
        let of_before = sent.min(before.len());
        self.sent += of_before;
        sent -= of_before;
        if self.sent == self.before.len() {
            self.before.clear();
            self.sent = 0;
        }
        let of_data = sent.min(self.data.len());
        self.data.advance(of_data);
        if self.data.is_empty() {
            self.data = Bytes::new();
        }
        self.behind = self.behind.get(sent - of_data..).unwrap_or_default();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_added_before_the_end_of_a_chunk_that_the_socket_did_not_take() {
        let mut output = Output::default();
        output.before.extend_from_slice(b"1000\r\n");
        output.push(Bytes::from(vec![b'x'; 4096]), b"\r\n");
        output.write(|pieces| Ok(pieces.iter().take(2).map(|piece| piece.len()).sum())).expect("written");
        assert!(output.data.is_empty() && output.before.is_empty());
        assert!(output.is_plenty());
        output.write(|pieces| Ok(pieces[0].len())).expect("written");
        assert!(output.is_empty() && !output.is_plenty());
    }
}
