//! Endpoints: the addresses of a cluster and what is known of each.
//!
//! An endpoint's state outlives the configuration that named it: [`EndpointRegistry`] hands the same [`Endpoint`] to
//! the next snapshot when cluster, address and health checks are unchanged.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};

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

/// The endpoints of a cluster at one moment, with those that take traffic sorted out. Immutable.
#[derive(Debug, Default)]
pub struct EndpointSet {
    all: Vec<WeightedEndpoint>,
    usable: Vec<WeightedEndpoint>,
}

impl EndpointSet {
    /// Sorts out who takes traffic: whoever is not unhealthy; everybody when that is less than `panic_threshold`
    /// percent of all.
    pub fn new(all: Vec<WeightedEndpoint>, panic_threshold: u8) -> Self {
        let healthy: Vec<_> =
            all.iter().filter(|member| member.endpoint.health() != Health::Unhealthy).cloned().collect();
        let panic = healthy.len() * 100 < usize::from(panic_threshold) * all.len();
        let usable = if panic { all.clone() } else { healthy };
        Self { all, usable }
    }

    /// All endpoints, in configured order.
    pub fn all(&self) -> &[WeightedEndpoint] {
        &self.all
    }

    /// Those that take traffic, in configured order.
    pub fn usable(&self) -> &[WeightedEndpoint] {
        &self.usable
    }
}

/// What makes an endpoint the same one after a reload.
type EndpointKey = (Arc<str>, EndpointAddr);

/// Hands out endpoints by identity.
#[derive(Debug, Default)]
pub struct EndpointRegistry(Mutex<HashMap<EndpointKey, Weak<Endpoint>>>);

impl EndpointRegistry {
    /// The endpoint `address` of `cluster`: the living one when there is one, else a new one.
    pub fn endpoint(&self, cluster: &Arc<str>, address: EndpointAddr, hostname: Option<&Arc<str>>) -> Arc<Endpoint> {
        let mut endpoints = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        endpoints.retain(|_, endpoint| endpoint.strong_count() > 0);
        let slot = endpoints.entry((cluster.clone(), address)).or_default();
        slot.upgrade().unwrap_or_else(|| {
            let endpoint = Arc::new(Endpoint::new(address, hostname.cloned()));
            *slot = Arc::downgrade(&endpoint);
            endpoint
        })
    }
}
