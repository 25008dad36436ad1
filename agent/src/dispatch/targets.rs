//! Numbers for what a dispatched connection belongs to: the listener, the filter chain, the cluster and the endpoint.
//!
//! Before: [`super::Dispatcher`], which writes the numbers into slots. After: [`super::connections`], to which the kernel
//! tells them. A number is never given to anything else while the agent lives; one that is in no slot any more is forgotten
//! after a while.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::slots::Way;
use crate::addr::EndpointAddr;
use crate::cluster::Cluster;
use crate::cluster::endpoint::Endpoint;
use crate::cluster::on_demand::OnDemand;
use crate::kernel::dispatch::Slot;
use crate::listener::Listener;
use crate::telemetry::stats::{ClusterStats, ListenerStats};

/// How long the beginning of a connection may be on its way from the hook to the agent, many times over.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// What a connection belongs to.
#[derive(Debug)]
pub(super) struct Target {
    pub listener: Arc<str>,
    pub listener_stats: Arc<ListenerStats>,
    pub chain: Arc<str>,
    pub cluster: Arc<str>,
    pub cluster_stats: Arc<ClusterStats>,
    /// `None`: the original destination.
    endpoint: Option<Arc<Endpoint>>,
}

impl Target {
    /// The endpoint of a connection to `address`.
    pub fn endpoint(&self, address: EndpointAddr, on_demand: impl FnOnce(&Arc<str>) -> Arc<OnDemand>) -> Arc<Endpoint> {
        match &self.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => on_demand(&self.cluster).endpoint(address),
        }
    }

    fn is(&self, listener: &Arc<Listener>, cluster: &Arc<Cluster>, way: &Way) -> bool {
        let endpoint = match (&self.endpoint, way) {
            (Some(own), Way::Endpoint(other)) => Arc::ptr_eq(own, other),
            (None, Way::OriginalDst) => true,
            _ => false,
        };
        // What is counted is kept over reloads, and names with it.
        endpoint
            && Arc::ptr_eq(&self.listener_stats, &listener.stats)
            && Arc::ptr_eq(&self.cluster_stats, &cluster.stats)
    }
}

/// All that have a number.
#[derive(Debug, Default)]
pub(super) struct Targets {
    by_number: HashMap<u32, Arc<Target>>,
    by_listener: HashMap<Arc<str>, Vec<u32>>,
    last: u32,
    used: BTreeSet<u32>,
    unused: Vec<(Instant, u32)>,
}

impl Targets {
    /// The tables are made anew: what is not asked for until [`Self::end`] is not in them.
    pub fn begin(&mut self) {
        self.used.clear();
    }

    /// The slot of one endpoint of `cluster`, or of the original destination.
    pub fn slot(&mut self, listener: &Arc<Listener>, chain: &Arc<str>, cluster: &Arc<Cluster>, way: &Way) -> Slot {
        let address = match way {
            Way::Endpoint(endpoint) => endpoint.address.socket().into(),
            Way::OriginalDst | Way::Nowhere => Slot::NONE.endpoint,
        };
        let of_listener = self.by_listener.entry(listener.name.clone()).or_default();
        let known = of_listener.iter().copied().find(|number| {
            self.by_number.get(number).is_some_and(|one| one.is(listener, cluster, way) && one.chain == *chain)
        });
        let number = known.unwrap_or_else(|| {
            self.last = self.last.wrapping_add(1).max(1);
            let endpoint = match way {
                Way::Endpoint(endpoint) => Some(endpoint.clone()),
                Way::OriginalDst | Way::Nowhere => None,
            };
            let target = Target {
                listener: listener.name.clone(),
                listener_stats: listener.stats.clone(),
                chain: chain.clone(),
                cluster: cluster.name.clone(),
                cluster_stats: cluster.stats.clone(),
                endpoint,
            };
            self.by_number.insert(self.last, Arc::new(target));
            of_listener.push(self.last);
            self.last
        });
        self.used.insert(number);
        Slot { endpoint: address, target: number }
    }

    /// The tables are made; forgets what was in none for long.
    pub fn end(&mut self) {
        let now = Instant::now();
        self.unused.retain(|(_, number)| !self.used.contains(number));
        for number in self.by_number.keys().filter(|number| !self.used.contains(number)) {
            if !self.unused.iter().any(|(_, unused)| unused == number) {
                self.unused.push((now, *number));
            }
        }
        let by_number = &mut self.by_number;
        self.unused.retain(|(since, number)| {
            let stays = now.saturating_duration_since(*since) < FORGET_AFTER;
            if !stays {
                by_number.remove(number);
            }
            stays
        });
        self.by_listener.retain(|_, numbers| {
            numbers.retain(|number| by_number.contains_key(number));
            !numbers.is_empty()
        });
    }

    /// What a connection with this number belongs to.
    pub fn get(&self, number: u32) -> Option<&Arc<Target>> {
        self.by_number.get(&number)
    }
}
