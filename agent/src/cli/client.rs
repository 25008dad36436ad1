//! Asks the running agent, over its admin socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

pub use crate::snapshot::DEFAULT_ADMIN_SOCKET as DEFAULT_SOCKET;

/// An agent that does not begin to answer within this time hangs: its longest answer, the dump of 100,000 routes, takes
/// less than a second to begin.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Which agent is asked.
#[derive(Clone, Debug, clap::Args)]
pub struct Socket {
    /// The admin socket of the running agent
    #[arg(long = "admin-socket", value_name = "PATH", default_value = DEFAULT_SOCKET, env = "WAYLAY_ADMIN_SOCKET")]
    pub path: PathBuf,
}

/// A connection to the agent for each question.
pub struct AdminClient {
    socket: PathBuf,
    patience: Duration,
    runtime: Runtime,
}

impl AdminClient {
    /// A client of the agent at `socket`. Nothing is asked yet.
    ///
    /// # Errors
    /// The process has no file descriptors left.
    pub fn new(socket: &Socket) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { socket: socket.path.clone(), patience: ANSWER_TIMEOUT, runtime })
    }

    /// The same, which waits no longer than `patience` for an answer to begin.
    pub fn patient(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The page at `path`.
    ///
    /// # Errors
    /// No agent answers, or not with 200.
    pub fn page(&self, path: &str) -> anyhow::Result<String> {
        self.runtime.block_on(async {
            let body = self.request(path).await?;
            let bytes = body.collect().await.with_context(|| format!("reading {path} from the agent"))?.to_bytes();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        })
    }

    /// The page at `path` as JSON.
    ///
    /// # Errors
    /// As [`Self::page`]; or the answer is not JSON.
    pub fn json(&self, path: &str) -> anyhow::Result<Value> {
        serde_json::from_str(&self.page(path)?).with_context(|| format!("the agent's {path} is no JSON"))
    }

    /// Calls `each` with every line of the page at `path`, as they come, until the agent ends or `each` fails.
    ///
    /// # Errors
    /// As [`Self::page`], or that of `each`.
    pub fn lines(&self, path: &str, mut each: impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            let mut body = self.request(path).await?;
            let mut pending = Vec::new();
            while let Some(frame) = body.frame().await {
                // An error here is the end of the agent.
                let Ok(frame) = frame else { break };
                pending.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<_> = pending.drain(..=end).collect();
                    each(String::from_utf8_lossy(&line).trim_end())?;
                }
            }
            Ok(())
        })
    }

    async fn request(&self, path: &str) -> anyhow::Result<Incoming> {
        timeout(self.patience, self.answer(path)).await.unwrap_or_else(|_| {
            Err(anyhow!(
                "the agent at {} does not answer: it hangs or is stopped (`waylay maps` works without it)",
                self.socket.display()
            ))
        })
    }

    async fn answer(&self, path: &str) -> anyhow::Result<Incoming> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| explain(&self.socket, error))?;
        let asking = || format!("asking the agent at {} for {path}", self.socket.display());
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.with_context(asking)?;
        tokio::spawn(connection);
        let request = Request::get(path).header(http::header::HOST, "waylay").body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await.with_context(asking)?;
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(response.into_body());
        }
        let body = response.into_body().collect().await.with_context(asking)?.to_bytes();
        bail!("the agent answers {status}: {}", String::from_utf8_lossy(&body).trim_end())
    }
}

/// Percent-encodes a value for a query.
pub fn encode(value: &str) -> String {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/[]".contains(&byte);
    value.bytes().map(|byte| if safe(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn explain(socket: &Path, error: io::Error) -> anyhow::Error {
    let socket = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound => anyhow!("no agent is running: {socket} does not exist"),
        io::ErrorKind::ConnectionRefused => anyhow!("no agent is running: nobody listens on {socket} any more"),
        io::ErrorKind::PermissionDenied => anyhow!("{socket} is for root and the agent's own user: try sudo"),
        _ => anyhow::Error::new(error).context(format!("connecting to the agent at {socket}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_agent_the_socket_is_named() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("admin.sock");
        let client = AdminClient::new(&Socket { path: path.clone() }).expect("client");
        let missing = client.page("/ready").expect_err("no agent").to_string();
        assert_eq!(missing, format!("no agent is running: {} does not exist", path.display()));
        drop(std::os::unix::net::UnixListener::bind(&path).expect("socket"));
        let dead = client.page("/ready").expect_err("no agent").to_string();
        assert_eq!(dead, format!("no agent is running: nobody listens on {} any more", path.display()));
    }

    #[test]
    fn an_agent_that_does_not_answer_is_not_waited_for() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("admin.sock");
        let _listens_and_never_accepts = std::os::unix::net::UnixListener::bind(&path).expect("socket");
        let client = AdminClient::new(&Socket { path }).expect("client");
        client.runtime.block_on(async { tokio::time::pause() });
        let error = client.page("/ready").expect_err("no answer").to_string();
        assert!(error.contains("does not answer"), "{error}");
    }

    #[test]
    fn query_values_are_encoded() {
        assert_eq!(encode("a b&c=[::1]:80"), "a%20b%26c%3D[::1]:80");
    }
}
