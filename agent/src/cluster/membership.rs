//! Who belongs to a cluster now, published to every snapshot that still has it.
//!
//! Before: the configuration, [`super::discover`] or [`super::on_demand`] (who), and [`super::health`] (how they are).
//! After: [`Cluster::endpoints`], which the workers read. Connections that keep an older snapshot get the news too, or
//! they would go on with endpoints that are long dead.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;

use super::endpoint::{Endpoint, EndpointSet, Health, WeightedEndpoint};
use super::{Cluster, LbPolicy};
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
    source: Term,
    checker: Term,
}

/// Who may speak: a task that was told to stop can be in the middle of a step on another thread, and what it says then
/// must not undo what its successor said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Term(u64);

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

    /// From now on only the holder of this term replaces members.
    pub fn new_source(&self) -> Term {
        let source = &mut self.lock().source;
        source.0 += 1;
        *source
    }

    /// From now on only the holder of this term changes the members' health.
    pub fn new_checker(&self) -> Term {
        let checker = &mut self.lock().checker;
        checker.0 += 1;
        *checker
    }

    /// Publishes to `cluster` as well, from now on.
    pub fn adopt(&self, cluster: &Arc<Cluster>) {
        let mut state = self.lock();
        state.generations.retain(|generation| generation.strong_count() > 0);
        state.generations.push(Arc::downgrade(cluster));
        self.publish(&state);
    }

    /// Replaces the members.
    pub fn replace(&self, source: Term, members: Vec<WeightedEndpoint>) {
        let mut state = self.lock();
        let same = |(a, b): (&WeightedEndpoint, &WeightedEndpoint)| {
            Arc::ptr_eq(&a.endpoint, &b.endpoint) && a.weight == b.weight
        };
        let unchanged = state.members.len() == members.len() && state.members.iter().zip(&members).all(same);
        if unchanged || state.source != source {
            return;
        }
        self.stats.membership_change.inc();
        self.endpoints.send_replace(members.iter().map(|member| member.endpoint.clone()).collect());
        state.members = members;
        self.publish(&state);
    }

    /// Changes the health of a member.
    pub fn set_health(&self, checker: Term, endpoint: &Endpoint, health: Health) {
        let state = self.lock();
        if state.checker == checker && endpoint.health() != health {
            endpoint.set_health(health);
            self.publish(&state);
        }
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
        state.source.0 += 1;
        state.checker.0 += 1;
        state.members.clear();
        state.generations.clear();
        self.publish(&state);
    }

    /// The members as they come and go.
    pub fn endpoints(&self) -> watch::Receiver<Vec<Arc<Endpoint>>> {
        self.endpoints.subscribe()
    }

    fn publish(&self, state: &State) {
        // Generations with the same threshold and policy share one set: workers tell sets apart by their address.
        let mut sets: Vec<((u8, LbPolicy), Arc<EndpointSet>)> = Vec::new();
        let generations: Vec<_> = state.generations.iter().filter_map(Weak::upgrade).collect();
        let before: Vec<_> = generations.iter().map(|cluster| cluster.endpoints.load_full()).collect();
        for cluster in &generations {
            let wanted = (cluster.healthy_panic_threshold, cluster.lb_policy);
            let set = match sets.iter().find(|(of, _)| *of == wanted) {
                Some((_, set)) => set.clone(),
                None => Arc::new(EndpointSet::balanced(state.members.clone(), wanted.0, wanted.1)),
            };
            set.prepare(before.iter().map(|set| &**set).chain(sets.iter().map(|(_, set)| &**set)));
            sets.push((wanted, set.clone()));
            cluster.endpoints.store(set);
        }
        let healthy = state.members.iter().filter(|member| member.endpoint.health() != Health::Unhealthy).count();
        let gauge = |count| i64::try_from(count).unwrap_or(i64::MAX);
        self.stats.membership_total.set(gauge(state.members.len()));
        self.stats.membership_healthy.set(gauge(healthy));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::ConsistentHash;
    use crate::cluster::fixture::{cluster, members};

    #[test]
    fn who_was_replaced_is_no_longer_heard() {
        let cluster = Arc::new(cluster("a"));
        let membership = Membership::new(&cluster);
        membership.adopt(&cluster);
        let (source, checker) = (membership.new_source(), membership.new_checker());
        membership.replace(source, members(&[1, 1]));
        let endpoint = cluster.endpoints.load().all()[0].endpoint.clone();
        membership.set_health(checker, &endpoint, Health::Unhealthy);
        assert_eq!(cluster.endpoints.load().usable().len(), 1);

        membership.new_source();
        membership.replace(source, members(&[1]));
        membership.new_checker();
        membership.forget_health();
        membership.set_health(checker, &endpoint, Health::Unhealthy);
        assert_eq!(cluster.endpoints.load().usable().len(), 2);
        assert_eq!(cluster.stats.membership_change.value(), 1);
    }

    #[test]
    fn a_table_is_made_once_for_the_same_endpoints_and_anew_for_others() {
        let lb_policy = LbPolicy::Consistent(ConsistentHash::Maglev { table_size: 251 });
        let first = Arc::new(Cluster { lb_policy, ..cluster("a") });
        let membership = Membership::new(&first);
        membership.adopt(&first);
        membership.replace(membership.new_source(), members(&[1, 1]));
        let table = |cluster: &Cluster| std::ptr::from_ref(cluster.endpoints.load_full().table().expect("a table"));
        let before = table(&first);

        let second = Arc::new(Cluster { lb_policy, ..cluster("a") });
        membership.adopt(&second);
        assert_eq!((table(&first), table(&second)), (before, before), "a reload changes nothing");

        let held = first.endpoints.load_full();
        let endpoint = held.all()[0].endpoint.clone();
        membership.set_health(membership.new_checker(), &endpoint, Health::Unhealthy);
        assert_ne!(table(&second), before);
        assert_eq!(table(&first), table(&second), "the generations share it");

        let other = LbPolicy::Consistent(ConsistentHash::Ring { minimum: 16, maximum: 16 });
        let third = Arc::new(Cluster { lb_policy: other, ..cluster("a") });
        membership.adopt(&third);
        assert_ne!(table(&third), table(&second));
        let plain = Arc::new(cluster("a"));
        membership.adopt(&plain);
        assert!(plain.endpoints.load().table().is_none());
    }

    #[test]
    fn each_generation_has_its_own_panic_threshold() {
        let calm = Arc::new(cluster("a"));
        let panicking = Arc::new(Cluster { healthy_panic_threshold: 100, ..cluster("a") });
        let membership = Membership::new(&calm);
        membership.adopt(&calm);
        membership.adopt(&panicking);
        membership.replace(membership.new_source(), members(&[1, 1]));
        let endpoint = calm.endpoints.load().all()[0].endpoint.clone();
        membership.set_health(membership.new_checker(), &endpoint, Health::Unhealthy);
        assert_eq!((calm.endpoints.load().usable().len(), panicking.endpoints.load().usable().len()), (1, 2));
    }
}
