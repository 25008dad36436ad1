//! Every statistic at one moment, each with what it is about: what `/stats` and Prometheus print.
//!
//! Before: the registry and the endpoints of the snapshot. After: [`super::prometheus`] and the admin interface.
//! What is printed is bounded by the configuration; endpoints, of which DNS may bring many, by a limit of their own.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::addr::EndpointAddr;
use crate::listener::TrafficDirection;
use crate::snapshot::Snapshot;
use crate::workload::status::{EnrolmentState, EnrolmentStatus};

use super::metric::{HistogramValue, Metric};
use super::stats::{PodTraffic, Registry, RouteKey};

/// Endpoints of one cluster that are printed; how many were left out is a statistic itself.
pub const ENDPOINTS_PER_CLUSTER_MAX: usize = 1000;

/// Namespace and name of a pod, and the direction of its connections.
pub type PodKey = (Arc<str>, Arc<str>, TrafficDirection);

/// What a statistic is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The agent.
    Server,
    /// Questions to resolvers.
    Dns,
    /// The programs in the kernel.
    Kernel,
    /// Pods and containers in one state of enrolment.
    Pods(EnrolmentState),
    /// One direction of a pod.
    Pod(PodKey),
    /// A listener.
    Listener(Arc<str>),
    /// An HTTP connection manager, by `stat_prefix`.
    Http(Arc<str>),
    /// A row of a route table.
    Route(RouteKey),
    /// A cluster.
    Cluster(Arc<str>),
    /// An endpoint of a cluster.
    Endpoint(Arc<str>, EndpointAddr),
}

impl Scope {
    /// What Envoy's text form puts before the statistic's name, with a dot at the end.
    pub fn prefix(&self) -> String {
        match self {
            Self::Server => "server.".to_owned(),
            Self::Dns => "dns.".to_owned(),
            Self::Kernel => "kernel.".to_owned(),
            Self::Pods(state) => format!("pods.{}.", state.name()),
            Self::Pod((namespace, name, direction)) => format!("pod.{namespace}/{name}.{}.", direction.name()),
            Self::Listener(name) => format!("listener.{name}."),
            Self::Http(stat_prefix) => format!("http.{stat_prefix}."),
            Self::Route((config, host, row)) => format!("route.{config}.{host}.{row}."),
            Self::Cluster(name) => format!("cluster.{name}."),
            Self::Endpoint(cluster, address) => format!("cluster.{cluster}.endpoint.{address}."),
        }
    }

    /// The second word of a Prometheus name.
    pub fn family(&self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Dns => "dns",
            Self::Kernel => "kernel",
            Self::Pods(_) => "pods",
            Self::Pod(_) => "pod",
            Self::Listener(_) => "listener",
            Self::Http(_) => "http",
            Self::Route(_) => "route",
            Self::Cluster(_) => "cluster",
            Self::Endpoint(..) => "endpoint",
        }
    }

    /// Prometheus labels.
    pub fn labels(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Server | Self::Dns | Self::Kernel => Vec::new(),
            Self::Pods(state) => vec![("state", state.name().to_owned())],
            Self::Pod((namespace, name, direction)) => vec![
                ("namespace", namespace.to_string()),
                ("pod", name.to_string()),
                ("direction", direction.name().to_owned()),
            ],
            Self::Listener(name) => vec![("listener", name.to_string())],
            Self::Http(stat_prefix) => vec![("http_conn_manager_prefix", stat_prefix.to_string())],
            Self::Route((config, host, row)) => vec![
                ("route_config", config.to_string()),
                ("virtual_host", host.to_string()),
                ("route", row.to_string()),
            ],
            Self::Cluster(name) => vec![("cluster", name.to_string())],
            Self::Endpoint(cluster, address) => {
                vec![("cluster", cluster.to_string()), ("endpoint", address.to_string())]
            }
        }
    }
}

/// One statistic at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// What it is about.
    pub scope: Scope,
    /// Envoy's name for it, without prefix.
    pub name: &'static str,
    /// A sentence.
    pub help: &'static str,
    /// Its value.
    pub value: Value,
}

/// The value of a statistic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Only grows.
    Counter(u64),
    /// Goes up and down.
    Gauge(i64),
    /// A distribution of durations.
    Histogram(HistogramValue),
}

impl From<Metric<'_>> for Value {
    fn from(metric: Metric<'_>) -> Self {
        match metric {
            Metric::Counter(counter) => Self::Counter(counter.value()),
            Metric::Gauge(gauge) => Self::Gauge(gauge.value()),
            Metric::Histogram(histogram) => Self::Histogram(histogram.value()),
        }
    }
}

impl Value {
    /// Adds another one of the same kind. Histograms are not added: nothing that is has any.
    fn add(&mut self, other: Metric<'_>) {
        match (self, other) {
            (Self::Counter(sum), Metric::Counter(other)) => *sum = sum.saturating_add(other.value()),
            (Self::Gauge(sum), Metric::Gauge(other)) => *sum = sum.saturating_add(other.value()),
            _ => {}
        }
    }
}

impl Sample {
    /// The name in Envoy's text form.
    pub fn full_name(&self) -> String {
        self.scope.prefix() + self.name
    }

    /// Whether anything was ever recorded.
    pub fn is_used(&self) -> bool {
        match &self.value {
            Value::Counter(value) => *value != 0,
            Value::Gauge(value) => *value != 0,
            Value::Histogram(value) => value.count != 0,
        }
    }
}

/// One counter of the kernel side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelCounter {
    /// The reason that it counts.
    pub name: &'static str,
    /// A sentence.
    pub help: &'static str,
    /// Summed over all CPUs.
    pub value: u64,
}

/// All statistics of the agent now, grouped by scope.
pub fn collect(registry: &Registry, snapshot: &Snapshot, kernel: &[KernelCounter]) -> Vec<Sample> {
    let mut samples = Vec::new();
    registry.server.for_each(&mut into(&mut samples, &Scope::Server));
    if snapshot.dns.is_some() {
        registry.dns.for_each(&mut into(&mut samples, &Scope::Dns));
    }
    samples.extend(kernel.iter().map(|counter| Sample {
        scope: Scope::Kernel,
        name: counter.name,
        help: counter.help,
        value: Value::Counter(counter.value),
    }));
    for (name, stats) in registry.listeners() {
        stats.for_each(&mut into(&mut samples, &Scope::Listener(name)));
    }
    for (stat_prefix, stats) in registry.http_managers() {
        stats.for_each(&mut into(&mut samples, &Scope::Http(stat_prefix)));
    }
    for (key, stats) in registry.routes() {
        stats.for_each(&mut into(&mut samples, &Scope::Route(key)));
    }
    for (name, stats) in registry.clusters() {
        stats.for_each(&mut into(&mut samples, &Scope::Cluster(name)));
    }
    collect_endpoints(snapshot, &mut samples);
    samples
}

/// How many pods are in which state, and what went through those that are enrolled. Pods come and go by the thousand in
/// a node's life: those that are gone are not among them.
pub fn pods(enrolments: &[EnrolmentStatus]) -> Vec<Sample> {
    let mut samples: Vec<_> = states(enrolments).collect();
    collect_traffic(enrolments, &mut samples);
    samples
}

fn states(enrolments: &[EnrolmentStatus]) -> impl Iterator<Item = Sample> {
    EnrolmentState::ALL.into_iter().map(|state| {
        let known = enrolments.iter().filter(|pod| pod.state == state).count();
        Sample {
            scope: Scope::Pods(state),
            name: "known",
            help: "Pods and containers of this node in this state of enrolment",
            value: Value::Gauge(i64::try_from(known).unwrap_or(i64::MAX)),
        }
    })
}

/// A pod that replaces another may have its name before that is gone: the two are added up, because Prometheus refuses a
/// page on which the same name and labels stand twice.
fn collect_traffic(enrolments: &[EnrolmentStatus], samples: &mut Vec<Sample>) {
    let mut pods: BTreeMap<_, Vec<&PodTraffic>> = BTreeMap::new();
    for EnrolmentStatus { workload, traffic, .. } in enrolments {
        if let Some(traffic) = traffic {
            pods.entry((&workload.namespace, &workload.name)).or_default().push(traffic);
        }
    }
    for ((namespace, name), places) in pods {
        for direction in [TrafficDirection::Outbound, TrafficDirection::Inbound] {
            let scope = Scope::Pod((namespace.clone(), name.clone(), direction));
            let mut sums: Vec<Sample> = Vec::new();
            for traffic in &places {
                let mut at = 0;
                traffic.of(direction).for_each(&mut |name, help, metric| {
                    match sums.get_mut(at) {
                        Some(sum) => sum.value.add(metric),
                        None => sums.push(Sample { scope: scope.clone(), name, help, value: metric.into() }),
                    }
                    at += 1;
                });
            }
            samples.append(&mut sums);
        }
    }
}

fn collect_endpoints(snapshot: &Snapshot, samples: &mut Vec<Sample>) {
    for cluster in snapshot.clusters.values() {
        let endpoints = cluster.endpoints.load();
        let all = endpoints.all();
        for member in all.iter().take(ENDPOINTS_PER_CLUSTER_MAX) {
            let scope = Scope::Endpoint(cluster.name.clone(), member.endpoint.address);
            member.endpoint.stats.for_each(&mut into(samples, &scope));
        }
        let left_out = all.len().saturating_sub(ENDPOINTS_PER_CLUSTER_MAX);
        samples.push(Sample {
            scope: Scope::Cluster(cluster.name.clone()),
            name: "endpoints_not_exported",
            help: "Endpoints whose own statistics are left out, because there are too many",
            value: Value::Gauge(i64::try_from(left_out).unwrap_or(i64::MAX)),
        });
    }
}

fn into<'a>(samples: &'a mut Vec<Sample>, scope: &'a Scope) -> impl FnMut(&'static str, &'static str, Metric<'_>) + 'a {
    |name, help, metric| samples.push(Sample { scope: scope.clone(), name, help, value: metric.into() })
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::super::prometheus::encode;
    use super::*;
    use crate::workload::Workload;

    fn enrolment(name: &str, traffic: Option<PodTraffic>) -> EnrolmentStatus {
        EnrolmentStatus {
            workload: Arc::new(Workload { namespace: "shop".into(), name: name.into(), ..Workload::default() }),
            state: if traffic.is_some() { EnrolmentState::Enrolled } else { EnrolmentState::Skipped },
            reason: None,
            netns_cookie: None,
            since: SystemTime::UNIX_EPOCH,
            traffic: traffic.map(Arc::new),
        }
    }

    fn traffic(outbound: u64, status: u16) -> Option<PodTraffic> {
        let traffic = PodTraffic::default();
        traffic.outbound.downstream_cx_total.add(outbound);
        traffic.inbound.count_response(status);
        Some(traffic)
    }

    fn lines(enrolments: &[EnrolmentStatus]) -> Vec<String> {
        let text = encode(&pods(enrolments));
        let of_pods = text.lines().filter(|line| line.starts_with("waylay_pod_") && !line.ends_with(" 0"));
        of_pods.map(str::to_owned).collect()
    }

    #[test]
    fn only_pods_that_are_enrolled_have_statistics_by_name() {
        let both = [enrolment("we\"b", traffic(3, 404)), enrolment("db", None)];
        assert_eq!(
            lines(&both),
            [
                r#"waylay_pod_downstream_cx_total{namespace="shop",pod="we\"b",direction="outbound"} 3"#,
                r#"waylay_pod_downstream_rq_xx{namespace="shop",pod="we\"b",direction="inbound",response_code_class="4"} 1"#,
            ]
        );
        assert_eq!(lines(&both[1..]), [""; 0]);
    }

    #[test]
    fn two_pods_of_one_name_are_one_series() {
        let both = [enrolment("web-0", traffic(3, 200)), enrolment("web-0", traffic(4, 503))];
        assert_eq!(
            lines(&both)[0],
            r#"waylay_pod_downstream_cx_total{namespace="shop",pod="web-0",direction="outbound"} 7"#
        );
        let names: Vec<_> = pods(&both).iter().map(Sample::full_name).collect();
        let mut once = names.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), names.len(), "no series stands twice");
    }
}
