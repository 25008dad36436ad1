//! `intercept.pods`: which pods are enrolled, and what is taken of them. And `source_pod`, wherever it stands.

use super::{Resolver, intercept};
use crate::config::diagnostic::Path;
use crate::config::raw::pods as raw;
use crate::snapshot::{PodPolicy, Pods};
use crate::workload::runtime::RuntimeAddress;
use crate::workload::{Selector, WorkloadMatch};

/// Resolves `intercept.pods`.
pub fn pods(resolver: &mut Resolver<'_>, raw: &raw::Pods, path: &Path<'_>) -> Option<Pods> {
    let runtimes =
        resolver.each(&raw.runtimes, &path.field("runtimes"), |resolver, text, path| runtime(resolver, text, path));
    let poll_interval = resolver.positive(&path.field("poll_interval"), raw.poll_interval);
    let select = path.field("select");
    if raw.select.is_empty() {
        resolver.warn(
            &select,
            "selects no pod: leave it out for those with waylay.io/inject: \"true\", or write [{}] for all",
        );
    }
    let select = resolver.each(&raw.select, &select, selector);
    let policies = resolver.each(&raw.policies, &path.field("policies"), pod_policy);
    Some(Pods { runtimes: runtimes?, poll_interval: poll_interval?, select: select?, policies: policies? })
}

fn runtime(resolver: &mut Resolver<'_>, text: &str, path: &Path<'_>) -> Option<RuntimeAddress> {
    resolver.check(path, text.parse::<RuntimeAddress>())
}

fn selector(resolver: &mut Resolver<'_>, raw: &raw::Selector, path: &Path<'_>) -> Option<Selector> {
    let list = path.field("namespaces");
    let namespaces = resolver.each(&raw.namespaces, &list, |resolver, name, path| namespace(resolver, name, path));
    Some(Selector { namespaces: namespaces?, labels: raw.labels.0.clone(), annotations: raw.annotations.0.clone() })
}

fn pod_policy(resolver: &mut Resolver<'_>, raw: &raw::PodPolicy, path: &Path<'_>) -> Option<PodPolicy> {
    let pod = source_pod(resolver, &raw.source_pod, &path.field("source_pod"));
    let outbound = resolver.maybe(raw.outbound.as_ref(), &path.field("outbound"), intercept::policy);
    let inbound = resolver.maybe(raw.inbound.as_ref(), &path.field("inbound"), intercept::policy);
    if raw.outbound.is_none() && raw.inbound.is_none() {
        resolver.error(path, "a row needs `outbound`, `inbound` or both: it changes nothing");
        return None;
    }
    Some(PodPolicy { source_pod: pod?, outbound: outbound?, inbound: inbound? })
}

/// Resolves a condition on a pod.
pub fn source_pod(resolver: &mut Resolver<'_>, raw: &raw::SourcePod, path: &Path<'_>) -> Option<WorkloadMatch> {
    let space = resolver.maybe(raw.namespace.as_ref(), &path.field("namespace"), |resolver, name, path| {
        namespace(resolver, name, path)
    });
    let name = resolver.maybe(raw.name.as_ref(), &path.field("name"), |resolver, name, path| {
        let stem = name.strip_suffix('*').unwrap_or(name);
        let message = if name.is_empty() {
            "must not be empty: leave it out for any name".to_owned()
        } else if stem.contains('*') {
            format!("`*` stands at the end only, as in web-*; found `{name}`")
        } else if name.contains('/') {
            format!("the name of a pod has no `/`: give the namespace as `namespace`; found `{name}`")
        } else {
            return Some(name.clone());
        };
        resolver.error(path, message);
        None
    });
    Some(WorkloadMatch { namespace: space?, name: name?, labels: raw.labels.0.clone() })
}

fn namespace(resolver: &mut Resolver<'_>, name: &str, path: &Path<'_>) -> Option<String> {
    if name.is_empty() || name.contains(['*', '/']) {
        resolver.error(path, format!("expected the whole name of a namespace, found `{name}`"));
        return None;
    }
    Some(name.to_owned())
}
