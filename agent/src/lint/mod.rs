//! What is valid and still cannot be meant: rows, virtual hosts, filter chains and listeners that nothing reaches.
//!
//! Before: a [`Snapshot`], so everything here is well-formed. After: `waylay check` and the log at load. Every warning is
//! proven with the data path's own matching code: there are no false ones.

mod beginnings;
mod chains;
mod health;
mod reachable;
mod shadow;
mod sticky;
#[cfg(test)]
mod tests;
mod unused;
mod values;

use serde::Serialize;

use crate::http::route::RouteConfig;
use crate::listener::dispatch::Listeners;
use crate::snapshot::Snapshot;

pub use shadow::covers;

/// Something that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The field it is about, as `route_configs[0].virtual_hosts[0].routes[2]`.
    pub path: String,
    /// The field that causes it.
    pub other: Option<String>,
    /// One or two sentences for people.
    pub message: String,
    /// What it is.
    pub kind: Kind,
}

/// What a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An earlier row takes all that the row matches.
    ShadowedRoute,
    /// No host name leads to the virtual host.
    UnreachableVirtualHost,
    /// No connection gets the filter chain.
    UnreachableFilterChain,
    /// A connection that a filter chain accepts gets none, because a more specific one was entered first.
    FilterChainTrap,
    /// As [`Self::FilterChainTrap`], but the default filter chain takes it.
    FilterChainDefault,
    /// There are too many filter chains to say of each whether it is in a [`Self::FilterChainTrap`].
    FilterChainsUndecided,
    /// No connection is handed to the virtual listener.
    UnreachableListener,
    /// No listener names the route configuration.
    UnusedRouteConfig,
    /// Nothing names the cluster.
    UnusedCluster,
    /// Health checks ask loopback in another network namespace than the one that connections go to.
    HealthCheckElsewhere,
    /// A hash policy, and no cluster that goes by it.
    HashPolicyIgnored,
    /// A cluster that goes by a hash, and no hash policy.
    HashPolicyMissing,
}

/// How much a [`Finding`] matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Something does not do what it says.
    Warning,
    /// Worth a look.
    Info,
}

impl Kind {
    /// How much it matters.
    pub fn severity(self) -> Severity {
        match self {
            Self::ShadowedRoute
            | Self::UnreachableVirtualHost
            | Self::UnreachableFilterChain
            | Self::FilterChainTrap
            | Self::UnreachableListener
            | Self::HealthCheckElsewhere
            | Self::HashPolicyIgnored
            | Self::HashPolicyMissing => Severity::Warning,
            Self::FilterChainDefault | Self::FilterChainsUndecided | Self::UnusedRouteConfig | Self::UnusedCluster => {
                Severity::Info
            }
        }
    }
}

/// All findings about `snapshot`, in the order in which things are written.
pub fn lint(snapshot: &Snapshot) -> Vec<Finding> {
    let mut findings = listeners(&snapshot.listeners);
    for config in snapshot.route_configs.values() {
        findings.extend(route_config(config));
    }
    findings.extend(unused::route_configs(snapshot));
    findings.extend(unused::clusters(snapshot));
    findings.extend(health::findings(snapshot));
    findings.extend(sticky::findings(snapshot));
    findings
}

fn listeners(listeners: &Listeners) -> Vec<Finding> {
    let mut findings = unused::listeners(listeners);
    for (index, listener) in listeners.iter().enumerate() {
        findings.extend(chains::findings(&format!("listeners[{index}]"), listeners, listener));
    }
    findings
}

fn route_config(config: &RouteConfig) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, virtual_host) in config.virtual_hosts.iter().enumerate() {
        let path = format!("{}.virtual_hosts[{index}]", config.field_path);
        findings.extend(unused::virtual_host(&path, config, virtual_host));
        findings.extend(shadow::shadowed(&path, &virtual_host.routes));
    }
    findings
}
