//! Asks the agent, over its admin socket, and waits no longer than the configuration allows.
//!
//! Before: [`super::add`] and the like. After: `/cni/add`, `/cni/del` and `/ready` of the agent.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout_at};

use super::netconf::NetConf;
use crate::workload::cni::{CniAdd, CniAnswer, CniDel};

/// Between two attempts: short beside the start of a pod, long beside an answer.
const PAUSE: Duration = Duration::from_millis(50);

/// The agent answers in a line or two.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// How patient a question is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// An agent that is there is waited for, as long as the timeout allows; not one that is absent.
    WhileItIsThere,
    /// An absent one is waited for as well.
    ForIt,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody serves the socket.
    #[error("no agent answers at {}: {source}", path.display())]
    Absent {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It serves as many as it can, or ended meanwhile.
    #[error("the agent at {} closed the connection without an answer", .0.display())]
    Closed(PathBuf),
    /// It hangs.
    #[error("the agent at {} did not answer within {} ms", .0.display(), .1.as_millis())]
    Silent(PathBuf, Duration),
    /// It says why not.
    #[error("the agent answers {status}: {text}")]
    Refused {
        /// Its answer's.
        status: StatusCode,
        /// Its answer.
        text: String,
    },
    /// Not what it should answer.
    #[error("the agent's answer is not understood (are agent and plugin of the same version?): {0}")]
    Unexpected(String),
    /// The plugin's own trouble.
    #[error("asking the agent")]
    Setup(#[source] io::Error),
}

impl AskError {
    /// Whether another attempt makes sense.
    fn passes(&self, waiting: Waiting) -> bool {
        match self {
            Self::Closed(_) => true,
            Self::Absent { .. } | Self::Refused { status: StatusCode::SERVICE_UNAVAILABLE, .. } => {
                waiting == Waiting::ForIt
            }
            Self::Silent(..) | Self::Refused { .. } | Self::Unexpected(_) | Self::Setup(_) => false,
        }
    }
}

/// The agent of this node.
pub struct Agent {
    socket: PathBuf,
    timeout: Duration,
}

impl Agent {
    /// The configured one. Nothing is asked yet.
    pub fn of(config: &NetConf) -> Self {
        Self { socket: config.agent_socket.clone(), timeout: config.timeout }
    }

    /// Has a pod enrolled.
    ///
    /// # Errors
    /// It is not known to be.
    pub fn add(&self, pod: &CniAdd, waiting: Waiting) -> Result<CniAnswer, AskError> {
        let answer = self.ask(Method::POST, "/cni/add", json(pod)?, waiting)?;
        serde_json::from_slice(&answer).map_err(|error| AskError::Unexpected(error.to_string()))
    }

    /// Has a pod let go.
    ///
    /// # Errors
    /// The agent does not know.
    pub fn del(&self, pod: &CniDel) -> Result<(), AskError> {
        self.ask(Method::POST, "/cni/del", json(pod)?, Waiting::WhileItIsThere).map(drop)
    }

    /// Whether it serves.
    ///
    /// # Errors
    /// It does not.
    pub fn ready(&self) -> Result<(), AskError> {
        self.ask(Method::GET, "/ready", Bytes::new(), Waiting::WhileItIsThere).map(drop)
    }

    fn ask(&self, method: Method, path: &str, body: Bytes, waiting: Waiting) -> Result<Bytes, AskError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(AskError::Setup)?;
        runtime.block_on(async {
            let deadline = Instant::now() + self.timeout;
            loop {
                let asked = timeout_at(deadline, self.attempt(method.clone(), path, body.clone())).await;
                match asked.unwrap_or_else(|_| Err(AskError::Silent(self.socket.clone(), self.timeout))) {
                    Err(error) if error.passes(waiting) && Instant::now() + PAUSE < deadline => sleep(PAUSE).await,
                    answer => return answer,
                }
            }
        })
    }

    async fn attempt(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, AskError> {
        let absent = |source| AskError::Absent { path: self.socket.clone(), source };
        let closed = |_| AskError::Closed(self.socket.clone());
        let stream = UnixStream::connect(&self.socket).await.map_err(absent)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(closed)?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "waylay")
            .body(Full::new(body))
            .map_err(|error| AskError::Setup(io::Error::other(error)))?;
        let response = sender.send_request(request).await.map_err(closed)?;
        let status = response.status();
        let read = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        connection.abort();
        let answer = read.map_err(|error| AskError::Unexpected(error.to_string()))?.to_bytes();
        if status == StatusCode::OK {
            return Ok(answer);
        }
        Err(AskError::Refused { status, text: String::from_utf8_lossy(&answer).trim().to_owned() })
    }
}

fn json(value: &impl Serialize) -> Result<Bytes, AskError> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| AskError::Setup(error.into()))
}
