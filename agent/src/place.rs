//! Where a connection lives: in the agent's own network namespace, or in that of a workload that is enrolled.
//!
//! Before: [`crate::server`], which enrols workloads and opens listening sockets in their namespaces. After:
//! [`crate::pipeline`]: every connection knows its place, and the agent's connections to endpoints are made there too, so
//! that addresses, routes and network policies stay those of the workload.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::SetOnce;

use crate::addr::OrigDstAddr;
use crate::drain::Drain;
use crate::listener::TrafficDirection;
use crate::netns::{Netns, NetnsThread};
use crate::telemetry::stats::{PodStats, PodTraffic};
use crate::workload::Workload;

/// One network namespace from which connections are served.
pub struct Place {
    inside: Option<Inside>,
    workload: ArcSwapOption<Workload>,
    gone: SetOnce<()>,
}

struct Inside {
    netns: Arc<Netns>,
    thread: NetnsThread,
    traffic: Arc<PodTraffic>,
}

impl Place {
    /// The agent's own namespace.
    pub fn host() -> Arc<Self> {
        Arc::new(Self { inside: None, workload: ArcSwapOption::empty(), gone: SetOnce::new() })
    }

    /// The namespace of `workload`.
    pub fn of(workload: Arc<Workload>, netns: Arc<Netns>, thread: NetnsThread) -> Arc<Self> {
        let workload = ArcSwapOption::new(Some(workload));
        Arc::new(Self {
            inside: Some(Inside { netns, thread, traffic: Arc::default() }),
            workload,
            gone: SetOnce::new(),
        })
    }

    /// The cookie of its namespace; 0 for the agent's own. Two places with the same id are the same namespace.
    pub fn id(&self) -> u64 {
        self.inside.as_ref().map_or(0, |inside| inside.netns.cookie())
    }

    /// Its namespace; `None` for the agent's own.
    pub fn netns(&self) -> Option<&Arc<Netns>> {
        self.inside.as_ref().map(|inside| &inside.netns)
    }

    /// Whose it is, as last heard; `None` for the agent's own.
    pub fn workload(&self) -> Option<Arc<Workload>> {
        self.workload.load_full()
    }

    /// Statistics of its workload, from zero for each place; `None` for the agent's own namespace, whose connections the
    /// listeners' statistics count.
    pub fn traffic(&self) -> Option<&Arc<PodTraffic>> {
        self.inside.as_ref().map(|inside| &inside.traffic)
    }

    /// The runtime tells of its workload anew (labels and annotations change).
    pub fn rename(&self, workload: Arc<Workload>) {
        self.workload.store(Some(workload));
    }

    /// Does `job` inside its namespace. It must not block.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub async fn run<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> io::Result<R> {
        match &self.inside {
            None => Ok(job()),
            Some(Inside { netns, thread, .. }) => thread.run(netns, job).await,
        }
    }

    /// A non-blocking TCP socket in its namespace, of the family of `address`.
    ///
    /// # Errors
    /// The namespace cannot be entered, or there is no socket to be had.
    pub async fn socket(&self, address: SocketAddr) -> io::Result<Socket> {
        let make = move || Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP));
        match &self.inside {
            None => make(),
            Some(_) => self.run(make).await?,
        }
    }

    /// Ends everything that lives here.
    pub fn leave(&self) {
        // It fails when it was said before.
        let _ = self.gone.set(());
    }

    /// Resolves once the workload is gone; never for the agent's own namespace.
    pub async fn gone(&self) {
        match self.inside {
            None => std::future::pending().await,
            Some(_) => _ = self.gone.wait().await,
        }
    }

    /// Whether the workload is gone.
    pub fn is_gone(&self) -> bool {
        self.gone.initialized()
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("id", &self.id()).field("workload", &self.workload()).finish_non_exhaustive()
    }
}

/// On whose behalf the agent connects to an endpoint.
#[derive(Clone, Debug)]
pub struct Behalf {
    /// Where the socket is made.
    pub place: Arc<Place>,
    /// Of the connection that is served. What goes to an application by the inbound side must not be taken again.
    pub direction: TrafficDirection,
    /// Where the client wanted to go; `None` on a listener that is addressed directly.
    pub original_dst: Option<OrigDstAddr>,
}

impl Behalf {
    /// Resolves when the connection must end now, with the reason in words.
    pub async fn cut(&self, drain: &Drain) -> &'static str {
        if self.place.inside.is_none() {
            drain.closing().await;
            return "drain deadline";
        }
        // In memory of its own: most connections never need it.
        Box::pin(async {
            tokio::select! {
                () = drain.closing() => "drain deadline",
                () = self.place.gone() => "the workload is gone",
            }
        })
        .await
    }

    /// Statistics of the pod whose connection is served; `None` outside of pods.
    pub fn stats(&self) -> Option<&PodStats> {
        self.place.traffic().map(|traffic| traffic.of(self.direction))
    }

    /// Its own: health checks and name resolution, from its own namespace. What they reach must be the endpoint and not
    /// the agent's inbound side, which accepts whether or not the endpoint is there.
    pub fn agent() -> Self {
        Self { place: Place::host(), direction: TrafficDirection::Inbound, original_dst: None }
    }
}
