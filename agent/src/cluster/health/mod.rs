//! Active health checks: asks every endpoint, again and again, whether it is well.
//!
//! Before: [`super::manager`], which starts this for clusters with `health_checks`, on the main thread's runtime: a slow
//! endpoint never delays a worker. After: [`super::membership`], which takes the unhealthy ones out of the traffic.
//! [`state`] decides and is pure; [`probe`] asks.

mod probe;
mod state;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::endpoint::{Endpoint, Health};
use super::membership::Membership;
use super::{Cluster, HealthCheck, UpstreamProtocol};
use crate::addr::EndpointAddr;
use crate::worker::Shared;

use probe::Failure;
use state::{State, Transition, Verdict};

/// What is checked in one cluster, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    checks: Vec<HealthCheck>,
    protocol: UpstreamProtocol,
}

impl Plan {
    /// The plan of `cluster`; `None` when it is not checked.
    pub fn of(cluster: &Cluster) -> Option<Self> {
        let checks = cluster.health_checks.clone();
        (!checks.is_empty()).then_some(Self { checks, protocol: cluster.protocol })
    }
}

/// Checks the members of a cluster as they come and go. Ends only when it is aborted, and all checks with it.
pub(super) async fn supervise(plan: Plan, membership: Arc<Membership>, shared: Arc<Shared>) {
    let plan = Arc::new(plan);
    let mut members = membership.endpoints();
    let mut checked: HashMap<EndpointAddr, (Arc<Endpoint>, Vec<AbortHandle>)> = HashMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let wanted: HashMap<_, _> =
            members.borrow_and_update().iter().map(|endpoint| (endpoint.address, endpoint.clone())).collect();
        checked.retain(|address, (endpoint, handles)| {
            let stays = wanted.get(address).is_some_and(|wanted| Arc::ptr_eq(wanted, endpoint));
            if !stays {
                handles.iter().for_each(AbortHandle::abort);
            }
            stays
        });
        for (address, endpoint) in wanted {
            checked.entry(address).or_insert_with(|| {
                let subject = Arc::new(Subject::new(&endpoint, &membership, &plan));
                let start = |index| tasks.spawn(check(index, subject.clone(), shared.clone()));
                (endpoint, (0..plan.checks.len()).map(start).collect())
            });
        }
        while tasks.try_join_next().is_some() {}
        if members.changed().await.is_err() {
            return;
        }
    }
}

/// One endpoint under check.
struct Subject {
    endpoint: Arc<Endpoint>,
    membership: Arc<Membership>,
    plan: Arc<Plan>,
    /// What each check says; the endpoint is as well as the worst of them.
    verdicts: Mutex<Vec<Health>>,
}

impl Subject {
    fn new(endpoint: &Arc<Endpoint>, membership: &Arc<Membership>, plan: &Arc<Plan>) -> Self {
        let verdicts = Mutex::new(vec![endpoint.health(); plan.checks.len()]);
        Self { endpoint: endpoint.clone(), membership: membership.clone(), plan: plan.clone(), verdicts }
    }

    /// Takes over what the check `index` says now.
    fn settle(&self, index: usize, health: Health) {
        let mut verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        verdicts[index] = health;
        let worst = [Health::Unhealthy, Health::Unknown, Health::Healthy].into_iter().find(|h| verdicts.contains(h));
        if let Some(worst) = worst.filter(|worst| *worst != self.endpoint.health()) {
            self.endpoint.set_health(worst);
            self.membership.health_changed();
        }
    }
}

/// One check of one endpoint, for ever.
async fn check(index: usize, subject: Arc<Subject>, shared: Arc<Shared>) {
    let check = &subject.plan.checks[index];
    let stats = &subject.membership.stats;
    let mut state = State::resume(subject.endpoint.health());
    loop {
        stats.health_check_attempt.inc();
        let probing = probe::probe(check, &subject, shared.kernel.as_ref());
        let result = timeout(check.timeout, probing).await.unwrap_or(Err(Failure::Timeout));
        match &result {
            Ok(()) => stats.health_check_success.inc(),
            Err(failure) => {
                stats.health_check_failure.inc();
                if failure.is_of_the_network() {
                    stats.health_check_network_failure.inc();
                }
            }
        }
        let verdict = result.as_ref().map_or_else(Failure::verdict, |()| Verdict::Pass);
        if let Some(transition) = state.observe(verdict, check.healthy_threshold, check.unhealthy_threshold) {
            report(&subject, &transition, result.err());
            subject.settle(index, transition.to);
        }
        sleep(check.interval + check.interval_jitter.mul_f64(rand::random())).await;
    }
}

fn report(subject: &Subject, transition: &Transition, failure: Option<Failure>) {
    let (address, cluster, why) = (subject.endpoint.address, &subject.membership.cluster, transition.why);
    match failure {
        Some(failure) => tracing::info!("endpoint {address} of cluster {cluster} is unhealthy: {failure} ({why})"),
        None => tracing::info!("endpoint {address} of cluster {cluster} is healthy ({why})"),
    }
}

#[cfg(test)]
mod tests;
