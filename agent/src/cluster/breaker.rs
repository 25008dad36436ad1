//! Circuit breakers: limits on what a cluster has open or in flight at once, over all workers.
//!
//! The counts are the cluster's own statistics, which reloads keep; the limits are those of the snapshot that asks.
//! What exceeds a limit is refused at once (flag UO), never queued.

use std::sync::Arc;

use super::Cluster;
use crate::telemetry::metric::{Counter, Gauge};
use crate::telemetry::stats::ClusterStats;

/// Leave to have one thing more open or in flight; given back when it is dropped.
#[derive(Debug)]
pub struct Permit {
    stats: Arc<ClusterStats>,
    gauge: fn(&ClusterStats) -> &Gauge,
}

impl Cluster {
    /// One connection more (`upstream_cx_active`). [`super::connect::connect`] asks for it; nobody else has to.
    pub fn try_connection(&self) -> Option<Permit> {
        let limit = self.circuit_breakers.max_connections;
        self.permit(|stats| &stats.upstream_cx_active, limit, &self.stats.upstream_cx_overflow)
    }

    /// One request more in flight (`upstream_rq_active`, which the permit counts: do not count it again).
    pub fn try_request(&self) -> Option<Permit> {
        let limit = self.circuit_breakers.max_requests;
        self.permit(|stats| &stats.upstream_rq_active, limit, &self.stats.upstream_rq_pending_overflow)
    }

    /// One request more that waits for a connection.
    pub fn try_pending(&self) -> Option<Permit> {
        let limit = self.circuit_breakers.max_pending_requests;
        self.permit(|stats| &stats.upstream_rq_pending_active, limit, &self.stats.upstream_rq_pending_overflow)
    }

    /// One retry more in flight.
    pub fn try_retry(&self) -> Option<Permit> {
        let limit = self.circuit_breakers.max_retries;
        self.permit(|stats| &stats.upstream_rq_retry_active, limit, &self.stats.upstream_rq_retry_overflow)
    }

    fn permit(&self, gauge: fn(&ClusterStats) -> &Gauge, limit: u32, overflow: &Counter) -> Option<Permit> {
        if !gauge(&self.stats).try_inc(limit) {
            overflow.inc();
            return None;
        }
        Some(Permit { stats: self.stats.clone(), gauge })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        (self.gauge)(&self.stats).dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::CircuitBreakers;
    use crate::cluster::fixture::cluster;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[test]
    fn what_exceeds_a_limit_is_refused_and_counted_until_a_permit_is_dropped() {
        let limits = CircuitBreakers { max_connections: 1, max_pending_requests: 2, max_requests: 2, max_retries: 1 };
        let cluster = Cluster { circuit_breakers: limits, ..cluster("a") };
        type Try = fn(&Cluster) -> Option<Permit>;
        for (attempt, limit) in [
            (Cluster::try_connection as Try, 1),
            (Cluster::try_pending, 2),
            (Cluster::try_request, 2),
            (Cluster::try_retry, 1),
        ] {
            let permits: Vec<_> = std::iter::from_fn(|| attempt(&cluster)).collect();
            assert_eq!(permits.len(), limit);
            drop(permits);
            assert!(attempt(&cluster).is_some());
        }
        assert_eq!(cluster.stats.upstream_cx_overflow.value(), 1);
        assert_eq!(cluster.stats.upstream_rq_pending_overflow.value(), 2);
        assert_eq!(cluster.stats.upstream_rq_retry_overflow.value(), 1);
    }

    #[test]
    fn a_limit_holds_over_threads() {
        let limits = CircuitBreakers { max_connections: 7, ..CircuitBreakers::default() };
        let cluster = Cluster { circuit_breakers: limits, ..cluster("a") };
        let most = AtomicUsize::new(0);
        let open = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        if let Some(permit) = cluster.try_connection() {
                            most.fetch_max(open.fetch_add(1, SeqCst) + 1, SeqCst);
                            std::thread::yield_now();
                            open.fetch_sub(1, SeqCst);
                            drop(permit);
                        }
                    }
                });
            }
        });
        assert!(most.load(SeqCst) <= 7);
        assert_eq!(cluster.stats.upstream_cx_active.value(), 0);
    }
}
