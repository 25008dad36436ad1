//! A container runtime for tests: a server on a unix socket that answers each request as the test says.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{Stream, stream};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;
type Handler = dyn Fn(&str, Bytes) -> Option<Answer> + Send + Sync;

#[derive(Clone, Copy, Debug)]
pub enum Version {
    Http1,
    Http2,
}

/// It ends when it is dropped, with all of its connections.
pub struct Fake {
    pub socket: PathBuf,
    /// The paths that were asked for.
    pub asked: Arc<Mutex<Vec<String>>>,
    version: Version,
    handler: Arc<Handler>,
    task: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Fake {
    /// `handler` gets the path and the body of a request; `None`: there is never an answer.
    pub fn serve(version: Version, handler: impl Fn(&str, Bytes) -> Option<Answer> + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("runtime.sock");
        let (asked, handler) = (Arc::default(), Arc::new(handler) as Arc<Handler>);
        let task = tokio::spawn(accept(listen(&socket), version, handler.clone(), Arc::clone(&asked)));
        Self { socket, asked, version, handler, task, _folder: folder }
    }

    /// Ends the server and all of its connections at once.
    pub async fn stop(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
        std::fs::remove_file(&self.socket).expect("removing the socket");
    }

    /// Starts it again.
    pub fn start_again(&mut self) {
        let listener = listen(&self.socket);
        self.task = tokio::spawn(accept(listener, self.version, self.handler.clone(), self.asked.clone()));
    }

    /// How often a path that ends like this was asked for.
    pub fn count(&self, end: &str) -> usize {
        self.asked.lock().expect("asked").iter().filter(|path| path.ends_with(end)).count()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn listen(socket: &PathBuf) -> UnixListener {
    UnixListener::bind(socket).expect("listening on a unix socket")
}

async fn accept(listener: UnixListener, version: Version, handler: Arc<Handler>, asked: Arc<Mutex<Vec<String>>>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.expect("accepting");
        connections.spawn(connection(stream, version, handler.clone(), asked.clone()));
    }
}

async fn connection(stream: UnixStream, version: Version, handler: Arc<Handler>, asked: Arc<Mutex<Vec<String>>>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (handler, asked) = (handler.clone(), asked.clone());
        async move {
            let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
            asked.lock().expect("asked").push(path.clone());
            let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            match handler(&path, body) {
                Some(answer) => Ok::<_, Infallible>(answer),
                None => std::future::pending().await,
            }
        }
    });
    let io = TokioIo::new(stream);
    // The client's end of it is what tests look at.
    let _ = match version {
        Version::Http1 => hyper::server::conn::http1::Builder::new().serve_connection(io, service).await,
        Version::Http2 => {
            hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await
        }
    };
}

/// A plain answer.
pub fn answer(status: u16, body: impl Into<Bytes>) -> Answer {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(status).body(body).expect("an answer")
}

/// An answer whose body goes on with each piece that is sent, and ends with the sender.
pub fn streamed(pieces: mpsc::UnboundedReceiver<Bytes>) -> Answer {
    grpc_frames(stream::unfold(pieces, |mut pieces| async move {
        let piece = pieces.recv().await?;
        Some((Ok(Frame::data(piece)), pieces))
    }))
}

/// The bytes of one gRPC message.
pub fn framed(message: &impl prost::Message) -> Bytes {
    framed_bytes(&message.encode_to_vec())
}

/// The same of bytes that may be no message.
pub fn framed_bytes(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("a small message");
    [&[0][..], &length.to_be_bytes(), message].concat().into()
}

/// A gRPC answer that succeeded, whatever its bytes are.
pub fn grpc_bytes(bytes: Bytes) -> Answer {
    let trailers =
        HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
    grpc_frames(stream::iter([Ok(Frame::data(bytes)), Ok(Frame::trailers(trailers))]))
}

/// A gRPC answer whose connection breaks in the middle.
pub fn grpc_broken(bytes: Bytes) -> Answer {
    grpc_frames(stream::iter([Ok(Frame::data(bytes)), Err(io::Error::other("gone"))]))
}

/// A gRPC answer that is an error.
pub fn grpc_status(code: u32, message: &str) -> Answer {
    let mut answer = grpc_headers(Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync());
    answer.headers_mut().insert("grpc-status", HeaderValue::from(code));
    answer.headers_mut().insert("grpc-message", HeaderValue::from_str(message).expect("a message"));
    answer
}

fn grpc_frames(frames: impl Stream<Item = io::Result<Frame<Bytes>>> + Send + 'static) -> Answer {
    grpc_headers(StreamBody::new(frames).boxed_unsync())
}

fn grpc_headers(body: UnsyncBoxBody<Bytes, io::Error>) -> Answer {
    Response::builder().header("content-type", "application/grpc").body(body).expect("an answer")
}
