//! How a cluster chooses an endpoint.

use super::Resolver;
use crate::cluster::{ConsistentHash, LbPolicy, MAGLEV_SIZE_MAX, RING_SIZE_MAX};
use crate::config::diagnostic::Path;
use crate::config::raw::cluster as raw;
use crate::config::value::Value;

/// Resolves `lb_policy` and the settings of the policies that have some.
pub fn lb_policy(resolver: &mut Resolver<'_>, raw: &raw::Cluster, path: &Path<'_>) -> Option<LbPolicy> {
    let given = [
        ("ring_hash_lb_config", raw.ring_hash_lb_config.is_some(), raw::LbPolicy::RingHash, "ring_hash"),
        ("maglev_lb_config", raw.maglev_lb_config.is_some(), raw::LbPolicy::Maglev, "maglev"),
    ];
    let mut settings = Some(());
    for (field, _, _, policy) in given.iter().filter(|(_, given, policy, _)| *given && raw.lb_policy != Some(*policy)) {
        resolver.error(&path.field(field), format!("`{field}` has a meaning for `lb_policy: {policy}` only"));
        settings = None;
    }
    let policy = by_name(resolver, raw, path);
    settings.and(policy)
}

fn by_name(resolver: &mut Resolver<'_>, raw: &raw::Cluster, path: &Path<'_>) -> Option<LbPolicy> {
    let policy = path.field("lb_policy");
    match (raw.kind, raw.lb_policy) {
        (raw::ClusterType::OriginalDst, None | Some(raw::LbPolicy::ClusterProvided)) => Some(LbPolicy::RoundRobin),
        (raw::ClusterType::OriginalDst, Some(_)) => {
            resolver.error(&policy, "a cluster of type original_dst has nothing to choose from: leave `lb_policy` out");
            None
        }
        (_, Some(raw::LbPolicy::ClusterProvided)) => {
            resolver.error(&policy, "`cluster_provided` is for clusters of type original_dst");
            None
        }
        (_, None | Some(raw::LbPolicy::RoundRobin)) => Some(LbPolicy::RoundRobin),
        (_, Some(raw::LbPolicy::LeastRequest)) => Some(LbPolicy::LeastRequest),
        (_, Some(raw::LbPolicy::Random)) => Some(LbPolicy::Random),
        (_, Some(raw::LbPolicy::RingHash)) => ring(resolver, raw, &path.field("ring_hash_lb_config")),
        (_, Some(raw::LbPolicy::Maglev)) => maglev(resolver, raw, &path.field("maglev_lb_config")),
    }
}

fn ring(resolver: &mut Resolver<'_>, raw: &raw::Cluster, path: &Path<'_>) -> Option<LbPolicy> {
    let config = raw.ring_hash_lb_config.clone().unwrap_or_else(raw::RingHashLbConfig::placeholder);
    let (minimum, maximum) = (config.minimum_ring_size, config.maximum_ring_size);
    let least = resolver.within(&path.field("minimum_ring_size"), minimum, 1..=RING_SIZE_MAX);
    let most = resolver.within(&path.field("maximum_ring_size"), maximum, 1..=RING_SIZE_MAX);
    let (minimum, maximum) = (least?, most?);
    if minimum > maximum {
        let message = format!("`minimum_ring_size` ({minimum}) must not be above `maximum_ring_size` ({maximum})");
        resolver.error(path, message);
        return None;
    }
    Some(LbPolicy::Consistent(ConsistentHash::Ring { minimum, maximum }))
}

fn maglev(resolver: &mut Resolver<'_>, raw: &raw::Cluster, path: &Path<'_>) -> Option<LbPolicy> {
    let config = raw.maglev_lb_config.clone().unwrap_or_else(raw::MaglevLbConfig::placeholder);
    let path = path.field("table_size");
    let table_size = resolver.within(&path, config.table_size, 2..=MAGLEV_SIZE_MAX)?;
    if !is_prime(table_size) {
        let next = (table_size..=MAGLEV_SIZE_MAX).find(|number| is_prime(*number)).unwrap_or(MAGLEV_SIZE_MAX);
        resolver.error(&path, format!("must be a prime number, found {table_size}: the next one is {next}"));
        return None;
    }
    Some(LbPolicy::Consistent(ConsistentHash::Maglev { table_size }))
}

/// For numbers from 2 on.
fn is_prime(number: u32) -> bool {
    (2..).take_while(|factor| factor * factor <= number).all(|factor| !number.is_multiple_of(factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primes_are_told_from_others() {
        for prime in [2, 3, 5, 1021, 65_537, MAGLEV_SIZE_MAX] {
            assert!(is_prime(prime), "{prime}");
        }
        for other in [4, 9, 1024, 65_535, MAGLEV_SIZE_MAX - 1] {
            assert!(!is_prime(other), "{other}");
        }
    }
}
