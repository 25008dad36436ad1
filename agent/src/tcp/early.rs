//! A connection to an endpoint that is opened while the client is silent, to learn whether the endpoint speaks first.
//!
//! Before: protocol detection, which waits for the client in vain. After: [`super::proxy`], which takes the connection
//! over, or nobody: then it is closed unused, which the endpoint sees as a client that connected and left. That is
//! harmless for what speaks first, and the reason why this is never done when the connection would be served as HTTP.

use std::rc::Rc;
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::proxy::{Connected, Failure, cluster_of, connect_to};
use crate::addr::ClientAddr;
use crate::cluster::connect::FirstWord;
use crate::cluster::{Cluster, ClusterSpecifier};
use crate::listener::chain::FilterChain;
use crate::listener::filter::peek;
use crate::listener::{Listener, NetworkFilter, TrafficDirection};
use crate::place::Behalf;
use crate::telemetry::ResponseFlags;
use crate::telemetry::stats::ListenerStats;
use crate::worker::Worker;

/// See the module.
#[derive(Debug)]
pub struct Early {
    chain: Arc<FilterChain>,
    cluster: Arc<Cluster>,
    stats: Arc<ListenerStats>,
    state: State,
}

/// What the endpoint had to say; see [`Early::heard`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It speaks first, or has closed or reset the connection.
    Speech,
    /// It could not be connected to.
    Failure,
}

#[derive(Debug)]
enum State {
    Connecting(JoinHandle<Result<Connected, Failure>>),
    Connected(Connected),
    Failed(Failure),
    Taken,
}

impl Early {
    /// Begins to connect for `chain`, and for `client`; `None` unless that is a TCP proxy.
    pub fn begin(
        worker: &Rc<Worker>,
        listener: &Listener,
        chain: &Arc<FilterChain>,
        behalf: &Behalf,
        client: ClientAddr,
    ) -> Option<Self> {
        let NetworkFilter::Tcp(tcp) = &chain.filter else { return None };
        let cluster = cluster_of(&tcp.cluster, worker).ok()?;
        listener.stats.detection_early_cx_total.inc();
        let (worker, target, attempts) = (worker.clone(), cluster.clone(), tcp.max_connect_attempts);
        let pod = behalf.place.workload().filter(|_| behalf.direction == TrafficDirection::Outbound);
        let hash = tcp.hash(client.ip(), pod.as_deref());
        let behalf = behalf.clone();
        let connecting = tokio::task::spawn_local(async move {
            connect_to(&worker, target, &behalf, hash, attempts, FirstWord::Unknown).await
        });
        Some(Self {
            chain: chain.clone(),
            cluster,
            stats: listener.stats.clone(),
            state: State::Connecting(connecting),
        })
    }

    /// The cluster that it connects to.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// Resolves when the endpoint has sent bytes or closed, or could not be connected to. Cancel-safe.
    pub async fn heard(&mut self, worker: &Worker) -> Heard {
        self.settle().await;
        match &self.state {
            State::Connected(connected) => {
                // A reset is also something that the endpoint says. The socket tells of it only once, and what reads
                // it next would find an orderly end.
                if peek::beyond(&connected.upstream.stream, worker, 0, |_| ()).await.is_err() {
                    self.state = State::Failed(reset(connected));
                }
                Heard::Speech
            }
            State::Failed(_) => Heard::Failure,
            State::Connecting(_) | State::Taken => std::future::pending().await,
        }
    }

    /// Whether it could not be opened, or was reset.
    pub fn has_failed(&self) -> bool {
        matches!(self.state, State::Failed(_))
    }

    /// Whether all connections to `listener` could use it, whatever is found out about them.
    pub fn serves_all(&self, listener: &Listener) -> bool {
        let chains = &listener.chains;
        chains.all().iter().chain(chains.default_chain()).all(|chain| self.serves(chain))
    }

    /// Whether a connection that is served by `chain` can use it: it is the same chain, or one with the same cluster.
    pub fn serves(&self, chain: &Arc<FilterChain>) -> bool {
        if Arc::ptr_eq(chain, &self.chain) {
            return true;
        }
        match &chain.filter {
            NetworkFilter::Tcp(tcp) => {
                matches!(&tcp.cluster, ClusterSpecifier::Cluster(cluster) if Arc::ptr_eq(cluster, &self.cluster))
            }
            NetworkFilter::Http(_) => false,
        }
    }

    /// The connection, once it is open.
    pub async fn connected(mut self) -> Result<Connected, Failure> {
        self.settle().await;
        match std::mem::replace(&mut self.state, State::Taken) {
            State::Connected(connected) => Ok(connected),
            State::Failed(failure) => Err(failure),
            State::Connecting(_) | State::Taken => Err(aborted()),
        }
    }

    async fn settle(&mut self) {
        if let State::Connecting(task) = &mut self.state {
            self.state = match task.await {
                Ok(Ok(connected)) => State::Connected(connected),
                Ok(Err(failure)) => State::Failed(failure),
                Err(_) => State::Failed(aborted()),
            };
        }
    }
}

fn reset(connected: &Connected) -> Failure {
    Failure {
        flags: ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
        details: "endpoint reset the connection".to_owned(),
        endpoint: Some(connected.endpoint.address),
    }
}

/// The worker ends.
fn aborted() -> Failure {
    Failure { flags: ResponseFlags::LOCAL_RESET, details: "the agent is shutting down".to_owned(), endpoint: None }
}

impl Drop for Early {
    fn drop(&mut self) {
        match &self.state {
            State::Taken | State::Failed(_) => return,
            State::Connecting(task) => task.abort(),
            State::Connected(_) => {}
        }
        self.stats.detection_early_cx_unused.inc();
    }
}
