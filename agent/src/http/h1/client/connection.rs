//! A connection to an endpoint: a socket, counted, without a buffer.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::cluster::connect::{OpenUpstream, Upstream};
use crate::http::upstream_io::UpgradedIo;
use crate::tcp::exhausted;
use crate::telemetry::stats::ClusterStats;

/// See the module.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    stats: Arc<ClusterStats>,
    open: OpenUpstream,
    /// Requests so far.
    pub served: u32,
}

impl Connection {
    /// Over a socket that was just connected.
    pub fn new(upstream: Upstream, stats: &Arc<ClusterStats>) -> Self {
        stats.upstream_cx_http1_total.inc();
        Self { stream: upstream.stream, stats: stats.clone(), open: upstream.open, served: 0 }
    }

    /// Whether the endpoint neither closed it nor said anything unasked, as far as the runtime has heard: no system call
    /// while it has heard nothing.
    pub fn is_quiet(&self) -> bool {
        match self.stream.try_read(&mut [0]) {
            Ok(_) => false,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }

    /// Reads once, as soon as there is something; 0 at the end of what the endpoint sends.
    pub fn poll_read(&self, cx: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.inspect(|read| self.note_read(*read, bytes.len()))),
            }
        }
    }

    /// The same to the end of `buffer`, which gets room for `room` bytes when there is something.
    pub fn poll_read_into(&self, cx: &mut Context<'_>, buffer: &mut BytesMut, room: usize) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            buffer.reserve(room);
            let read = self.stream.try_read_buf(&mut (&mut *buffer).limit(room));
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.inspect(|read| self.note_read(*read, room))),
            }
        }
    }

    fn note_read(&self, bytes: usize, asked: usize) {
        self.stats.upstream_cx_rx_bytes_total.add(bytes as u64);
        if bytes > 0 && bytes < asked {
            exhausted(&self.stream, Interest::READABLE);
        }
    }

    /// Writes what the socket takes at once; 0 when it is full.
    ///
    /// # Errors
    /// What `writev(2)` says.
    pub fn try_write(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let written = match pieces {
            [piece] => self.stream.try_write(piece),
            pieces => self.stream.try_write_vectored(pieces),
        };
        match written {
            Ok(written) => {
                self.stats.upstream_cx_tx_bytes_total.add(written as u64);
                Ok(written)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Waits until the socket takes more.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_write_ready(cx)
    }

    /// What it becomes after a 101; `first` came behind the head.
    pub fn into_upgraded(self, first: Bytes) -> UpgradedIo {
        UpgradedIo::new(self.stream, self.stats, first, self.open)
    }
}
