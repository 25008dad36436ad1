//! Keeps the clusters of the running configuration supplied: with endpoints from DNS, with the results of health
//! checks, with a broom for endpoints that were made on use.
//!
//! Before: a new snapshot, not published yet. After: its clusters hold endpoints. Runs on the main thread's runtime;
//! everything it starts ends with it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::discover::{self, Names};
use super::health::{self, Plan};
use super::membership::{Membership, Term};
use super::on_demand::OnDemand;
use super::{Cluster, Discovery};
use crate::snapshot::Snapshot;
use crate::worker::Shared;

/// How long a new snapshot waits for the first answers of its names; after that it goes on without.
const FIRST_ANSWERS_TIMEOUT: Duration = Duration::from_secs(5);

/// How often unused endpoints of `original_dst` clusters are swept out (Envoy's `cleanup_interval`).
const CLEANUP_INTERVAL: Duration = Duration::from_secs(5);

/// The clusters of the running configuration.
pub struct ClusterManager {
    shared: Arc<Shared>,
    names: Arc<Names>,
    clusters: HashMap<Arc<str>, Running>,
}

/// What one cluster keeps from snapshot to snapshot.
struct Running {
    membership: Arc<Membership>,
    discovery: Discovery,
    plan: Option<Plan>,
    /// Who says what the members are: the configuration, a resolver (`strict_dns`) or a broom (`original_dst`).
    source: (Term, Option<Task>),
    checker: Option<Task>,
}

/// A task that ends when this is dropped.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Task {
    fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(future))
    }
}

impl ClusterManager {
    /// Without clusters yet.
    pub fn new(shared: &Arc<Shared>) -> Self {
        Self::with_names(shared, Names::of_the_system(shared))
    }

    /// With names resolved in this way.
    pub(super) fn with_names(shared: &Arc<Shared>, names: Names) -> Self {
        Self { shared: shared.clone(), names: Arc::new(names), clusters: HashMap::new() }
    }

    /// Takes the clusters of `new` over, before it is published: a cluster whose discovery and health checks are
    /// unchanged keeps its endpoints and what is known of them, a new one gets its first endpoints, one that is gone is
    /// no longer supplied. Waits for the first answers of new names, at most 5 s. Must be called on the runtime that is
    /// to run the checks.
    pub async fn adopt(&mut self, new: &Snapshot) {
        let mut before = std::mem::take(&mut self.clusters);
        let mut first_answers = Vec::new();
        for cluster in new.clusters.values() {
            let mut running = match before.remove(&cluster.name) {
                Some(running) if running.discovery == cluster.discovery => running,
                other => {
                    let (running, answered) = self.begin(cluster, other);
                    first_answers.extend(answered);
                    running
                }
            };
            self.bring_up_to_date(&mut running, cluster);
            self.clusters.insert(cluster.name.clone(), running);
        }
        for gone in before.into_values() {
            gone.membership.retire();
        }
        let answers = first_answers.iter_mut().map(|answered| answered.wait_for(|answered| *answered));
        if timeout(FIRST_ANSWERS_TIMEOUT, join_all(answers)).await.is_err() {
            tracing::warn!(
                "names of strict_dns clusters are still without an answer after {} s: until it comes their clusters \
                 have the endpoints they had before, or none",
                FIRST_ANSWERS_TIMEOUT.as_secs()
            );
        }
    }

    /// Supplies a cluster that is new or finds its endpoints in another way than `before`. Until it found them it has
    /// those of before, unless these are nobody's configured endpoints (`original_dst`).
    fn begin(&self, cluster: &Arc<Cluster>, before: Option<Running>) -> (Running, Option<watch::Receiver<bool>>) {
        let on_demand = |discovery: &Discovery| *discovery == Discovery::OriginalDst;
        let kept = before.filter(|before| !on_demand(&before.discovery) && !on_demand(&cluster.discovery));
        let (membership, plan, checker) = match kept {
            Some(Running { membership, plan, checker, .. }) => (membership, plan, checker),
            None => (Membership::new(cluster), None, None),
        };
        let term = membership.new_source();
        let mut answered = None;
        let task = match &cluster.discovery {
            Discovery::Static => None,
            Discovery::OriginalDst => {
                let endpoints = self.shared.runtime.endpoints.on_demand(&cluster.name);
                Some(Task::spawn(sweep(endpoints, membership.clone(), term)))
            }
            discovery @ Discovery::StrictDns { .. } => {
                let (sender, receiver) = watch::channel(false);
                answered = Some(receiver);
                let (names, registry) = (self.names.clone(), self.shared.runtime.endpoints.clone());
                let members = (membership.clone(), term);
                let resolver = discover::strict_dns(discovery.clone(), names, registry, members, sender);
                Some(Task::spawn(resolver))
            }
        };
        let discovery = cluster.discovery.clone();
        (Running { membership, discovery, plan, source: (term, task), checker }, answered)
    }

    /// Hands `cluster` the endpoints, and starts, keeps or stops their checks.
    fn bring_up_to_date(&self, running: &mut Running, cluster: &Arc<Cluster>) {
        let membership = &running.membership;
        if cluster.discovery == Discovery::Static {
            membership.replace(running.source.0, cluster.endpoints.load().all().to_vec());
        }
        let plan = Plan::of(cluster);
        if plan != running.plan {
            let term = membership.new_checker();
            running.checker = plan.clone().map(|plan| {
                let shared = self.shared.clone();
                Task::spawn(health::supervise(plan, membership.clone(), term, shared))
            });
            running.plan = plan;
        }
        if running.plan.is_none() {
            membership.forget_health();
        }
        membership.adopt(cluster);
    }
}

/// Sweeps unused endpoints out, for ever.
async fn sweep(endpoints: Arc<OnDemand>, membership: Arc<Membership>, term: Term) {
    let mut ticks = interval(CLEANUP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        membership.replace(term, endpoints.sweep());
    }
}

#[cfg(test)]
mod tests;
