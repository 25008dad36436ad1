//! Who belongs to a cluster now, published to every snapshot that still has it.
//!
//! Before: the configuration, [`super::discover`] or [`super::on_demand`] (who), and [`super::health`] (how they are).
//! After: [`Cluster::endpoints`], which the workers read. Connections that keep an older snapshot get the news too, or
//! they would go on with endpoints that are long dead.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;

use super::Cluster;
use super::endpoint::{Endpoint, EndpointSet, Health, WeightedEndpoint};
use crate::telemetry::stats::ClusterStats;

/// The members of one cluster. All changes to its endpoint sets pass through here.
#[derive(Debug)]
pub(super) struct Membership {
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// The cluster's statistics.
    pub stats: Arc<ClusterStats>,
    state: Mutex<State>,
    endpoints: watch::Sender<Vec<Arc<Endpoint>>>,
}

#[derive(Debug, Default)]
struct State {
    members: Vec<WeightedEndpoint>,
    /// The cluster of this name in each snapshot that is still in use.
    generations: Vec<Weak<Cluster>>,
}

impl Membership {
    /// No members yet.
    pub fn new(cluster: &Cluster) -> Arc<Self> {
        Arc::new(Self {
            cluster: cluster.name.clone(),
            stats: cluster.stats.clone(),
            state: Mutex::default(),
            endpoints: watch::Sender::default(),
        })
    }

    /// Publishes to `cluster` as well, from now on.
    pub fn adopt(&self, cluster: &Arc<Cluster>) {
        let mut state = self.lock();
        state.generations.retain(|generation| generation.strong_count() > 0);
        state.generations.push(Arc::downgrade(cluster));
        self.publish(&state);
    }

    /// Replaces the members.
    pub fn replace(&self, members: Vec<WeightedEndpoint>) {
        let mut state = self.lock();
        let same = |(a, b): (&WeightedEndpoint, &WeightedEndpoint)| {
            Arc::ptr_eq(&a.endpoint, &b.endpoint) && a.weight == b.weight
        };
        if state.members.len() == members.len() && state.members.iter().zip(&members).all(same) {
            return;
        }
        self.stats.membership_change.inc();
        self.endpoints.send_replace(members.iter().map(|member| member.endpoint.clone()).collect());
        state.members = members;
        self.publish(&state);
    }

    /// To be called when the health of a member has changed.
    pub fn health_changed(&self) {
        self.publish(&self.lock());
    }

    /// Forgets what is known of the members' health: nobody checks it any more.
    pub fn forget_health(&self) {
        let state = self.lock();
        for member in &state.members {
            member.endpoint.set_health(Health::Unknown);
        }
        self.publish(&state);
    }

    /// The cluster is gone from the configuration: what older snapshots have of it stays as it is.
    pub fn retire(&self) {
        let mut state = self.lock();
        *state = State::default();
        self.publish(&state);
    }

    /// The members as they come and go.
    pub fn endpoints(&self) -> watch::Receiver<Vec<Arc<Endpoint>>> {
        self.endpoints.subscribe()
    }

    fn publish(&self, state: &State) {
        let mut healthy = 0;
        for cluster in state.generations.iter().filter_map(Weak::upgrade) {
            let set = EndpointSet::new(state.members.clone(), cluster.healthy_panic_threshold);
            cluster.endpoints.store(Arc::new(set));
        }
        for member in &state.members {
            healthy += i64::from(member.endpoint.health() != Health::Unhealthy);
        }
        self.stats.membership_total.set(i64::try_from(state.members.len()).unwrap_or(i64::MAX));
        self.stats.membership_healthy.set(healthy);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
