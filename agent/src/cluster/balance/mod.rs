//! Load balancing: whose turn it is.
//!
//! Before: [`super::select`]. After: the endpoint it connects to. [`pick`](fn@pick) is pure: it is given the hash, the
//! random numbers and the [`Schedule`], and `explain` calls it with a fresh one. [`Balance`] keeps the schedules of one
//! worker. The tables that hashes look into ([`hash`]) belong to the sets of endpoints, and all workers share them.

pub mod hash;
mod pick;
mod schedule;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

pub use hash::Table;
pub use pick::{Chance, pick};
pub use schedule::Schedule;

use super::Cluster;
use super::endpoint::{Endpoint, EndpointRegistry, EndpointSet};
use super::on_demand::OnDemand;
use super::own;
use crate::addr::EndpointAddr;
use crate::snapshot::Snapshot;

/// One worker's balancing state, by cluster. It survives reloads; a cluster that is gone is forgotten with the next
/// choice after the reload.
#[derive(Debug, Default)]
pub struct Balance {
    /// Of the snapshot that the rest belongs to; 0 for none yet.
    version: Cell<u64>,
    schedules: RefCell<HashMap<Arc<str>, Followed>>,
    on_demand: RefCell<HashMap<Arc<str>, Arc<OnDemand>>>,
    listening: RefCell<Vec<SocketAddr>>,
}

/// A schedule and the endpoints it was made for. A dead `Weak` keeps its allocation, so that the comparison of
/// pointers cannot be fooled by a later set at the same place.
#[derive(Debug)]
struct Followed {
    set: Weak<EndpointSet>,
    schedule: Schedule,
}

impl Balance {
    /// Chooses an endpoint of `cluster`, not one of `tried` unless there is no other. `start` is where a new rotation
    /// begins: the workers start at different endpoints.
    pub fn choose(
        &self,
        cluster: &Cluster,
        start: usize,
        chance: Chance,
        tried: &[EndpointAddr],
    ) -> Option<Arc<Endpoint>> {
        let set = cluster.endpoints.load();
        if cluster.lb_policy.hashes() {
            // Nobody takes turns there.
            return pick(cluster.lb_policy, &set, &mut Schedule::default(), chance, tried).cloned();
        }
        let mut schedules = self.schedules.borrow_mut();
        let choose = |followed: &mut Followed| {
            if followed.set.as_ptr() != Arc::as_ptr(&set) {
                followed.schedule.follow(&set);
                followed.set = Arc::downgrade(&set);
            }
            pick(cluster.lb_policy, &set, &mut followed.schedule, chance, tried).cloned()
        };
        if let Some(followed) = schedules.get_mut(&cluster.name) {
            return choose(followed);
        }
        let schedule = Schedule::starting_at(start);
        choose(schedules.entry(cluster.name.clone()).or_insert(Followed { set: Weak::new(), schedule }))
    }

    /// The endpoint at `address` of a cluster that makes its endpoints on use.
    pub fn on_demand(&self, cluster: &Arc<str>, address: EndpointAddr, registry: &EndpointRegistry) -> Arc<Endpoint> {
        let mut clusters = self.on_demand.borrow_mut();
        match clusters.get(cluster) {
            Some(endpoints) => endpoints.endpoint(address),
            None => clusters.entry(cluster.clone()).or_insert(registry.on_demand(cluster)).endpoint(address),
        }
    }

    /// Whether a connection to `destination` would arrive at one of the agent's own listening sockets: those of the
    /// snapshot in force, or those really `bound`.
    pub fn is_own_listener(&self, bound: &[SocketAddr], destination: EndpointAddr) -> bool {
        own::arrives_at(&self.listening.borrow(), destination, own::is_local)
            || own::arrives_at(bound, destination, own::is_local)
    }

    /// Forgets what `snapshot` no longer has. Cheap when nothing was reloaded.
    pub fn follow(&self, snapshot: &Snapshot) {
        if self.version.replace(snapshot.origin.version) == snapshot.origin.version {
            return;
        }
        self.schedules.borrow_mut().retain(|name, _| snapshot.clusters.contains_key(name));
        self.on_demand.borrow_mut().retain(|name, _| snapshot.clusters.contains_key(name));
        *self.listening.borrow_mut() = own::listening(snapshot);
    }
}
