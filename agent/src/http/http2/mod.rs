//! The server side of HTTP/2, over the h2 crate: one connection, its streams, its end.
//!
//! Before: [`super::connection`], which chose it. After: `stream` for each request. hyper's server is not used, as it
//! polls no body while the client grants its stream no window: nobody would notice that the time is over.

mod body;
mod stream;

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::server::{Builder, Handshake};
use tokio::net::TcpStream;

pub use body::Body;

use super::connection::Connection;
use super::gate::Gate;
use crate::telemetry::ResponseFlags;

/// Flow control towards clients, in bytes.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 8 * STREAM_WINDOW_BYTES;
/// Requests at once on one connection: Envoy's default is 1024 here.
const MAX_CONCURRENT_STREAMS: u32 = 1024;
/// Streams that the agent reset, for what was wrong with them, before the connection is given up.
const MAX_LOCAL_ERROR_RESETS: usize = 1024;
/// What a stream may have waiting to be written before it counts as slow.
const SEND_BUFFER_BYTES: usize = 400 * 1024;
/// Room above the configured limit, so that the agent's own check answers and records what is too large.
const HEADER_LIST_SLACK: u32 = 64 * 1024;

type Io = Gate<TcpStream>;

/// Serves requests until the connection ends: by the client, by an error, or because the agent drains, nothing was in flight
/// for too long, or the client takes nothing. `first` was read already.
pub async fn serve(connection: &Rc<Connection>, stream: TcpStream, first: BytesMut) {
    let manager = &connection.manager;
    manager.stats.downstream_cx_http2_total.inc();
    let handshake = Builder::new()
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .max_header_list_size(manager.max_request_headers_kb * 1024 + HEADER_LIST_SLACK)
        .max_local_error_reset_streams(Some(MAX_LOCAL_ERROR_RESETS))
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .handshake(Gate::new(stream, first, connection.wire.clone()));
    let mut codec = Codec::Handshake(Box::new(handshake));
    if let Some(Err(error)) = run(connection, &mut codec).await {
        note_error(connection, &error);
    }
}

enum Codec {
    Handshake(Box<Handshake<Io, Bytes>>),
    Open(Box<h2::server::Connection<Io, Bytes>>),
}

impl Codec {
    /// Drives the connection; begins what the client asks for. Ready when it has ended.
    fn poll(&mut self, cx: &mut Context<'_>, connection: &Rc<Connection>, ending: bool) -> Poll<Result<(), h2::Error>> {
        loop {
            match self {
                Self::Handshake(handshake) => {
                    let mut open = ready!(Pin::new(handshake).poll(cx))?;
                    if ending {
                        open.graceful_shutdown();
                    }
                    *self = Self::Open(Box::new(open));
                }
                Self::Open(open) => match ready!(open.poll_accept(cx)) {
                    Some(Ok((request, respond))) => stream::begin(connection, request, respond),
                    Some(Err(error)) => return Poll::Ready(Err(error)),
                    None => return Poll::Ready(Ok(())),
                },
            }
        }
    }

    /// No more requests: the client is told so.
    fn finish(&mut self) {
        if let Self::Open(open) = self {
            open.graceful_shutdown();
        }
    }
}

/// Drives the codec to its end; tells it to come to one when the agent drains or the connection is idle. `None` when the
/// client kept it from coming to one.
async fn run(connection: &Rc<Connection>, codec: &mut Codec) -> Option<Result<(), h2::Error>> {
    let drain = connection.worker.shared.drain.clone();
    let mut end = pin!(async {
        tokio::select! {
            () = drain.draining() => {}
            () = connection.idle() => {}
        }
    });
    let mut abandoned = pin!(connection.abandoned());
    let mut ending = false;
    poll_fn(|cx| {
        if !ending && end.as_mut().poll(cx).is_ready() {
            ending = true;
            codec.finish();
        }
        if abandoned.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        codec.poll(cx, connection, ending).map(Some)
    })
    .await
}

fn note_error(connection: &Connection, error: &h2::Error) {
    tracing::debug!(error = error as &dyn std::error::Error, "a client's connection ended with an error");
    if error.is_library() && error.reason() != Some(h2::Reason::NO_ERROR) {
        connection.note(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, format!("codec_error: {error}"));
    }
}
