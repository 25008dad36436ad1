//! HTTP/1.1 over a unix socket: one GET after the other on one connection.
//!
//! Before: [`super::Docker`], which knows the paths. After: the runtime.

use std::fmt::Display;
use std::path::Path;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::workload::runtime::{CALL_TIMEOUT, RuntimeError};

/// Longest answer that is read, in bytes: some 10 kB for each of a thousand containers.
const MAX_ANSWER: usize = 16 << 20;

/// Longest piece of an error answer that is repeated, in characters.
const MAX_QUOTED: usize = 200;

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    sender: http1::SendRequest<Empty<Bytes>>,
}

impl Connection {
    /// Connects to the server behind the socket at `path`.
    ///
    /// # Errors
    /// Nobody answers there, or it is not a socket.
    pub async fn open(path: &Path) -> Result<Self, RuntimeError> {
        let stream = timeout(CALL_TIMEOUT, UnixStream::connect(path)).await.map_err(|_| RuntimeError::Slow)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream.map_err(RuntimeError::Connect)?)).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("the connection to a container runtime ended: {error}");
            }
        });
        Ok(Self { sender })
    }

    /// Asks for `path`, which may have a query, and reads the answer as JSON.
    ///
    /// # Errors
    /// The connection broke, no answer came within [`CALL_TIMEOUT`], or it is a refusal, not of this shape, or too long.
    pub async fn json<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, RuntimeError> {
        let answer = timeout(CALL_TIMEOUT, self.get(path)).await.map_err(|_| RuntimeError::Slow)??;
        let body = whole(path, answer).await?;
        serde_json::from_slice(&body).map_err(|error| malformed(path, error))
    }

    /// Asks for `path`, whose answer goes on for as long as the server likes, and may begin as late.
    ///
    /// # Errors
    /// The connection broke, or it is a refusal.
    pub async fn subscribe(mut self, path: &str) -> Result<Incoming, RuntimeError> {
        Ok(self.get(path).await?.into_body())
    }

    async fn get(&mut self, path: &str) -> Result<Response<Incoming>, RuntimeError> {
        let request = Request::get(path).header(header::HOST, "localhost").body(Empty::new());
        let request = request.map_err(|error| malformed(path, error))?;
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        if answer.status() == StatusCode::OK {
            return Ok(answer);
        }
        let status = answer.status();
        let body = whole(path, answer).await.unwrap_or_default();
        let message = String::from_utf8_lossy(&body).trim().chars().take(MAX_QUOTED).collect();
        Err(RuntimeError::Refused { path: path.to_owned(), status, message })
    }
}

async fn whole(path: &str, answer: Response<Incoming>) -> Result<Bytes, RuntimeError> {
    let body = timeout(CALL_TIMEOUT, Limited::new(answer.into_body(), MAX_ANSWER).collect()).await;
    Ok(body.map_err(|_| RuntimeError::Slow)?.map_err(|error| malformed(path, error))?.to_bytes())
}

fn malformed(path: &str, reason: impl Display) -> RuntimeError {
    RuntimeError::Malformed { path: path.to_owned(), reason: reason.to_string() }
}
