//! What waylay promises, and what a run says of each promise.

use super::{
    results::{Results, metric},
    stats::Spread,
    work::Case,
};

/// A promise about one number, which is a ratio of one run unless its unit says otherwise.
#[derive(Debug)]
pub struct Target {
    pub work: &'static str,
    /// What over what.
    pub compared: &'static str,
    pub bound: Bound,
    pub unit: &'static str,
    measure: fn(&Results) -> Option<Spread>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    pub fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }

    pub fn shown(self, unit: &str) -> String {
        match self {
            Self::AtLeast(bound) => format!("≥ {bound:.2}{unit}"),
            Self::AtMost(bound) => format!("≤ {bound:.2}{unit}"),
        }
    }
}

impl Target {
    /// Why no run can measure it.
    pub fn absent(&self) -> Option<&'static str> {
        self.work.contains("shortcut").then_some("left out: docs/shortcut.md says why")
    }

    /// `None` where the run measured one side only.
    pub fn measured(&self, results: &Results) -> Option<Spread> {
        (self.measure)(results)
    }
}

/// docs/shortcut.md: it was built, measured and found unsafe for the programs whose sockets it would be on.
fn not_offered(_: &Results) -> Option<Spread> {
    None
}

const EXPLICIT: &str = "waylay";
const TRANSPARENT: &str = "waylay-transparent";
const KERNEL: &str = "waylay-kernel";

fn connect(results: &Results, way: &str) -> Option<Spread> {
    results.paired(metric::CONNECT_US, ("connect", way), ("connect", "direct"), |ours, direct| ours - direct)
}

fn ratio(results: &Results, case: Case, metric: &str, ours: &str, theirs: &str) -> Option<Spread> {
    results.ratio(&case.name(), metric, ours, theirs)
}

/// At the largest number over that at the smallest.
fn growth(results: &Results, of: &str, system: &str, combine: fn(f64, f64) -> f64) -> Option<Spread> {
    let (largest, smallest) = (format!("size-{of}-10000"), format!("size-{of}-10"));
    results.paired(metric::PROXY_US, (&largest, system), (&smallest, system), combine)
}

const fn target(
    work: &'static str,
    compared: &'static str,
    bound: Bound,
    unit: &'static str,
    measure: fn(&Results) -> Option<Spread>,
) -> Target {
    Target { work, compared, bound, unit, measure }
}

pub const TARGETS: &[Target] = &[
    target("one intercepted connect()", "over direct", Bound::AtMost(1.0), " µs", |r| connect(r, TRANSPARENT)),
    target("one connect() that passes through", "over direct", Bound::AtMost(0.3), " µs", |r| {
        connect(r, "waylay-passing")
    }),
    target("L4, `dispatch: kernel`, req/s", "of direct", Bound::AtLeast(0.98), "", |r| {
        ratio(r, Case::BytesKeepalive(32), metric::PER_SECOND, KERNEL, "direct")
    }),
    target("L4, `dispatch: kernel`, GB/s", "of direct", Bound::AtLeast(0.98), "", |r| {
        ratio(r, Case::Streams(1), metric::GB_PER_SECOND, KERNEL, "direct")
    }),
    target("L4, `dispatch: kernel`, connections/s", "of direct", Bound::AtLeast(0.93), "", |r| {
        ratio(r, Case::BytesNew(32), metric::PER_SECOND, KERNEL, "direct")
    }),
    target(
        "L4 through the agent, transparent, connections/s",
        "of HAProxy behind iptables",
        Bound::AtLeast(1.3),
        "",
        |r| ratio(r, Case::BytesNew(32), metric::PER_SECOND, TRANSPARENT, "haproxy-iptables"),
    ),
    target("L4 through the agent, transparent, connections/s", "of HAProxy explicit", Bound::AtLeast(1.1), "", |r| {
        ratio(r, Case::BytesNew(32), metric::PER_SECOND, TRANSPARENT, "haproxy")
    }),
    target("L4 bytes, 1 stream, GB/s", "of Envoy", Bound::AtLeast(1.0), "", |r| {
        ratio(r, Case::Streams(1), metric::GB_PER_SECOND, EXPLICIT, "envoy")
    }),
    target("L4 bytes, 4 streams, GB/s", "of Envoy", Bound::AtLeast(1.0), "", |r| {
        ratio(r, Case::Streams(4), metric::GB_PER_SECOND, EXPLICIT, "envoy")
    }),
    // 0.15 CPU s/GB where Envoy took 0.26.
    target("L4 bytes, 1 stream, CPU per GB", "of Envoy's", Bound::AtMost(0.58), "", |r| {
        ratio(r, Case::Streams(1), metric::PROXY_S_PER_GB, EXPLICIT, "envoy")
    }),
    target("L4 bytes, 1 stream, CPU per GB", "itself", Bound::AtMost(0.15), " s/GB", |r| {
        r.spread(&Case::Streams(1).name(), EXPLICIT, metric::PROXY_S_PER_GB)
    }),
    target("L4 bytes, 1 stream, shortcut, GB/s", "of Envoy", Bound::AtLeast(1.5), "", not_offered),
    target("HTTP/1.1 keepalive, 32 connections, CPU per request", "of nginx's", Bound::AtMost(1.0), "", |r| {
        ratio(r, Case::Keepalive(32), metric::PROXY_US, EXPLICIT, "nginx")
    }),
    target(
        "HTTP/1.1 keepalive, shortcut on the client's leg, req/s",
        "of HAProxy",
        Bound::AtLeast(1.15),
        "",
        not_offered,
    ),
    target("HTTP/1.1 keepalive, shortcut on both legs, req/s", "of HAProxy", Bound::AtLeast(1.6), "", not_offered),
    target("HTTP/1.1 new connection each, transparent, req/s", "of Pingora explicit", Bound::AtLeast(1.0), "", |r| {
        ratio(r, Case::New(32), metric::PER_SECOND, TRANSPARENT, "pingora")
    }),
    target("HTTP/2, 4 x 16, CPU per request", "of HAProxy's", Bound::AtMost(1.0), "", |r| {
        ratio(r, Case::Http2, metric::PROXY_US, EXPLICIT, "haproxy")
    }),
    target("latency at 4,000 req/s, p50", "of HAProxy's", Bound::AtMost(1.0), "", |r| {
        ratio(r, Case::Rate(4000), metric::P50_US, EXPLICIT, "haproxy")
    }),
    target("latency at 4,000 req/s, p99", "of HAProxy's", Bound::AtMost(1.0), "", |r| {
        ratio(r, Case::Rate(4000), metric::P99_US, EXPLICIT, "haproxy")
    }),
    target("memory per idle connection, L4", "itself", Bound::AtMost(3.0), " KB", |r| idle(r, "l4")),
    target("memory per idle connection, L7 keepalive", "itself", Bound::AtMost(4.0), " KB", |r| idle(r, "l7")),
    target("memory of the idle process", "itself", Bound::AtMost(12.0), " MB", |r| {
        r.spread("idle-process-l4", TRANSPARENT, metric::RSS_MB)
    }),
    target("10,000 virtual hosts against 10, CPU per request", "of that with 10", Bound::AtMost(1.05), "", |r| {
        growth(r, "hosts", EXPLICIT, |many, few| many / few)
    }),
    target("10,000 listeners against 10, CPU per connection", "of that with 10", Bound::AtMost(1.05), "", |r| {
        growth(r, "listeners", TRANSPARENT, |many, few| many / few)
    }),
    target("10,000 prefix rows of one host against 10", "over that with 10", Bound::AtMost(1.0), " µs", |r| {
        growth(r, "routes", EXPLICIT, |many, few| many - few)
    }),
];

/// With as many connections as were measured.
fn idle(results: &Results, kind: &str) -> Option<Spread> {
    let of = |count: u32| results.spread(&format!("idle-{kind}-{count}"), EXPLICIT, metric::KB_PER_CONNECTION);
    of(9000).or_else(|| of(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_holds_at_its_edge() {
        assert!(Bound::AtLeast(1.0).holds(1.0) && Bound::AtMost(1.0).holds(1.0));
        assert!(!Bound::AtLeast(1.0).holds(0.99) && !Bound::AtMost(1.0).holds(1.01));
        assert_eq!(Bound::AtMost(0.3).shown(" µs"), "≤ 0.30 µs");
    }

    #[test]
    fn a_promise_is_measured_where_both_sides_were() {
        let mut results = Results::default();
        let measured = |results: &Results| TARGETS.iter().filter_map(|target| target.measured(results)).count();
        assert_eq!(measured(&results), 0);
        results.push("connect", "direct", 0, &[(metric::CONNECT_US, 20.0)]);
        results.push("connect", TRANSPARENT, 0, &[(metric::CONNECT_US, 20.5)]);
        assert_eq!(measured(&results), 1);
        assert_eq!(TARGETS[0].measured(&results).map(|spread| spread.median), Some(0.5));
    }
}
