//! What an upgraded connection becomes (WebSocket and the like): bytes both ways.
//!
//! Before: a 101 that was sent to the client. After: the end of both connections. Half-close is passed on; a tunnel in
//! which nothing moves ends by the stream idle timeout.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use crate::telemetry::ResponseFlags;

use super::exchange::Exchange;
use super::upstream::Ticket;
use super::upstream_io::UpgradedIo;

/// One copy buffer, in bytes: as large as Linux's default pipe.
const BUFFER_BYTES: usize = 64 * 1024;

/// A tunnel that is about to be opened.
pub struct Tunnel {
    /// Ends with the tunnel.
    pub exchange: Exchange,
    /// The endpoint's side.
    pub upgraded: UpgradedIo,
    /// Counts the request as in flight.
    pub ticket: Ticket,
    /// Without anything moving.
    pub idle: Option<Duration>,
}

impl Tunnel {
    /// Carries bytes between `client`, from which `first` was read already, and the endpoint, until both have ended.
    pub async fn run(self, client: impl AsyncRead + AsyncWrite, first: Bytes) {
        let Self { mut exchange, upgraded: mut endpoint, ticket, idle } = self;
        let moved = Cell::new(Instant::now());
        let (client_reader, client_writer) = tokio::io::split(client);
        let (endpoint_reader, endpoint_writer) = tokio::io::split(&mut endpoint.stream);
        let meter = exchange.meter.clone();
        let up = pump(client_reader, endpoint_writer, first, |bytes| {
            meter.receive(bytes);
            moved.set(Instant::now());
        });
        let down = pump(endpoint_reader, client_writer, endpoint.first, |bytes| {
            meter.send(bytes);
            moved.set(Instant::now());
        });
        let both = async { tokio::try_join!(up, down) };
        tokio::select! {
            // A reset ends a tunnel as well as an orderly close does: there is no telling what the bytes meant.
            _ = both => exchange.complete(),
            () = idle_for(idle, &moved) => {
                exchange.connection.manager.stats.downstream_rq_idle_timeout.inc();
                exchange.reset(ResponseFlags::STREAM_IDLE_TIMEOUT, "stream_idle_timeout");
            }
        }
        drop(ticket);
        drop(endpoint.open);
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    first: Bytes,
    moved: impl Fn(usize),
) -> io::Result<()> {
    if !first.is_empty() {
        moved(first.len());
        to.write_all(&first).await?;
    }
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        moved(read);
        to.write_all(&buffer[..read]).await?;
    }
}

async fn idle_for(idle: Option<Duration>, moved: &Cell<Instant>) {
    let Some(idle) = idle else { return std::future::pending().await };
    while moved.get().elapsed() < idle {
        tokio::time::sleep_until(moved.get() + idle).await;
    }
}
