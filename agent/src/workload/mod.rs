//! Workloads: pods, and containers that stand for themselves, as the node's container runtimes tell of them.
//!
//! Before: the runtimes' sockets. After: [`crate::server`], which enrols those that are selected, and records, traces and
//! routes, which name them.

pub mod cni;
pub mod cri;
pub mod docker;
#[cfg(test)]
mod fixture;
mod netns;
pub mod runtime;
pub mod select;
pub mod status;
pub mod watch;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

pub use netns::{NetnsError, netns_of};
pub use runtime::RuntimeAddress;
pub use select::{Decision, decide};
pub use watch::{Discovery, Found};

/// A pod or container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// Of the sandbox or container, as its runtime calls it.
    pub id: Arc<str>,
    /// Kubernetes' namespace; the runtime's name for containers that are no pods.
    pub namespace: Arc<str>,
    /// Within the namespace.
    pub name: Arc<str>,
    /// Kubernetes' uid; empty for containers that are no pods.
    pub uid: Arc<str>,
    /// Selected by.
    pub labels: BTreeMap<String, String>,
    /// Selected and tuned by; for containers that are no pods, the labels.
    pub annotations: BTreeMap<String, String>,
    /// In its own network namespace.
    pub ips: Vec<IpAddr>,
    /// Of its sandbox or first process, in the host's pid namespace.
    pub pid: Option<u32>,
    /// Where its network namespace is bound to.
    pub netns_path: Option<PathBuf>,
    /// Below the cgroup2 mount, when the runtime tells.
    pub cgroup: Option<PathBuf>,
    /// It has no network namespace of its own.
    pub host_network: bool,
}

impl Workload {
    /// The address by which `client` is known elsewhere: a connection that the kernel redirects within a pod comes from
    /// loopback, and would have had the pod's own address without that.
    pub fn address_of(client: IpAddr, pod: Option<&Self>) -> IpAddr {
        let Some(pod) = pod.filter(|_| client.is_loopback()) else { return client };
        let same_family = pod.ips.iter().find(|ip| ip.is_ipv4() == client.is_ipv4());
        same_family.or(pod.ips.first()).copied().unwrap_or(client)
    }
}

impl fmt::Display for Workload {
    /// `namespace/name`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Which workloads are enrolled: all that is given must hold; an empty one selects every workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// One of these; empty: any.
    pub namespaces: Vec<String>,
    /// All of these, with these values.
    pub labels: BTreeMap<String, String>,
    /// All of these, with these values.
    pub annotations: BTreeMap<String, String>,
}

impl Selector {
    /// Whether `workload` is selected.
    pub fn selects(&self, workload: &Workload) -> bool {
        (self.namespaces.is_empty() || self.namespaces.iter().any(|name| **name == *workload.namespace))
            && contains_all(&workload.labels, &self.labels)
            && contains_all(&workload.annotations, &self.annotations)
    }
}

/// `source_pod`: a condition on the workload that a connection comes from. All that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct WorkloadMatch {
    /// Exactly.
    pub namespace: Option<String>,
    /// Exactly, or all that begins so: `web-*`.
    pub name: Option<String>,
    /// All of these, with these values.
    pub labels: BTreeMap<String, String>,
}

impl WorkloadMatch {
    /// Whether `workload` fulfils it.
    pub fn matches(&self, workload: &Workload) -> bool {
        self.namespace.as_deref().is_none_or(|namespace| *namespace == *workload.namespace)
            && self.name.as_deref().is_none_or(|pattern| names(pattern, &workload.name))
            && contains_all(&workload.labels, &self.labels)
    }
}

impl WorkloadMatch {
    /// The first thing that `workload` lacks, for people; `None` when it lacks nothing.
    pub fn lacks(&self, workload: &Workload) -> Option<String> {
        if let Some(wanted) = &self.namespace
            && **wanted != *workload.namespace
        {
            return Some(format!("its namespace is {}, wants {wanted}", workload.namespace));
        }
        if let Some(wanted) = &self.name
            && !names(wanted, &workload.name)
        {
            return Some(format!("its name is {}, wants {wanted}", workload.name));
        }
        let (label, wanted) = self.labels.iter().find(|(key, value)| workload.labels.get(*key) != Some(*value))?;
        Some(match workload.labels.get(label) {
            Some(found) => format!("its label {label} is {found:?}, wants {wanted:?}"),
            None => format!("its label {label} is absent, wants {wanted:?}"),
        })
    }
}

impl fmt::Display for WorkloadMatch {
    /// `pod shop/web-* with app=web`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |part: &Option<String>| part.clone().unwrap_or_else(|| "*".to_owned());
        match (&self.namespace, &self.name) {
            (None, None) => f.write_str("any pod")?,
            (namespace, name) => write!(f, "pod {}/{}", part(namespace), part(name))?,
        }
        for (index, (label, value)) in self.labels.iter().enumerate() {
            write!(f, "{} {label}={value}", if index == 0 { " with" } else { "," })?;
        }
        Ok(())
    }
}

fn names(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |prefix| name.starts_with(prefix))
}

fn contains_all(all: &BTreeMap<String, String>, some: &BTreeMap<String, String>) -> bool {
    some.iter().all(|(key, value)| all.get(key) == Some(value))
}

/// The workloads of this node as the data path asks for them. Replaced as a whole.
#[derive(Debug, Default)]
pub struct Workloads {
    by_cookie: HashMap<u64, Arc<Workload>>,
    by_ip: HashMap<IpAddr, Arc<Workload>>,
}

impl Workloads {
    /// `all`: every workload that is known, with the cookie of its network namespace where that is known. An address
    /// that two of them have (on two bridges) names neither.
    pub fn new(all: impl IntoIterator<Item = (Arc<Workload>, Option<u64>)>) -> Self {
        let mut workloads = Self::default();
        let mut ambiguous = Vec::new();
        for (workload, cookie) in all {
            if let Some(cookie) = cookie {
                workloads.by_cookie.insert(cookie, workload.clone());
            }
            for &ip in workload.ips.iter().filter(|_| !workload.host_network) {
                let before = workloads.by_ip.insert(ip, workload.clone());
                if before.is_some_and(|before| !Arc::ptr_eq(&before, &workload)) {
                    ambiguous.push(ip);
                }
            }
        }
        for ip in ambiguous {
            workloads.by_ip.remove(&ip);
        }
        workloads
    }

    /// Whose network namespace it is.
    pub fn of_netns(&self, cookie: u64) -> Option<&Arc<Workload>> {
        self.by_cookie.get(&cookie)
    }

    /// Whose address it is.
    pub fn at(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.by_ip.get(&ip.to_canonical())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(name: &str, ip: &str, labels: &[(&str, &str)]) -> Arc<Workload> {
        let labels = labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let ips = vec![ip.parse().expect("address")];
        Arc::new(Workload { namespace: "shop".into(), name: name.into(), ips, labels, ..Workload::default() })
    }

    #[test]
    fn a_condition_holds_when_all_of_it_does() {
        let web = workload("web-1", "10.0.0.1", &[("app", "web")]);
        let condition = |namespace: Option<&str>, name: Option<&str>, labels: &[(&str, &str)]| WorkloadMatch {
            namespace: namespace.map(str::to_owned),
            name: name.map(str::to_owned),
            labels: labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        };
        for (condition, expected) in [
            (condition(None, None, &[]), true),
            (condition(Some("shop"), Some("web-*"), &[("app", "web")]), true),
            (condition(Some("bank"), Some("web-*"), &[]), false),
            (condition(None, Some("web"), &[]), false),
            (condition(None, Some("web-1"), &[]), true),
            (condition(None, None, &[("app", "db")]), false),
            (condition(None, None, &[("tier", "web")]), false),
        ] {
            assert_eq!(condition.matches(&web), expected, "{condition:?}");
            assert_eq!(condition.lacks(&web).is_none(), expected, "{condition:?}");
        }
    }

    #[test]
    fn an_address_of_two_workloads_names_neither() {
        let (a, b) = (workload("a", "10.0.0.1", &[]), workload("b", "10.0.0.1", &[]));
        let c = workload("c", "10.0.0.2", &[]);
        let workloads = Workloads::new([(a, Some(1)), (b, Some(2)), (c.clone(), None)]);
        assert_eq!(workloads.at("10.0.0.1".parse().expect("address")), None);
        assert_eq!(workloads.at("::ffff:10.0.0.2".parse().expect("address")), Some(&c));
        assert_eq!(workloads.of_netns(2).map(|workload| workload.to_string()), Some("shop/b".to_owned()));
    }
}
