//! Endpoints: the addresses of a cluster and what is known of each.
//!
//! An endpoint's state outlives the configuration that named it: [`EndpointRegistry`] hands the same [`Endpoint`] to
//! the next snapshot when cluster and address are unchanged.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use super::balance::Table;
use super::on_demand::OnDemand;
use super::{ConsistentHash, LbPolicy};
use crate::addr::EndpointAddr;
use crate::telemetry::stats::EndpointStats;

/// One endpoint of one cluster.
#[derive(Debug)]
pub struct Endpoint {
    /// Where to connect.
    pub address: EndpointAddr,
    /// The name it was resolved from, for `strict_dns`.
    pub hostname: Option<Arc<str>>,
    /// What it did so far.
    pub stats: EndpointStats,
    health: AtomicU8,
}

/// Whether an endpoint takes traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Not checked yet, or not checked at all: usable.
    Unknown,
    /// Passed its checks.
    Healthy,
    /// Failed its checks: not used.
    Unhealthy,
}

impl Endpoint {
    /// A new endpoint, its health unknown.
    pub fn new(address: EndpointAddr, hostname: Option<Arc<str>>) -> Self {
        Self { address, hostname, stats: EndpointStats::default(), health: AtomicU8::new(0) }
    }

    /// How busy it is: requests in flight, or connections open when it never had a request (TCP, where a connection
    /// counts as one request, as in Envoy).
    pub fn load(&self) -> u64 {
        let gauge = if self.stats.rq_total.value() > 0 { &self.stats.rq_active } else { &self.stats.cx_active };
        u64::try_from(gauge.value()).unwrap_or(0)
    }

    /// Its health now.
    pub fn health(&self) -> Health {
        match self.health.load(Relaxed) {
            0 => Health::Unknown,
            1 => Health::Healthy,
            _ => Health::Unhealthy,
        }
    }

    /// Changes its health; the cluster's [`EndpointSet`] has to be rebuilt afterwards.
    pub fn set_health(&self, health: Health) {
        let value = match health {
            Health::Unknown => 0,
            Health::Healthy => 1,
            Health::Unhealthy => 2,
        };
        self.health.store(value, Relaxed);
    }
}

/// An endpoint with its weight in one cluster.
#[derive(Clone, Debug)]
pub struct WeightedEndpoint {
    /// Shared with earlier and later sets.
    pub endpoint: Arc<Endpoint>,
    /// 1 to 128.
    pub weight: u32,
}

/// Whether all endpoints that take traffic weigh the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weights {
    /// They do.
    #[default]
    Equal,
    /// They do not.
    Unequal,
}

/// The endpoints of a cluster at one moment, with those that take traffic sorted out. Immutable.
#[derive(Debug, Default)]
pub struct EndpointSet {
    all: Vec<WeightedEndpoint>,
    usable: Vec<WeightedEndpoint>,
    /// The sum of the weights up to and with each usable one.
    ends: Vec<u64>,
    weights: Weights,
    /// Where hashes lead, for a policy that goes by them.
    hashed: Option<Hashed>,
}

/// The table of a set, made when it is first wanted: [`EndpointSet::prepare`] sees to that before workers meet the set.
#[derive(Debug)]
struct Hashed {
    policy: ConsistentHash,
    table: OnceLock<Arc<Table>>,
}

impl EndpointSet {
    /// Sorts out who takes traffic: whoever is not unhealthy; everybody when that is less than `panic_threshold`
    /// percent of all.
    pub fn new(all: Vec<WeightedEndpoint>, panic_threshold: u8) -> Self {
        let healthy: Vec<_> =
            all.iter().filter(|member| member.endpoint.health() != Health::Unhealthy).cloned().collect();
        let panic = healthy.len() * 100 < usize::from(panic_threshold) * all.len();
        let usable = if panic { all.clone() } else { healthy };
        let equal = usable.windows(2).all(|pair| pair[0].weight == pair[1].weight);
        let weights = if equal { Weights::Equal } else { Weights::Unequal };
        let sum = |total: &mut u64, member: &WeightedEndpoint| {
            *total += u64::from(member.weight.max(1));
            Some(*total)
        };
        let ends = usable.iter().scan(0, sum).collect();
        Self { all, usable, ends, weights, hashed: None }
    }

    /// As [`Self::new`], for a cluster with this policy.
    pub fn balanced(all: Vec<WeightedEndpoint>, panic_threshold: u8, policy: LbPolicy) -> Self {
        let hashed = match policy {
            LbPolicy::Consistent(policy) => Some(Hashed { policy, table: OnceLock::new() }),
            LbPolicy::RoundRobin | LbPolicy::LeastRequest | LbPolicy::Random => None,
        };
        Self { hashed, ..Self::new(all, panic_threshold) }
    }

    /// Where hashes lead; `None` when the policy does not go by them.
    pub fn table(&self) -> Option<&Table> {
        let hashed = self.hashed.as_ref()?;
        Some(hashed.table.get_or_init(|| Arc::new(Table::new(hashed.policy, &self.usable))))
    }

    /// Makes the table, unless one of the sets `before` has the very same: a set is published with it, so that no
    /// worker has to make it.
    pub fn prepare<'a>(&self, before: impl IntoIterator<Item = &'a Self>) {
        let Some(hashed) = &self.hashed else { return };
        let made = before.into_iter().filter_map(|set| set.hashed.as_ref()?.table.get());
        if let Some(table) = { made }.find(|table| table.is_for(hashed.policy, &self.usable)) {
            // Another thread can only have made the same.
            let _ = hashed.table.set(table.clone());
        }
        self.table();
    }

    /// All endpoints, in configured order.
    pub fn all(&self) -> &[WeightedEndpoint] {
        &self.all
    }

    /// Those that take traffic, in configured order.
    pub fn usable(&self) -> &[WeightedEndpoint] {
        &self.usable
    }

    /// The first of those that take traffic whose cumulative weight exceeds `random` modulo the sum of the weights.
    pub fn by_weight(&self, random: u64) -> Option<usize> {
        let point = random.checked_rem(*self.ends.last()?)?;
        Some(self.ends.partition_point(|end| *end <= point))
    }

    /// Whether those that take traffic weigh the same.
    pub fn weights(&self) -> Weights {
        self.weights
    }
}

/// What makes an endpoint the same one after a reload.
type EndpointKey = (Arc<str>, EndpointAddr);

/// Hands out endpoints by identity, and the endpoints that clusters make on use.
#[derive(Debug, Default)]
pub struct EndpointRegistry {
    endpoints: Mutex<Known>,
    on_demand: Mutex<HashMap<Arc<str>, Weak<OnDemand>>>,
}

/// The endpoints that were handed out, with the dead ones that were not swept out yet.
#[derive(Debug, Default)]
struct Known {
    by_key: HashMap<EndpointKey, Weak<Endpoint>>,
    /// At this size the dead ones are swept out: twice what lived last time, so that it costs a constant per endpoint.
    sweep_at: usize,
}

impl EndpointRegistry {
    /// The endpoint `address` of `cluster`: the living one when there is one, else a new one.
    pub fn endpoint(&self, cluster: &Arc<str>, address: EndpointAddr, hostname: Option<&Arc<str>>) -> Arc<Endpoint> {
        let mut known = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        if known.by_key.len() >= known.sweep_at {
            known.by_key.retain(|_, endpoint| endpoint.strong_count() > 0);
            known.sweep_at = 2 * known.by_key.len() + 64;
        }
        let slot = known.by_key.entry((cluster.clone(), address)).or_default();
        slot.upgrade().unwrap_or_else(|| {
            let endpoint = Arc::new(Endpoint::new(address, hostname.cloned()));
            *slot = Arc::downgrade(&endpoint);
            endpoint
        })
    }

    /// The endpoints that the cluster called `cluster` makes on use; the same for all who hold them at the same time.
    pub fn on_demand(&self, cluster: &Arc<str>) -> Arc<OnDemand> {
        let mut clusters = self.on_demand.lock().unwrap_or_else(PoisonError::into_inner);
        clusters.retain(|_, endpoints| endpoints.strong_count() > 0);
        let slot = clusters.entry(cluster.clone()).or_default();
        slot.upgrade().unwrap_or_else(|| {
            let endpoints = Arc::new(OnDemand::default());
            *slot = Arc::downgrade(&endpoints);
            endpoints
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::fixture::{address, members};

    #[test]
    fn an_unhealthy_endpoint_takes_no_traffic_unless_too_few_are_left() {
        for (unhealthy, panic_threshold, usable) in
            [(0, 50, 4), (1, 50, 3), (2, 50, 2), (3, 50, 4), (4, 0, 0), (4, 1, 4)]
        {
            let members = members(&[1, 1, 1, 1]);
            for member in &members[..unhealthy] {
                member.endpoint.set_health(Health::Unhealthy);
            }
            let set = EndpointSet::new(members, panic_threshold);
            assert_eq!(set.usable().len(), usable, "{unhealthy} unhealthy, panic below {panic_threshold} %");
            assert_eq!(set.all().len(), 4);
        }
    }

    #[test]
    fn an_endpoint_is_the_same_one_as_long_as_somebody_holds_it() {
        let registry = EndpointRegistry::default();
        let (cluster, other): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let endpoint = registry.endpoint(&cluster, address(0), None);
        endpoint.set_health(Health::Unhealthy);
        assert!(Arc::ptr_eq(&endpoint, &registry.endpoint(&cluster, address(0), None)));
        assert_eq!(registry.endpoint(&other, address(0), None).health(), Health::Unknown);
        drop(endpoint);
        assert_eq!(registry.endpoint(&cluster, address(0), None).health(), Health::Unknown);
    }

    #[test]
    fn endpoints_that_nobody_holds_are_swept_out() {
        let registry = EndpointRegistry::default();
        for port in 0..10_000 {
            registry.endpoint(&"a".into(), address(port), None);
        }
        assert!(registry.endpoints.lock().expect("lock").by_key.len() <= 64);
    }
}
