//! Where the endpoints of `strict_dns` clusters come from: every address of every name is one.
//!
//! Before: [`super::manager`]. After: [`super::membership`]. Each name is asked on its own, again and again; when it
//! fails, its last good addresses stay.

mod names;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::sleep;

use super::endpoint::{EndpointRegistry, WeightedEndpoint};
use super::membership::{Membership, Term};
use super::{Discovery, DnsLookupFamily, DnsName};
use crate::addr::EndpointAddr;

pub(super) use names::Names;
use names::Resolved;

/// After failures in a row the refresh rate is stretched up to this many times (Envoy's `dns_failure_refresh_rate`).
const MAX_STRETCH: u32 = 10;

/// A time to live below this counts as this: the server must not be able to make the agent ask without a pause.
const MIN_TTL: Duration = Duration::from_secs(1);

/// Keeps the members of one `strict_dns` cluster up to date. `answered` becomes true when each name was asked once,
/// with whatever result. Ends only when it is aborted.
pub(super) async fn strict_dns(
    discovery: Discovery,
    resolver: Arc<Names>,
    registry: Arc<EndpointRegistry>,
    (membership, term): (Arc<Membership>, Term),
    answered: watch::Sender<bool>,
) {
    let Discovery::StrictDns { names, refresh_rate, respect_dns_ttl, lookup_family } = discovery else { return };
    let cadence = Cadence { refresh_rate, respect_dns_ttl };
    let resolved = Mutex::new(vec![None; names.len()]);
    let answers =
        Answers { resolved, names: &names, registry: &registry, membership: &membership, term, answered: &answered };
    if names.is_empty() {
        answers.publish(&[]);
    }
    let indexes = 0..names.len();
    join_all(indexes.map(|index| keep_asking(index, &answers, &resolver, lookup_family, cadence))).await;
}

/// How often a name is asked.
#[derive(Clone, Copy, Debug)]
struct Cadence {
    refresh_rate: Duration,
    respect_dns_ttl: bool,
}

/// Asks for the name `index`, for ever.
async fn keep_asking(index: usize, answers: &Answers<'_>, resolver: &Names, family: DnsLookupFamily, cadence: Cadence) {
    let (stats, host) = (&answers.membership.stats, &answers.names[index].host);
    let mut failures = 0;
    loop {
        stats.update_attempt.inc();
        let pause = match resolver.resolve(host, family).await {
            Ok(Resolved { addresses, ttl }) => {
                stats.update_success.inc();
                failures = 0;
                answers.take(index, addresses);
                cadence.after_success(ttl)
            }
            Err(error) => {
                stats.update_failure.inc();
                failures += 1;
                let cluster = &answers.membership.cluster;
                tracing::warn!("resolving {host} of cluster {cluster}: {error} (failure {failures} in a row)");
                answers.give_up(index);
                cadence.after_failures(failures, rand::random())
            }
        };
        sleep(pause).await;
    }
}

impl Cadence {
    /// The pause after an answer.
    fn after_success(self, ttl: Option<Duration>) -> Duration {
        ttl.filter(|_| self.respect_dns_ttl).map_or(self.refresh_rate, |ttl| ttl.max(MIN_TTL))
    }

    /// The pause after `failures` in a row: doubled each time up to a limit, and spread by `random` (0 to 1) over its
    /// upper half, so that many agents do not ask at the same moment.
    fn after_failures(self, failures: u32, random: f64) -> Duration {
        let stretch = 2_u32.saturating_pow(failures.saturating_sub(1)).min(MAX_STRETCH);
        self.refresh_rate.saturating_mul(stretch).mul_f64(0.5 + random / 2.0)
    }
}

/// The last good answer of each name, in configured order.
struct Answers<'a> {
    /// `None` for a name that was not asked yet.
    resolved: Mutex<Vec<Option<Vec<IpAddr>>>>,
    names: &'a [DnsName],
    registry: &'a EndpointRegistry,
    membership: &'a Membership,
    term: Term,
    answered: &'a watch::Sender<bool>,
}

impl Answers<'_> {
    /// Takes over what the name `index` resolved to now.
    fn take(&self, index: usize, mut addresses: Vec<IpAddr>) {
        // Servers rotate their answers: sorted, the same addresses are the same set.
        addresses.sort_unstable();
        addresses.dedup();
        let mut resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        resolved[index] = Some(addresses);
        self.publish(&resolved);
    }

    /// The name `index` could not be resolved: what it had stays.
    fn give_up(&self, index: usize) {
        let mut resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        resolved[index].get_or_insert_default();
        self.publish(&resolved);
    }

    /// Hands on what is known now: a name without an answer does not hold the others up.
    fn publish(&self, resolved: &[Option<Vec<IpAddr>>]) {
        let mut members: Vec<WeightedEndpoint> = Vec::new();
        for (name, addresses) in self.names.iter().zip(resolved) {
            let hostname: Arc<str> = name.host.as_str().into();
            for address in addresses.iter().flatten() {
                let address = EndpointAddr::new(SocketAddr::new(*address, name.port));
                if members.iter().all(|member| member.endpoint.address != address) {
                    let endpoint = self.registry.endpoint(&self.membership.cluster, address, Some(&hostname));
                    members.push(WeightedEndpoint { endpoint, weight: name.weight });
                }
            }
        }
        self.membership.replace(self.term, members);
        if resolved.iter().all(Option::is_some) {
            self.answered.send_if_modified(|answered| !std::mem::replace(answered, true));
        }
    }
}

#[cfg(test)]
mod tests;
