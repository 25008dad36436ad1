//! gRPC over a unix socket: one HTTP/2 connection, on which any number of calls run at once.
//!
//! Before: the address of a runtime. After: [`super::Cri`] and [`super::hints`], which know the messages.

use std::fmt::Debug;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::Uri;
use http::uri::PathAndQuery;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::client::{Grpc, GrpcService};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::workload::runtime::{CALL_TIMEOUT, RuntimeError};

/// Longest message that is read, in bytes: the kubelet's own limit for these calls.
const MAX_MESSAGE: usize = 16 << 20;

/// HTTP/2 wants a scheme and an authority in each request; behind a unix socket any will do.
const ORIGIN: &str = "http://localhost";

/// An open connection. Clones share it; it closes when the last of them is gone.
#[derive(Clone, Debug)]
pub struct Channel {
    grpc: Grpc<Http2>,
}

impl Channel {
    /// Connects to the server behind the socket at `path`.
    ///
    /// # Errors
    /// Nobody answers there, it is not a socket, or what answers does not speak HTTP/2.
    pub async fn connect(path: &Path) -> Result<Self, RuntimeError> {
        let stream = timeout(CALL_TIMEOUT, UnixStream::connect(path)).await.map_err(|_| RuntimeError::Slow)?;
        let io = TokioIo::new(stream.map_err(RuntimeError::Connect)?);
        let handshake = http2::handshake(TokioExecutor::new(), io);
        let (sender, connection) = timeout(CALL_TIMEOUT, handshake).await.map_err(|_| RuntimeError::Slow)??;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("the connection to a container runtime ended: {error}");
            }
        });
        Ok(Self {
            grpc: Grpc::with_origin(Http2(sender), Uri::from_static(ORIGIN)).max_decoding_message_size(MAX_MESSAGE),
        })
    }

    /// One question, one answer. `method` is a path such as `/runtime.v1.RuntimeService/Version`.
    ///
    /// # Errors
    /// What the server says, [`Code::Unavailable`] when it is gone, [`Code::DeadlineExceeded`] when it does not
    /// answer within [`CALL_TIMEOUT`].
    pub async fn call<Q, A>(&self, method: &'static str, question: Q) -> Result<A, Status>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut grpc = self.grpc.clone();
        let answer = async move {
            ready(&mut grpc).await?;
            grpc.unary(Request::new(question), PathAndQuery::from_static(method), ProstCodec::default()).await
        };
        let answer = timeout(CALL_TIMEOUT, answer).await;
        let answer = answer.map_err(|_| Status::deadline_exceeded(format!("no answer within {CALL_TIMEOUT:?}")))?;
        Ok(answer?.into_inner())
    }

    /// One question, answers until the server ends them.
    ///
    /// # Errors
    /// As of [`Channel::call`], while waiting for the answers to begin: which a server may do only with the first.
    pub async fn subscribe<Q, A>(&self, method: &'static str, question: Q) -> Result<Streaming<A>, Status>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut grpc = self.grpc.clone();
        ready(&mut grpc).await?;
        let path = PathAndQuery::from_static(method);
        Ok(grpc.server_streaming(Request::new(question), path, ProstCodec::default()).await?.into_inner())
    }
}

async fn ready(grpc: &mut Grpc<Http2>) -> Result<(), Status> {
    grpc.ready().await.map_err(|error| Status::unavailable(format!("the connection is closed: {error}")))
}

/// Whether a call failed because of the connection or the server as a whole, not because of what was asked.
pub fn is_outage(status: &Status) -> bool {
    // A connection that breaks under a call arrives as `Unknown` with the reason as its source.
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled)
        || std::error::Error::source(status).is_some()
}

/// What tonic sends its requests with.
#[derive(Clone, Debug)]
struct Http2(http2::SendRequest<tonic::body::Body>);

impl GrpcService<tonic::body::Body> for Http2 {
    type ResponseBody = Incoming;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<http::Response<Incoming>>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
