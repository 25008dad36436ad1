//! Where the agent answers for itself: the admin socket, which only root and the agent's own user may open, and two
//! listeners for Prometheus (15090) and for readiness (15021), which serve nothing else.
//!
//! Before: the server, which binds them with [`AdminServer::bind`] and runs them on the main thread, never on a worker.
//! After: `router`, which answers. What the agent is told to do goes to the server through its [`Control`].

mod clusters;
mod cni;
mod dump;
mod info;
mod listeners;
mod pods;
mod query;
mod reply;
mod router;
mod routes;
mod serve;
mod socket;
mod stats;
#[cfg(test)]
mod tests;
mod trace;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;

use crate::server::Control;
use crate::snapshot::Admin;
use crate::telemetry::sink::Sinks;
use crate::worker::{self, Shared};

pub use socket::{AdminSocket, SocketError};

/// What the pages show and steer.
pub struct State {
    shared: Arc<Shared>,
    sinks: Arc<Sinks>,
    control: Control,
    started: Instant,
    decisions: trace::DecisionPump,
}

impl State {
    /// Of an agent that `control` steers.
    pub fn new(shared: Arc<Shared>, sinks: Arc<Sinks>, control: Control) -> Arc<Self> {
        Arc::new(Self { shared, sinks, control, started: Instant::now(), decisions: trace::DecisionPump::default() })
    }

    /// The agent's state, as Envoy prints it.
    fn state_name(&self) -> &'static str {
        match self.shared.state() {
            worker::State::Live => "LIVE",
            worker::State::Draining => "DRAINING",
            worker::State::Initializing => "INITIALIZING",
        }
    }
}

/// Which pages a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Site {
    Admin,
    Prometheus,
    Readiness,
}

/// Why the agent cannot answer for itself.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// See the source.
    #[error("opening the admin socket")]
    Socket(#[from] SocketError),
    /// The address is taken, or not one of this host.
    #[error("listening on {address} for {purpose}: change `admin.{field}`, or stop what listens there")]
    Listen {
        /// As configured.
        address: SocketAddr,
        /// For people.
        purpose: &'static str,
        /// In the configuration.
        field: &'static str,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}

/// The sockets, bound and not yet served.
#[derive(Debug)]
pub struct AdminServer {
    admin: Option<AdminSocket>,
    prometheus: Option<TcpListener>,
    readiness: Option<TcpListener>,
}

/// Whether there is an admin socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminSocketOption {
    /// The configured one.
    Configured,
    /// This one.
    At(PathBuf),
    /// None: for an agent that lives as long as one command.
    Off,
}

impl AdminServer {
    /// Binds all sockets.
    ///
    /// # Errors
    /// One of them is taken, or may not be bound.
    pub fn bind(config: &Admin, socket: &AdminSocketOption) -> Result<Self, AdminError> {
        let admin = match socket {
            AdminSocketOption::Configured => Some(AdminSocket::bind(&config.socket)?),
            AdminSocketOption::At(path) => Some(AdminSocket::bind(path)?),
            AdminSocketOption::Off => None,
        };
        Ok(Self {
            admin,
            prometheus: listen(config.prometheus, "Prometheus", "prometheus")?,
            readiness: listen(config.readiness, "readiness", "readiness")?,
        })
    }

    /// Where Prometheus finds the agent; tells the port when the configured one was 0.
    pub fn prometheus_address(&self) -> Option<SocketAddr> {
        self.prometheus.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Where readiness is asked; tells the port when the configured one was 0.
    pub fn readiness_address(&self) -> Option<SocketAddr> {
        self.readiness.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Serves until it is dropped, on the runtime it is polled on. Dropping it ends all connections and removes the
    /// admin socket.
    pub async fn run(self, state: Arc<State>) {
        let (admin, prometheus, readiness) = tokio::join!(
            serve::admin(self.admin, state.clone()),
            serve::open(self.prometheus, Site::Prometheus, state.clone()),
            serve::open(self.readiness, Site::Readiness, state),
        );
        for error in [admin, prometheus, readiness].into_iter().filter_map(Result::err) {
            tracing::error!(%error, "the admin interface cannot be served");
        }
        std::future::pending().await
    }
}

fn listen(
    address: Option<SocketAddr>,
    purpose: &'static str,
    field: &'static str,
) -> Result<Option<TcpListener>, AdminError> {
    let Some(address) = address else { return Ok(None) };
    let listener = TcpListener::bind(address)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .map_err(|source| AdminError::Listen { address, purpose, field, source })?;
    Ok(Some(listener))
}

/// Connections that one listener serves at once; more are closed at once.
const CONNECTIONS_MAX: usize = 64;

fn connection_limit() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(CONNECTIONS_MAX))
}
