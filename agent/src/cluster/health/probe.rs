//! One question to one endpoint: a connection, bytes, or a GET request.
//!
//! Before: the checker's loop, which limits the time. After: a result in words. Every check opens a connection of its
//! own, so that it sees what a new client would see.

use std::fmt;
use std::io;

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::Subject;
use super::state::Verdict;
use crate::cluster::connect::{Reason, open};
use crate::cluster::{HealthCheck, HealthCheckKind, UpstreamProtocol};
use crate::kernel::Kernel;
use crate::place::Behalf;

/// How much of an answer a TCP check reads in search of what it expects.
const TCP_ANSWER_LIMIT_BYTES: usize = 64 * 1024;

/// Why an endpoint did not pass.
#[derive(Debug)]
pub(super) enum Failure {
    /// The time was up.
    Timeout,
    /// It could not be asked, or its connection broke.
    Network(io::Error),
    /// What it sent is no HTTP.
    Http(hyper::Error),
    /// It sent something else than expected, and closed.
    Unexpected,
    /// It said that it is not well.
    Status(StatusCode),
    /// It said so with a status that only counts towards the threshold.
    RetriableStatus(StatusCode),
    /// The configured path or host makes no valid request.
    Request(http::Error),
}

impl Failure {
    /// What it means for the endpoint's health.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Status(_) => Verdict::FailAtOnce,
            _ => Verdict::Fail,
        }
    }

    /// Whether it never came to an answer.
    pub fn is_of_the_network(&self) -> bool {
        matches!(self, Self::Timeout | Self::Network(_) | Self::Http(_))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Network(error)
    }
}

impl From<hyper::Error> for Failure {
    fn from(error: hyper::Error) -> Self {
        Self::Http(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("timeout"),
            Self::Network(error) => Reason(error).fmt(f),
            Self::Http(error) => error.fmt(f),
            Self::Unexpected => f.write_str("unexpected answer"),
            Self::Status(status) | Self::RetriableStatus(status) => write!(f, "status {}", status.as_u16()),
            Self::Request(error) => write!(f, "the check's path or host is not valid: {error}"),
        }
    }
}

/// Asks once.
pub(super) async fn probe(check: &HealthCheck, subject: &Subject, kernel: Option<&Kernel>) -> Result<(), Failure> {
    let stream = open(kernel, &Behalf::agent(), subject.endpoint.address.socket()).await?;
    match &check.kind {
        HealthCheckKind::Tcp { send, receive } => tcp(stream, send.as_deref(), receive).await,
        HealthCheckKind::Http { path, host, expected_statuses, retriable_statuses } => {
            let host = host.clone().unwrap_or_else(|| default_host(subject));
            let status = match subject.round.plan.protocol {
                UpstreamProtocol::Http1 | UpstreamProtocol::Downstream => http1(stream, path, &host).await?,
                UpstreamProtocol::Http2 => http2(stream, path, &host).await?,
            };
            judge(status, expected_statuses, retriable_statuses)
        }
    }
}

/// The cluster's name, as in Envoy; the endpoint's address where the name (`outbound|80||shop`) could be no host.
fn default_host(subject: &Subject) -> String {
    let name = &*subject.round.membership.cluster;
    match name.parse::<Authority>() {
        Ok(_) => name.to_owned(),
        Err(_) => subject.endpoint.address.to_string(),
    }
}

async fn tcp(mut stream: TcpStream, send: Option<&[u8]>, receive: &[Vec<u8>]) -> Result<(), Failure> {
    if let Some(send) = send {
        stream.write_all(send).await?;
    }
    let mut answer = Vec::new();
    while !occur_in_order(receive, &answer) {
        if answer.len() >= TCP_ANSWER_LIMIT_BYTES || stream.read_buf(&mut answer).await? == 0 {
            return Err(Failure::Unexpected);
        }
    }
    Ok(())
}

/// Whether all `patterns` occur in `bytes`, each behind the one before it.
fn occur_in_order(patterns: &[Vec<u8>], mut bytes: &[u8]) -> bool {
    patterns.iter().filter(|pattern| !pattern.is_empty()).all(|pattern| {
        let found = bytes.windows(pattern.len()).position(|window| window == pattern);
        found.inspect(|at| bytes = &bytes[at + pattern.len()..]).is_some()
    })
}

/// The connection's own task, ended with the check.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn http1(stream: TcpStream, path: &str, host: &str) -> Result<StatusCode, Failure> {
    let host = HeaderValue::from_str(host).map_err(|error| Failure::Request(error.into()))?;
    let request = Request::get(path).header(header::HOST, host).header(header::USER_AGENT, USER_AGENT);
    let request = request.body(Empty::<Bytes>::new()).map_err(Failure::Request)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let _driver = Driver(tokio::spawn(async move {
        // Its error reaches the sender as well.
        let _ = connection.await;
    }));
    Ok(sender.send_request(request).await?.status())
}

async fn http2(stream: TcpStream, path: &str, host: &str) -> Result<StatusCode, Failure> {
    let uri = Uri::builder().scheme("http").authority(host).path_and_query(path).build().map_err(Failure::Request)?;
    let request = Request::get(uri).header(header::USER_AGENT, USER_AGENT);
    let request = request.body(Empty::<Bytes>::new()).map_err(Failure::Request)?;
    let executor = TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, TokioIo::new(stream)).await?;
    let _driver = Driver(tokio::spawn(async move {
        let _ = connection.await;
    }));
    Ok(sender.send_request(request).await?.status())
}

const USER_AGENT: &str = "waylay/health-check";

/// What `status` says, 200 being good when nothing else is `expected`.
fn judge(status: StatusCode, expected: &[(u16, u16)], retriable: &[(u16, u16)]) -> Result<(), Failure> {
    let within = |ranges: &[(u16, u16)]| ranges.iter().any(|(start, end)| (*start..*end).contains(&status.as_u16()));
    if within(expected) || (expected.is_empty() && status == StatusCode::OK) {
        Ok(())
    } else if within(retriable) {
        Err(Failure::RetriableStatus(status))
    } else {
        Err(Failure::Status(status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_occur_in_their_order() {
        let patterns = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>();
        for (texts, answer, found) in [
            (&["PONG"][..], "+PONG\r\n", true),
            (&["PO", "NG"], "PONG", true),
            (&["NG", "PO"], "PONG", false),
            (&["aa", "aa"], "aaa", false),
            (&["aa", "aa"], "aaaa", true),
            (&[], "", true),
            (&[""], "", true),
            (&["x"], "", false),
        ] {
            assert_eq!(occur_in_order(&patterns(texts), answer.as_bytes()), found, "{texts:?} in {answer}");
        }
    }

    #[test]
    fn a_status_is_expected_retriable_or_fails_at_once() {
        for (status, expected, retriable, verdict) in [
            (200, &[][..], &[][..], Verdict::Pass),
            (204, &[], &[], Verdict::FailAtOnce),
            (204, &[(200, 300)], &[], Verdict::Pass),
            (200, &[(201, 202)], &[], Verdict::FailAtOnce),
            (300, &[(200, 300)], &[], Verdict::FailAtOnce),
            (503, &[], &[(500, 600)], Verdict::Fail),
        ] {
            let status = StatusCode::from_u16(status).expect("status");
            let judged =
                judge(status, expected, retriable).map_or_else(|failure| failure.verdict(), |()| Verdict::Pass);
            assert_eq!(judged, verdict, "{status} with {expected:?}, {retriable:?}");
        }
    }
}
