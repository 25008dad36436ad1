//! From records as they are written to the snapshot: names become what they name, and rules that span several values
//! are checked.
//!
//! Before: [`super::raw`]. After: the model of [`crate::listener`], [`crate::http`] and [`crate::cluster`]. A part that
//! is wrong resolves to `None` with a reason in the report; the parts beside it are resolved all the same, so that
//! their problems come out too.

mod action;
mod cluster;
mod dns;
mod hash_policy;
mod headers;
mod http;
mod intercept;
mod lb_policy;
mod listener;
mod matches;
mod pods;
mod processes;
mod receivers;
mod route;
mod settings;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::diagnostic::{Path, Report};
use super::positions::Positions;
use super::raw;
use super::suggest;
use crate::cluster::{Cluster, ClusterSpecifier, WeightedClusters};
use crate::http::route::RouteConfig;
use crate::snapshot::{Origin, Runtime, Snapshot};

/// Resolves `config`. `None` when something is wrong; the report says what.
pub fn resolve(
    config: &raw::Config,
    origin: Origin,
    positions: &Positions,
    runtime: &Runtime,
    report: &mut Report,
) -> Option<Snapshot> {
    let root = Path::ROOT;
    let mut resolver =
        Resolver { report, positions, runtime, clusters: Names::default(), route_configs: Names::default() };
    cluster::clusters(&mut resolver, &config.clusters, &root.field("clusters"));
    route::route_configs(&mut resolver, &config.route_configs, &root.field("route_configs"));
    let listeners = listener::listeners(&mut resolver, config, &root.field("listeners"));
    let intercept = intercept::intercept(&mut resolver, config);
    let dns = dns::dns(&mut resolver, config);
    let admin = settings::admin(&mut resolver, config);
    let access_log = settings::access_log(&mut resolver, &config.access_log, &root.field("access_log"));
    let (clusters, route_configs) = (resolver.clusters.resolved()?, resolver.route_configs.resolved()?);
    Some(Snapshot {
        origin,
        intercept: intercept?,
        dns: dns?,
        listeners: listeners?,
        route_configs,
        clusters,
        admin: admin?,
        access_log: access_log?,
        drain_timeout: config.drain_timeout,
    })
}

/// What resolving needs everywhere.
struct Resolver<'a> {
    report: &'a mut Report,
    positions: &'a Positions,
    runtime: &'a Runtime,
    clusters: Names<Cluster>,
    route_configs: Names<RouteConfig>,
}

/// Things with names; `None` for one that is wrong itself, so that naming it is not another problem.
struct Names<T> {
    all: BTreeMap<Arc<str>, Option<Arc<T>>>,
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self { all: BTreeMap::new() }
    }
}

impl<T> Names<T> {
    /// All of them, if nothing is wrong with any.
    fn resolved(self) -> Option<BTreeMap<Arc<str>, Arc<T>>> {
        self.all.into_iter().map(|(name, thing)| Some((name, thing?))).collect()
    }
}

impl Resolver<'_> {
    /// Adds a problem, unless it only follows from a value that could not be decoded.
    fn error(&mut self, path: &Path<'_>, message: impl Into<String>) {
        let path = path.to_string();
        if !self.report.is_undecoded(&path) {
            self.report.error(&path, self.positions.nearest(&path), message);
        }
    }

    fn warn(&mut self, path: &Path<'_>, message: impl Into<String>) {
        let path = path.to_string();
        self.report.warn(&path, self.positions.nearest(&path), message);
    }

    /// Adds a problem for a result that is one.
    fn check<T, E: ToString>(&mut self, path: &Path<'_>, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.error(path, error.to_string())).ok()
    }

    /// Resolves every element; `None` when one of them is wrong, but not before all were tried.
    fn each<R, T>(
        &mut self,
        items: &[R],
        path: &Path<'_>,
        mut resolve: impl FnMut(&mut Self, &R, &Path<'_>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let mut resolved = Some(Vec::with_capacity(items.len()));
        for (index, item) in items.iter().enumerate() {
            match (resolve(self, item, &path.index(index)), &mut resolved) {
                (Some(item), Some(resolved)) => resolved.push(item),
                _ => resolved = None,
            }
        }
        resolved
    }

    /// Resolves what may be absent; `None` when it is there and wrong.
    fn maybe<R, T>(
        &mut self,
        item: Option<&R>,
        path: &Path<'_>,
        resolve: impl FnOnce(&mut Self, &R, &Path<'_>) -> Option<T>,
    ) -> Option<Option<T>> {
        item.map_or(Some(None), |item| resolve(self, item, path).map(Some))
    }

    /// Checks that exactly one of `choices` (name, whether it is given) is given.
    fn exactly_one(&mut self, path: &Path<'_>, choices: &[(&str, bool)]) -> Option<()> {
        if choices.iter().any(|(_, given)| *given) {
            return self.at_most_one(path, choices);
        }
        let names = choices.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        self.error(path, format!("one of {names} is missing"));
        None
    }

    /// Checks that at most one of `choices` (name, whether it is given) is given.
    fn at_most_one(&mut self, path: &Path<'_>, choices: &[(&str, bool)]) -> Option<()> {
        let given: Vec<_> = choices.iter().filter(|(_, given)| *given).map(|(name, _)| format!("`{name}`")).collect();
        if given.len() > 1 {
            // Both are there: this follows from no other problem.
            let message = format!("{} exclude each other: keep one of them", given.join(" and "));
            self.report.error(path, self.positions.nearest(&path.to_string()), message);
            return None;
        }
        Some(())
    }

    /// A duration that must not be zero.
    fn positive(&mut self, path: &Path<'_>, duration: Duration) -> Option<Duration> {
        if duration.is_zero() {
            self.error(path, "must be longer than 0s");
            return None;
        }
        Some(duration)
    }

    /// A number in a range.
    fn within(&mut self, path: &Path<'_>, number: u32, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
        if !range.contains(&number) {
            let (first, last) = (range.start(), range.end());
            let message = match *last {
                u32::MAX => format!("must be at least {first}, found {number}"),
                _ => format!("must be {first} to {last}, found {number}"),
            };
            self.error(path, message);
            return None;
        }
        Some(number)
    }

    /// The cluster called `name`.
    fn cluster(&mut self, path: &Path<'_>, name: &str) -> Option<Arc<Cluster>> {
        if let Some(cluster) = self.clusters.all.get(name) {
            return cluster.clone();
        }
        // While the names of some clusters are not known, this may be one of them.
        if !self.report.is_undecoded_field("clusters", "name") {
            let meant = match self.report.is_full() {
                true => String::new(),
                false => suggest::did_you_mean(name, self.clusters.all.keys().map(|name| &**name)),
            };
            self.error(path, format!("there is no cluster `{name}`{meant}"));
        }
        None
    }

    /// `cluster` or `weighted_clusters` of the record at `path`; the inner `None` when it gives neither.
    fn fixed_cluster(
        &mut self,
        path: &Path<'_>,
        name: Option<&String>,
        weights: Option<&Vec<raw::listener::WeightedCluster>>,
    ) -> Option<Option<ClusterSpecifier>> {
        let cluster = self.maybe(name, &path.field("cluster"), |resolver, name, path| {
            resolver.cluster(path, name).map(ClusterSpecifier::Cluster)
        });
        let weighted = self.maybe(weights, &path.field("weighted_clusters"), |resolver, weights, path| {
            resolver.weighted_clusters(path, weights)
        });
        Some(cluster?.or(weighted?))
    }

    /// Clusters by weight.
    fn weighted_clusters(
        &mut self,
        path: &Path<'_>,
        entries: &[raw::listener::WeightedCluster],
    ) -> Option<ClusterSpecifier> {
        let clusters = self.each(entries, path, |resolver, entry, path| {
            Some((resolver.cluster(&path.field("name"), &entry.name)?, entry.weight))
        });
        let sum: u64 = entries.iter().map(|entry| u64::from(entry.weight)).sum();
        if sum == 0 || sum > u64::from(u32::MAX) {
            self.error(path, format!("the weights sum to {sum}: the sum must be 1 to {}", u32::MAX));
            return None;
        }
        WeightedClusters::new(clusters?).map(ClusterSpecifier::Weighted)
    }
}

/// A limit that `0s` switches off.
fn limit(duration: Duration) -> Option<Duration> {
    (!duration.is_zero()).then_some(duration)
}
