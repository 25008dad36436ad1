//! Dispatch in the kernel (`dispatch: kernel`): connections that never meet the agent, and what the agent does for them.
//!
//! Before: the configuration, and the clusters' endpoints as discovery and health checks change them. After:
//! [`crate::kernel::dispatch`], whose tables the connect hooks choose from. [`qualify`] says which listeners can be dispatched
//! so; [`slots`] makes weights into turns, and [`sticky`] into tables that hashes look into; `targets` gives each listener, cluster and endpoint together a number; and
//! `connections` makes the records and statistics of what the kernel tells. [`Dispatcher`] joins them, on the main thread.

mod connections;
pub mod qualify;
pub mod slots;
pub mod sticky;
mod targets;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cluster::endpoint::EndpointSet;
use crate::cluster::{Cluster, ClusterSpecifier, Discovery, LbPolicy};
use crate::kernel::dispatch::{Destination, DispatchEvents, DispatchTable, Draw, REST, Slot};
use crate::listener::{Dispatch, Listener, TrafficDirection};
use crate::snapshot::Snapshot;
use crate::worker::Shared;

use connections::Connections;
use targets::Targets;

/// Keeps the kernel's tables as the configuration and the endpoints are, and accounts for what it dispatches.
pub struct Dispatcher {
    shared: Arc<Shared>,
    table: DispatchTable,
    targets: Targets,
    connections: Connections,
    followed: Followed,
}

/// What the tables were made of.
#[derive(Default)]
struct Followed {
    snapshot: Option<Arc<Snapshot>>,
    /// Held, so that no later set can stand at the same place.
    sets: Vec<(Arc<Cluster>, Arc<EndpointSet>)>,
    /// When what found no room is tried again: what was given back rests, so that there may be some then, and no change of
    /// configuration or endpoints would tell.
    retry_at: Option<Instant>,
}

/// See [`Followed::retry_at`].
const RETRY_AFTER: Duration = REST.saturating_add(Duration::from_secs(1));

impl Followed {
    fn is_current(&self, snapshot: &Arc<Snapshot>) -> bool {
        self.snapshot.as_ref().is_some_and(|followed| Arc::ptr_eq(followed, snapshot))
            && self.sets.iter().all(|(cluster, set)| Arc::ptr_eq(&cluster.endpoints.load(), set))
    }
}

impl Dispatcher {
    /// Nothing is dispatched yet.
    pub fn new(shared: &Arc<Shared>, table: DispatchTable, events: DispatchEvents) -> Self {
        Self {
            shared: shared.clone(),
            table,
            targets: Targets::default(),
            connections: Connections::new(shared, events),
            followed: Followed::default(),
        }
    }

    /// Brings the tables up to date, if the configuration or the endpoints have changed. What does not fit, or cannot be
    /// written, is the agent's, is said so in the log, and is tried again after a while.
    pub fn follow(&mut self) {
        let snapshot = self.shared.snapshot.load_full();
        let again = self.followed.is_current(&snapshot);
        if again && self.followed.retry_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        self.followed = Followed { snapshot: Some(snapshot.clone()), ..Followed::default() };
        self.targets.begin();
        let wanted: Vec<_> =
            wanted(&snapshot).into_iter().map(|(listener, address)| self.destination(listener, address)).collect();
        self.targets.end();
        if !self.followed.sets.is_empty()
            && let Err(error) = self.connections.listen()
        {
            tracing::warn!(%error, "what the kernel tells of connections with `dispatch: kernel` cannot be read");
        }
        if let Err(error) = self.table.replace(wanted) {
            self.followed.retry_at = Some(Instant::now() + RETRY_AFTER);
            match again {
                false => tracing::warn!(%error, "not all listeners with `dispatch: kernel` are dispatched there"),
                true => tracing::debug!(%error, "still not all listeners with `dispatch: kernel` are dispatched there"),
            }
        }
    }

    /// Takes in what the kernel has told of connections since the last look; returns how many events that were.
    pub fn look(&mut self) -> usize {
        self.connections.look(&self.targets)
    }

    /// Whether there is nothing to dispatch, and nothing open that was dispatched.
    pub fn is_idle(&self) -> bool {
        self.followed.sets.is_empty() && self.connections.is_empty()
    }

    /// The agent ends: takes in what was told until now, and ends the records of what is still open. Those connections
    /// go on without the agent.
    pub fn end(&mut self) {
        self.look();
        self.connections.end();
    }

    /// What becomes of connections to `address`.
    fn destination(&mut self, listener: &Arc<Listener>, address: SocketAddr) -> Destination {
        let agent = Destination { address, draw: Draw::Agent, slots: Vec::new() };
        let Some((chain, proxy)) = qualify::sole_chain(listener).filter(|_| listener.dispatch == Dispatch::Kernel)
        else {
            return agent;
        };
        let shares = self.shares(&proxy.cluster);
        let label: Arc<str> = chain.label().into();
        let of_shares: Vec<_> = shares
            .iter()
            .map(|share| match &share.way {
                slots::Way::Nowhere => Slot::NONE,
                way => self.targets.slot(listener, &label, &share.cluster, way),
            })
            .collect();
        let (draw, order) = match sticky::cluster(proxy) {
            // The last one followed: its shares are in the order of the endpoints that take traffic.
            Some(_) => (Draw::Hashed, self.followed.sets.last().map(|(_, set)| sticky::slots(set)).unwrap_or_default()),
            None => (draw(&proxy.cluster), slots::slots(&shares)),
        };
        let slots = order.into_iter().filter_map(|index| of_shares.get(index).copied()).collect();
        Destination { address, draw, slots }
    }

    /// What each endpoint's share of the connections is.
    fn shares(&mut self, clusters: &ClusterSpecifier) -> Vec<slots::Share> {
        match clusters {
            ClusterSpecifier::Cluster(cluster) => self.shares_of(cluster, 1),
            ClusterSpecifier::Weighted(weighted) => {
                weighted.entries().iter().flat_map(|(cluster, weight)| self.shares_of(cluster, *weight)).collect()
            }
            ClusterSpecifier::Header(_) => Vec::new(),
        }
    }

    fn shares_of(&mut self, cluster: &Arc<Cluster>, weight: u32) -> Vec<slots::Share> {
        let set = cluster.endpoints.load_full();
        self.followed.sets.push((cluster.clone(), set.clone()));
        slots::shares(cluster, &set, weight)
    }
}

/// Every destination that the kernel has to know: those of listeners that it dispatches, and those of other listeners that
/// a wildcard listener with `dispatch: kernel` would otherwise take from.
fn wanted(snapshot: &Snapshot) -> Vec<(&Arc<Listener>, SocketAddr)> {
    let outbound = || snapshot.listeners.iter().filter(|one| one.direction == TrafficDirection::Outbound);
    let kernel: Vec<_> = outbound().filter(|one| one.dispatch == Dispatch::Kernel).collect();
    let beside = |one: &&Arc<Listener>| {
        one.dispatch == Dispatch::Agent && kernel.iter().any(|other| takes_from(other.address, one.address))
    };
    let all = kernel.iter().copied().chain(outbound().filter(beside));
    all.map(|listener| (listener, listener.address)).collect()
}

/// Whether `wildcard` would take what is meant for `exact`.
fn takes_from(wildcard: SocketAddr, exact: SocketAddr) -> bool {
    wildcard.ip().is_unspecified() && wildcard.is_ipv4() == exact.is_ipv4() && wildcard.port() == exact.port()
}

/// Between weighted clusters the draw is random, as in the agent; within one, as its policy says. One that goes by a hash has
/// none here.
fn draw(clusters: &ClusterSpecifier) -> Draw {
    match clusters {
        ClusterSpecifier::Cluster(cluster) => match cluster.lb_policy {
            LbPolicy::Random | LbPolicy::Consistent(_) => Draw::Random,
            LbPolicy::RoundRobin | LbPolicy::LeastRequest => Draw::InTurn,
        },
        ClusterSpecifier::Weighted(_) | ClusterSpecifier::Header(_) => Draw::Random,
    }
}

/// Whether the cluster's endpoint is where the connection was going anyway.
fn is_original_dst(cluster: &Cluster) -> bool {
    cluster.discovery == Discovery::OriginalDst
}
