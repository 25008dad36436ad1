//! Endpoints that are made on use: those of `original_dst` clusters.
//!
//! Before: [`super::select`], which asks for the address that the client dialled. After: [`super::manager`], which
//! sweeps out what nobody uses any more (Envoy's `cleanup_interval`). The addresses are the clients' choice, so
//! nothing may be kept for longer than it is used.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::endpoint::{Endpoint, WeightedEndpoint};
use crate::addr::EndpointAddr;

/// The endpoints of one cluster. All workers share them, so that each address has one set of statistics.
#[derive(Debug, Default)]
pub struct OnDemand(Mutex<HashMap<EndpointAddr, Entry>>);

#[derive(Debug)]
struct Entry {
    endpoint: Arc<Endpoint>,
    used: Used,
}

/// Whether an endpoint was asked for since the last sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Used {
    Yes,
    No,
}

impl OnDemand {
    /// The endpoint at `address`, made on first use.
    pub fn endpoint(&self, address: EndpointAddr) -> Arc<Endpoint> {
        let mut endpoints = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = endpoints
            .entry(address)
            .or_insert_with(|| Entry { endpoint: Arc::new(Endpoint::new(address, None)), used: Used::Yes });
        entry.used = Used::Yes;
        entry.endpoint.clone()
    }

    /// Forgets what has no connection and was not asked for since the sweep before; returns the rest, by address.
    pub fn sweep(&self) -> Vec<WeightedEndpoint> {
        let mut endpoints = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        endpoints.retain(|_, entry| {
            let stats = &entry.endpoint.stats;
            let busy = stats.cx_active.value() > 0 || stats.rq_active.value() > 0;
            std::mem::replace(&mut entry.used, Used::No) == Used::Yes || busy
        });
        let mut rest: Vec<_> =
            endpoints.values().map(|entry| WeightedEndpoint { endpoint: entry.endpoint.clone(), weight: 1 }).collect();
        rest.sort_by_key(|member| member.endpoint.address);
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::fixture::address;

    #[test]
    fn an_endpoint_lives_as_long_as_it_is_used() {
        let endpoints = OnDemand::default();
        let endpoint = endpoints.endpoint(address(1));
        assert!(Arc::ptr_eq(&endpoint, &endpoints.endpoint(address(1))));
        endpoint.stats.cx_active.inc();
        for _ in 0..3 {
            assert_eq!(endpoints.sweep().len(), 1, "it has a connection");
        }
        endpoint.stats.cx_active.dec();
        assert_eq!(endpoints.sweep().len(), 0);
        assert!(!Arc::ptr_eq(&endpoint, &endpoints.endpoint(address(1))));
    }

    #[test]
    fn an_endpoint_survives_the_first_sweep_after_its_use() {
        let endpoints = OnDemand::default();
        endpoints.endpoint(address(2));
        endpoints.endpoint(address(1));
        let ports: Vec<_> = endpoints.sweep().iter().map(|member| member.endpoint.address.port()).collect();
        assert_eq!(ports, [address(1).port(), address(2).port()]);
        assert_eq!(endpoints.sweep().len(), 0);
    }
}
