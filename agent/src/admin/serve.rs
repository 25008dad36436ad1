//! Accepts connections to the admin interface and serves HTTP/1.1 on them, within limits.
//!
//! Before: bound sockets. After: [`super::router`].

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;

use super::{AdminSocket, Site, State, connection_limit, router};

/// A client has so long to send the head of a request, and between two requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest head of a request.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// After a failed accept: the usual reason, too many open files, does not pass at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the admin socket for ever; returns only when there is none, or an error at the start.
pub async fn admin(socket: Option<AdminSocket>, state: Arc<State>) -> io::Result<()> {
    let Some(socket) = socket else { return Ok(()) };
    let listener = UnixListener::from_std(socket.try_clone()?)?;
    let (limit, own_uid) = (connection_limit(), nix::unistd::geteuid().as_raw());
    let mut connections = JoinSet::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                pause("the admin socket", &error).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == 0 || peer.uid() == own_uid => {}
            Ok(peer) => {
                tracing::warn!(uid = peer.uid(), pid = peer.pid(), "refused a connection to the admin socket");
                continue;
            }
            Err(_) => continue,
        }
        if let Ok(permit) = limit.clone().try_acquire_owned() {
            connections.spawn(connection(stream, Site::Admin, state.clone(), permit));
        }
    }
}

/// Serves `listener` for ever; returns only when there is none, or an error at the start.
pub async fn open(listener: Option<std::net::TcpListener>, site: Site, state: Arc<State>) -> io::Result<()> {
    let Some(listener) = listener else { return Ok(()) };
    let listener = TcpListener::from_std(listener)?;
    let limit = connection_limit();
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                while connections.try_join_next().is_some() {}
                if let Ok(permit) = limit.clone().try_acquire_owned() {
                    connections.spawn(connection(stream, site, state.clone(), permit));
                }
            }
            Err(error) => pause("the admin listener", &error).await,
        }
    }
}

async fn pause(what: &str, error: &io::Error) {
    tracing::warn!(%error, "accepting from {what} failed");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    site: Site,
    state: Arc<State>,
    _permit: OwnedSemaphorePermit,
) {
    let service = service_fn(move |request| {
        let state = state.clone();
        async move { Ok::<_, Infallible>(router::answer(site, &state, request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the admin interface ended early");
    }
}
