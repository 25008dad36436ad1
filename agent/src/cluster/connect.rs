//! Opens a connection to an endpoint.
//!
//! Before: [`super::select`]. After: the byte pumps of [`crate::tcp`] or the pools of [`crate::http`]. Every socket of
//! the agent that connects anywhere goes through [`open`]: before its SYN leaves the kernel's side knows it for the agent's, by
//! the process or by a stamp, or it would hand it back to the agent.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustix::net::sockopt;
use socket2::Socket;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::Cluster;
use super::breaker::Permit;
use super::endpoint::Endpoint;
use crate::addr::EndpointAddr;
use crate::kernel::Kernel;
use crate::place::Behalf;
use crate::telemetry::flags::ResponseFlags;
use crate::worker::Worker;

/// Why a connection to an endpoint could not be opened. Flag UF (UO for the circuit breaker).
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Refused, unreachable, reset ...
    #[error("connecting to {address}")]
    Failed {
        /// Of the endpoint.
        address: EndpointAddr,
        /// What `connect(2)` said, or what kept the agent from calling it.
        #[source]
        source: io::Error,
    },
    /// `connect_timeout` passed.
    #[error("connecting to {address}: connection timeout")]
    Timeout {
        /// Of the endpoint.
        address: EndpointAddr,
    },
    /// max_connections of the circuit breaker.
    #[error("cluster {cluster} has max_connections open")]
    Overflow {
        /// Its name.
        cluster: Arc<str>,
    },
}

impl ConnectError {
    /// The flag of the access record.
    pub fn flags(&self) -> ResponseFlags {
        match self {
            Self::Failed { .. } | Self::Timeout { .. } => ResponseFlags::UPSTREAM_CONNECTION_FAILURE,
            Self::Overflow { .. } => ResponseFlags::UPSTREAM_OVERFLOW,
        }
    }

    /// Envoy's words in "reset reason: ...".
    pub fn reset_reason(&self) -> &'static str {
        match self {
            Self::Failed { .. } => "remote connection failure",
            Self::Timeout { .. } => "connection timeout",
            Self::Overflow { .. } => "overflow",
        }
    }

    /// Envoy's words in "transport failure reason: ...", where there is one.
    pub fn transport_failure_reason(&self) -> Option<String> {
        match self {
            Self::Failed { source, .. } => Some(format!("delayed connect error: {}", Reason(source))),
            Self::Timeout { .. } | Self::Overflow { .. } => None,
        }
    }
}

/// An I/O error in the words of its kind ("connection refused"), or its own where the kind says nothing.
pub(super) struct Reason<'a>(pub &'a io::Error);

impl std::fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.raw_os_error() {
            Some(_) => self.0.kind().fmt(f),
            None => self.0.fmt(f),
        }
    }
}

/// A connection to an endpoint, counted as open until it is dropped.
#[derive(Debug)]
pub struct Upstream {
    /// The socket: known to the kernel's side for the agent's before connect, TCP_NODELAY set.
    pub stream: TcpStream,
    /// Counts it in the cluster's and the endpoint's cx_active until dropped.
    pub open: OpenUpstream,
}

/// See [`Upstream::open`].
#[derive(Debug)]
pub struct OpenUpstream {
    endpoint: Arc<Endpoint>,
    _permit: Permit,
}

impl OpenUpstream {
    /// Begins to count; `None` when the circuit breaker refuses.
    fn begin(cluster: &Cluster, endpoint: &Arc<Endpoint>) -> Option<Self> {
        let permit = cluster.try_connection()?;
        cluster.stats.upstream_cx_total.inc();
        endpoint.stats.cx_total.inc();
        endpoint.stats.cx_active.inc();
        Some(Self { endpoint: endpoint.clone(), _permit: permit })
    }
}

impl Drop for OpenUpstream {
    fn drop(&mut self) {
        self.endpoint.stats.cx_active.dec();
    }
}

/// Who speaks first on a connection to an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirstWord {
    /// Not known: perhaps the endpoint.
    #[default]
    Unknown,
    /// The agent, as soon as it is connected, or else it calls [`complete_handshake`] then. The segment that ends the
    /// handshake is left out, as the first bytes say the same: one packet less, and the endpoint wakes up once instead of
    /// twice.
    Ours,
}

/// Connects to `endpoint` from the place of whom it is done for, within the cluster's connect_timeout.
///
/// # Errors
/// When the circuit breaker refuses, the endpoint does, or the time is up; each is counted.
pub async fn connect(
    worker: &Worker,
    behalf: &Behalf,
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    first: FirstWord,
) -> Result<Upstream, ConnectError> {
    let Some(open_upstream) = OpenUpstream::begin(cluster, endpoint) else {
        return Err(ConnectError::Overflow { cluster: cluster.name.clone() });
    };
    let started = Instant::now();
    let address = endpoint.address;
    let kernel = worker.shared.kernel_attached().await;
    let connecting = open_for(kernel, behalf, address.socket(), first);
    let error = match tokio::time::timeout(cluster.connect_timeout, connecting).await {
        Ok(Ok(stream)) => {
            cluster.stats.upstream_cx_connect_time.observe(started.elapsed());
            return Ok(Upstream { stream, open: open_upstream });
        }
        Ok(Err(source)) => ConnectError::Failed { address, source },
        Err(_) => {
            cluster.stats.upstream_cx_connect_timeout.inc();
            ConnectError::Timeout { address }
        }
    };
    cluster.stats.upstream_cx_connect_fail.inc();
    endpoint.stats.cx_connect_fail.inc();
    Err(error)
}

/// Opens a socket that the kernel's side lets pass, and connects it to `address`. Without a `kernel` nothing is
/// intercepted and nothing has to be known of it.
///
/// # Errors
/// What `socket(2)` and `connect(2)` say. A stamp that is needed and fails is an error too: without it, the connection would come
/// back to the agent.
pub async fn open(kernel: Option<&Kernel>, behalf: &Behalf, address: SocketAddr) -> io::Result<TcpStream> {
    open_for(kernel, behalf, address, FirstWord::Unknown).await
}

async fn open_for(
    kernel: Option<&Kernel>,
    behalf: &Behalf,
    address: SocketAddr,
    first: FirstWord,
) -> io::Result<TcpStream> {
    let socket = behalf.place.socket(address).await?;
    socket.set_tcp_nodelay(true)?;
    if first == FirstWord::Ours {
        // Before the handshake it says that the answer to the endpoint's part may wait for data (tcp(7)). The kernel goes
        // back to quick acknowledgements by itself. A kernel that does not know it only sends the packet.
        let _ = sockopt::set_tcp_quickack(&socket, false);
    }
    if let Some(kernel) = kernel {
        kernel.let_pass(&socket, behalf.direction).map_err(io::Error::other)?;
    }
    connect_socket(socket, address).await
}

/// Connects a non-blocking socket.
///
/// # Errors
/// What `connect(2)` says, at once or later.
pub async fn connect_socket(socket: Socket, address: SocketAddr) -> io::Result<TcpStream> {
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let stream = TcpStream::from_std(socket.into())?;
    let ready = stream.ready(Interest::WRITABLE | Interest::ERROR).await?;
    // A connect that failed leaves a socket that is in error and closed; only then there is an error to ask for.
    if (ready.is_error() || ready.is_write_closed())
        && let Some(error) = stream.take_error()?
    {
        return Err(error);
    }
    Ok(stream)
}

/// The part of the handshake that [`FirstWord::Ours`] left out, when it turns out that there is nothing to send yet.
pub fn complete_handshake(stream: &TcpStream) {
    // A kernel that does not know it has not left anything out.
    let _ = sockopt::set_tcp_quickack(stream, true);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::CircuitBreakers;
    use crate::cluster::fixture::{cluster, shared};
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    fn endpoint(address: SocketAddr) -> Arc<Endpoint> {
        Arc::new(Endpoint::new(EndpointAddr::new(address), None))
    }

    #[tokio::test]
    async fn a_connection_is_counted_until_it_is_dropped() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(host).await.expect("bind");
            let endpoint = endpoint(listener.local_addr().expect("address"));
            let cluster = Arc::new(cluster("a"));
            let worker = Worker::new(0, shared(vec![cluster.clone()]));
            let mut upstream =
                connect(&worker, &Behalf::agent(), &cluster, &endpoint, FirstWord::Unknown).await.expect("connection");
            assert!(upstream.stream.nodelay().expect("option"));
            let (mut accepted, _) = listener.accept().await.expect("accept");
            accepted.write_all(b"hello").await.expect("write");
            let mut received = [0; 5];
            upstream.stream.read_exact(&mut received).await.expect("read");
            assert_eq!(&received, b"hello");
            let (counts, of_endpoint) = (&cluster.stats, &endpoint.stats);
            assert_eq!((counts.upstream_cx_active.value(), of_endpoint.cx_active.value()), (1, 1));
            drop(upstream);
            assert_eq!((counts.upstream_cx_active.value(), of_endpoint.cx_active.value()), (0, 0));
            assert_eq!((counts.upstream_cx_total.value(), of_endpoint.cx_total.value()), (1, 1));
            assert_eq!(counts.upstream_cx_connect_time.value().count, 1);
        }
    }

    #[tokio::test]
    async fn the_end_of_the_handshake_is_there_when_it_is_said_that_there_is_nothing_to_send() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        listener.set_nonblocking(true).expect("option");
        let address = listener.local_addr().expect("address");
        let stream = open_for(None, &Behalf::agent(), address, FirstWord::Ours).await.expect("connection");
        complete_handshake(&stream);
        listener.accept().expect("a connection that is complete");
    }

    #[tokio::test]
    async fn a_refused_connection_says_so_and_is_counted() {
        // At an address of its own, so that no other test is given the port meanwhile.
        let listener = TcpListener::bind("127.77.0.4:0").await.expect("bind");
        let endpoint = endpoint(listener.local_addr().expect("address"));
        drop(listener);
        let cluster = Arc::new(cluster("a"));
        let worker = Worker::new(0, shared(vec![cluster.clone()]));
        let error =
            connect(&worker, &Behalf::agent(), &cluster, &endpoint, FirstWord::Unknown).await.expect_err("refused");
        assert_eq!(error.reset_reason(), "remote connection failure");
        assert_eq!(error.transport_failure_reason().as_deref(), Some("delayed connect error: connection refused"));
        assert_eq!(error.flags().to_string(), "UF");
        assert_eq!(endpoint.stats.cx_connect_fail.value(), 1);
        assert_eq!(cluster.stats.upstream_cx_connect_fail.value(), 1);
        assert_eq!(cluster.stats.upstream_cx_active.value(), 0);
    }

    #[tokio::test]
    async fn an_endpoint_that_does_not_answer_is_given_up_after_connect_timeout() {
        // A full accept queue drops SYNs: nobody accepts here.
        let socket = tokio::net::TcpSocket::new_v4().expect("socket");
        socket.bind("127.0.0.1:0".parse().expect("address")).expect("bind");
        let listener = socket.listen(1).expect("listen");
        let address = listener.local_addr().expect("address");
        let mut filling = Vec::new();
        while let Ok(Ok(stream)) =
            tokio::time::timeout(Duration::from_millis(200), open(None, &Behalf::agent(), address)).await
        {
            filling.push(stream);
        }
        let endpoint = endpoint(address);
        let cluster = Arc::new(Cluster { connect_timeout: Duration::from_millis(100), ..cluster("a") });
        let worker = Worker::new(0, shared(vec![cluster.clone()]));
        let error =
            connect(&worker, &Behalf::agent(), &cluster, &endpoint, FirstWord::Unknown).await.expect_err("timeout");
        assert_eq!((error.reset_reason(), error.flags().to_string().as_str()), ("connection timeout", "UF"));
        assert_eq!(cluster.stats.upstream_cx_connect_timeout.value(), 1);
        assert_eq!(cluster.stats.upstream_cx_connect_fail.value(), 1);
        assert_eq!(endpoint.stats.cx_active.value(), 0);
    }

    #[tokio::test]
    async fn max_connections_is_refused_without_a_connection_being_tried() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let endpoint = endpoint(listener.local_addr().expect("address"));
        let limits = CircuitBreakers { max_connections: 1, ..CircuitBreakers::default() };
        let cluster = Arc::new(Cluster { circuit_breakers: limits, ..cluster("a") });
        let worker = Worker::new(0, shared(vec![cluster.clone()]));
        let first =
            connect(&worker, &Behalf::agent(), &cluster, &endpoint, FirstWord::Unknown).await.expect("connection");
        let error =
            connect(&worker, &Behalf::agent(), &cluster, &endpoint, FirstWord::Unknown).await.expect_err("overflow");
        assert_eq!((error.reset_reason(), error.flags().to_string().as_str()), ("overflow", "UO"));
        assert_eq!(endpoint.stats.cx_total.value(), 1);
        drop(first);
        assert!(connect(&worker, &Behalf::agent(), &cluster, &endpoint, FirstWord::Unknown).await.is_ok());
    }
}
