//! Chooses the endpoint of a connection or request.
//!
//! Before: the cluster is known. After: [`super::connect`]. Called on workers, for each connection and each try of a
//! request; must not block.

use std::sync::Arc;

use super::balance::Chance;
use super::endpoint::{Endpoint, Health};
use super::{Cluster, Discovery};
use crate::addr::{EndpointAddr, OrigDstAddr};
use crate::telemetry::flags::ResponseFlags;
use crate::worker::Worker;

/// Why no endpoint could be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// Flag UH.
    #[error("no healthy endpoint in cluster {0}")]
    NoHealthyEndpoint(Arc<str>),
    /// An original_dst cluster was asked for a connection that the kernel had not redirected. Flag UH.
    #[error("cluster {0} needs an original destination, and this connection has none")]
    NoOriginalDst(Arc<str>),
    /// The original destination is one of the agent's own listeners. Flag UH.
    #[error("{0} is one of the agent's own listeners: connecting to it would be a loop")]
    OwnListener(EndpointAddr),
}

impl SelectError {
    /// UH, whatever the reason.
    pub fn flags(&self) -> ResponseFlags {
        ResponseFlags::NO_HEALTHY_UPSTREAM
    }
}

/// What ties a connection or request to an endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct Affinity {
    /// Where the client wanted to go, for `original_dst` clusters.
    pub original_dst: Option<OrigDstAddr>,
    /// By the hash policy, for clusters that balance by it; `None`: there is none, or it found nothing to hash.
    pub hash: Option<u64>,
}

impl From<Option<OrigDstAddr>> for Affinity {
    /// Without a hash.
    fn from(original_dst: Option<OrigDstAddr>) -> Self {
        Self { original_dst, hash: None }
    }
}

/// Chooses an endpoint of `cluster`, not one of `tried` unless there is no other.
///
/// # Errors
/// When no endpoint takes traffic. Counted in `upstream_cx_none_healthy`.
pub fn select(
    worker: &Worker,
    cluster: &Arc<Cluster>,
    affinity: impl Into<Affinity>,
    tried: &[EndpointAddr],
) -> Result<Arc<Endpoint>, SelectError> {
    let Affinity { original_dst, hash } = affinity.into();
    worker.balance.follow(&worker.shared.snapshot.load());
    let chosen = match cluster.discovery {
        Discovery::OriginalDst => at_original_dst(worker, cluster, original_dst),
        Discovery::Static | Discovery::StrictDns { .. } => worker
            .balance
            .choose(cluster, worker.index, Chance { hash, random: [worker.random(), worker.random()] }, tried)
            .ok_or_else(|| SelectError::NoHealthyEndpoint(cluster.name.clone())),
    };
    chosen.inspect_err(|_| cluster.stats.upstream_cx_none_healthy.inc())
}

fn at_original_dst(
    worker: &Worker,
    cluster: &Arc<Cluster>,
    original_dst: Option<OrigDstAddr>,
) -> Result<Arc<Endpoint>, SelectError> {
    let Some(destination) = original_dst else { return Err(SelectError::NoOriginalDst(cluster.name.clone())) };
    let address = EndpointAddr::new(destination.socket());
    if worker.balance.is_own_listener(worker.shared.own_listeners.load().addresses(), address) {
        return Err(SelectError::OwnListener(address));
    }
    let endpoint = worker.balance.on_demand(&cluster.name, address, &worker.shared.runtime.endpoints);
    match endpoint.health() {
        Health::Unknown | Health::Healthy => Ok(endpoint),
        Health::Unhealthy => Err(SelectError::NoHealthyEndpoint(cluster.name.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::fixture::{address, cluster, cluster_of, members, shared, snapshot};
    use crate::worker::OwnListeners;

    fn original_dst(text: &str) -> Option<OrigDstAddr> {
        Some(OrigDstAddr::new(text.parse().expect("address")))
    }

    #[test]
    fn each_worker_takes_turns_and_starts_at_its_own_place() {
        let cluster = Arc::new(cluster_of("a", members(&[1, 1, 1])));
        let shared = shared(vec![cluster.clone()]);
        for index in 0..2 {
            let worker = Worker::new(usize::from(index), shared.clone());
            let turns: Vec<_> =
                (0..4).map(|_| select(&worker, &cluster, None, &[]).expect("endpoint").address).collect();
            let wanted: Vec<_> = (0..4).map(|turn| address((index + turn) % 3)).collect();
            assert_eq!(turns, wanted);
        }
    }

    #[test]
    fn a_reload_with_the_same_endpoints_goes_on_in_the_rotation_and_a_removed_cluster_is_forgotten() {
        let members = members(&[3, 1]);
        let first = Arc::new(cluster_of("a", members.clone()));
        let shared = shared(vec![first.clone()]);
        let worker = Worker::new(0, shared.clone());
        let turns = |cluster, count| -> Vec<_> {
            (0..count).map(|_| select(&worker, cluster, None, &[]).expect("endpoint").address.port()).collect()
        };
        let [heavy, light] = [address(0).port(), address(1).port()];
        assert_eq!(turns(&first, 2), [heavy, heavy]);

        let second = Arc::new(cluster_of("a", members));
        shared.snapshot.store(Arc::new(snapshot(2, vec![second.clone()])));
        assert_eq!(turns(&second, 2), [heavy, light]);
        assert_eq!(turns(&second, 1), [heavy]);

        let other = Arc::new(cluster_of("b", crate::cluster::fixture::members(&[1])));
        shared.snapshot.store(Arc::new(snapshot(3, vec![other.clone()])));
        turns(&other, 1);
        shared.snapshot.store(Arc::new(snapshot(4, vec![second.clone()])));
        assert_eq!(turns(&second, 1), [heavy], "the turns begin anew");
    }

    #[test]
    fn a_cluster_without_endpoints_is_an_error_that_is_counted() {
        let cluster = Arc::new(cluster("a"));
        let worker = Worker::new(0, shared(vec![cluster.clone()]));
        let error = select(&worker, &cluster, None, &[]).expect_err("no endpoint");
        assert_eq!(error, SelectError::NoHealthyEndpoint("a".into()));
        assert_eq!(error.flags().to_string(), "UH");
        assert_eq!(cluster.stats.upstream_cx_none_healthy.value(), 1);
    }

    #[test]
    fn an_original_dst_cluster_goes_where_the_client_wanted() {
        let cluster = Arc::new(Cluster { discovery: Discovery::OriginalDst, ..cluster("passthrough") });
        let shared = shared(vec![cluster.clone()]);
        let workers = [Worker::new(0, shared.clone()), Worker::new(1, shared.clone())];
        let choose = |worker, destination| select(worker, &cluster, destination, &[]);
        let endpoint = choose(&workers[0], original_dst("[::ffff:10.0.0.1]:80")).expect("endpoint");
        assert_eq!(endpoint.address.to_string(), "10.0.0.1:80");
        let same = choose(&workers[1], original_dst("10.0.0.1:80")).expect("endpoint");
        assert!(Arc::ptr_eq(&endpoint, &same), "the workers share its statistics");
        assert_eq!(
            choose(&workers[0], None).expect_err("no destination"),
            SelectError::NoOriginalDst("passthrough".into())
        );
    }

    #[test]
    fn an_original_dst_cluster_refuses_the_agents_own_listeners() {
        let cluster = Arc::new(Cluster { discovery: Discovery::OriginalDst, ..cluster("passthrough") });
        let shared = shared(vec![cluster.clone()]);
        let bound = vec!["0.0.0.0:40001".parse().expect("address")];
        shared.own_listeners.store(Arc::new(OwnListeners::new(bound)));
        let worker = Worker::new(0, shared);
        // The fixture's listener is bound to 127.0.0.1:15001 and takes redirected connections.
        for destination in ["127.0.0.1:15001", "[::1]:15001", "0.0.0.0:15001", "127.0.0.9:40001"] {
            let error = select(&worker, &cluster, original_dst(destination), &[]).expect_err(destination);
            assert!(matches!(error, SelectError::OwnListener(_)), "{error}");
        }
        assert!(select(&worker, &cluster, original_dst("127.0.0.9:15001"), &[]).is_ok());
    }
}
