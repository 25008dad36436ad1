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
use super::membership::{Membership, Term};
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

/// What all checks of a cluster share.
struct Round {
    plan: Plan,
    membership: Arc<Membership>,
    term: Term,
}

impl Plan {
    /// The plan of `cluster`; `None` when it is not checked.
    pub fn of(cluster: &Cluster) -> Option<Self> {
        let checks = cluster.health_checks.clone();
        (!checks.is_empty()).then_some(Self { checks, protocol: cluster.protocol })
    }
}

/// Checks the members of a cluster as they come and go. Ends only when it is aborted, and all checks with it.
pub(super) async fn supervise(plan: Plan, membership: Arc<Membership>, term: Term, shared: Arc<Shared>) {
    let round = Arc::new(Round { plan, membership: membership.clone(), term });
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
                let subject = Arc::new(Subject::new(&endpoint, &round));
                let start = |index| tasks.spawn(check(index, subject.clone(), shared.clone()));
                (endpoint, (0..round.plan.checks.len()).map(start).collect())
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
    round: Arc<Round>,
    /// What each check says; the endpoint is as well as the worst of them.
    verdicts: Mutex<Vec<Health>>,
}

impl Subject {
    fn new(endpoint: &Arc<Endpoint>, round: &Arc<Round>) -> Self {
        let verdicts = Mutex::new(vec![endpoint.health(); round.plan.checks.len()]);
        Self { endpoint: endpoint.clone(), round: round.clone(), verdicts }
    }

    /// Takes over what the check `index` says now.
    fn settle(&self, index: usize, health: Health) {
        let mut verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        verdicts[index] = health;
        let worst = [Health::Unhealthy, Health::Unknown, Health::Healthy].into_iter().find(|h| verdicts.contains(h));
        if let Some(worst) = worst {
            self.round.membership.set_health(self.round.term, &self.endpoint, worst);
        }
    }
}

/// One check of one endpoint, for ever.
async fn check(index: usize, subject: Arc<Subject>, shared: Arc<Shared>) {
    let check = &subject.round.plan.checks[index];
    let stats = &subject.round.membership.stats;
    let mut state = State::resume(subject.endpoint.health());
    // Before the kernel's side is attached it is not known whether sockets have to be stamped.
    let kernel = shared.kernel_attached().await;
    loop {
        stats.health_check_attempt.inc();
        let probing = probe::probe(check, &subject, kernel);
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
            let (address, cluster) = (subject.endpoint.address, &subject.round.membership.cluster);
            tracing::info!("{}", announcement(address, cluster, &transition, result.as_ref().err()));
            subject.settle(index, transition.to);
        }
        sleep(check.interval + check.interval_jitter.mul_f64(rand::random())).await;
    }
}

/// A change of health in words.
fn announcement(address: EndpointAddr, cluster: &str, transition: &Transition, failure: Option<&Failure>) -> String {
    let why = transition.why;
    match failure {
        Some(failure) => format!("endpoint {address} of cluster {cluster} is unhealthy: {failure} ({why})"),
        None => format!("endpoint {address} of cluster {cluster} is healthy ({why})"),
    }
}

#[cfg(test)]
mod tests;
