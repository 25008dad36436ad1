//! The live trace: what is going on right now, for whoever watches, and for nobody else.
//!
//! Before: the record sinks (finished connections and requests) and the kernel's decision ring. After: the admin
//! interface's `/trace`, one subscriber a watcher. A watcher that reads too slowly loses events and is told how many;
//! it never slows the data path down.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use serde::Serialize;
use tokio::sync::mpsc;

use super::escape::harden_json;
use super::json;
use super::record::Record;

/// Watchers at once. Each costs the data path one look at its filter for every record.
pub const SUBSCRIBERS_MAX: usize = 16;

/// Events that wait for one watcher: about a second of a busy agent, about 1 MiB.
pub const SUBSCRIBER_EVENTS: usize = 1024;

/// One decision of a connect hook or an inbound hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// When, as RFC 3339 in UTC.
    pub time: String,
    /// `outbound`: a process connects. `inbound`: a connection arrives.
    pub direction: &'static str,
    /// The network namespace in which it does.
    pub netns_cookie: u64,
    /// Who called connect; not known of what arrives.
    pub pid: Option<u32>,
    /// Its name.
    pub comm: Option<String>,
    /// Its user.
    pub uid: Option<u32>,
    /// Its cgroup.
    pub cgroup_id: Option<u64>,
    /// In whose network namespace, `namespace/name`, when it is enrolled.
    pub pod: Option<String>,
    /// Where a connection that arrives comes from.
    pub source: Option<std::net::SocketAddr>,
    /// Which pod that is, when it is one of this node.
    pub source_pod: Option<String>,
    /// Where it wanted to go.
    pub destination: std::net::SocketAddr,
    /// `redirected`, `passed` or `refused`.
    pub verdict: &'static str,
    /// Why: the name of the counter that counted it.
    pub reason: &'static str,
}

/// What a watcher wants to see; an empty filter lets everything through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceFilter {
    /// Only of this process.
    pub pid: Option<u32>,
    /// Only of processes with this name.
    pub comm: Option<String>,
    /// Only to these destinations.
    pub dst: Option<Destination>,
    /// Only of this pod, `namespace/name`, or from it.
    pub pod: Option<String>,
}

/// A destination as the filter names it: `10.0.0.0/8`, `10.0.0.1`, `10.0.0.1:80`, `[::1]:80` or `:80`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    net: Option<IpNet>,
    port: Option<u16>,
}

/// A destination that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no destination: expected ADDRESS, CIDR, ADDRESS:PORT or :PORT")]
pub struct DestinationError(String);

impl std::str::FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, DestinationError> {
        let error = || DestinationError(text.to_owned());
        if let Some(port) = text.strip_prefix(':').filter(|port| !port.contains(':')) {
            return Ok(Self { net: None, port: Some(port.parse().map_err(|_| error())?) });
        }
        if let Ok(address) = text.parse::<std::net::SocketAddr>() {
            return Ok(Self { net: Some(address.ip().into()), port: Some(address.port()) });
        }
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| error())?;
        Ok(Self { net: Some(net), port: None })
    }
}

impl Destination {
    fn covers(&self, address: std::net::SocketAddr) -> bool {
        self.port.is_none_or(|port| port == address.port())
            && self.net.is_none_or(|net| net.contains(&address.ip().to_canonical()))
    }
}

impl TraceFilter {
    fn admits_pod(&self, mut pods: impl Iterator<Item = String>) -> bool {
        self.pod.as_ref().is_none_or(|wanted| pods.any(|pod| pod == *wanted))
    }

    fn admits(&self, pid: Option<u32>, comm: Option<&str>, dst: Option<std::net::SocketAddr>) -> bool {
        self.pid.is_none_or(|wanted| pid == Some(wanted))
            && self.comm.as_deref().is_none_or(|wanted| comm == Some(wanted))
            && self.dst.is_none_or(|wanted| dst.is_some_and(|dst| wanted.covers(dst)))
    }
}

/// Hands events to watchers. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Trace(Arc<Hub>);

#[derive(Debug, Default)]
struct Hub {
    subscribers: ArcSwap<Vec<Arc<Subscriber>>>,
    /// Whether there are any: all that a record costs when there are none.
    watched: AtomicBool,
    /// Held while the list is replaced.
    changing: Mutex<()>,
}

#[derive(Debug)]
struct Subscriber {
    filter: TraceFilter,
    events: mpsc::Sender<String>,
    lost: AtomicU64,
}

/// One watcher's end; dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription {
    hub: Arc<Hub>,
    subscriber: Arc<Subscriber>,
    events: mpsc::Receiver<String>,
}

impl Trace {
    /// Whether anybody watches.
    pub fn is_watched(&self) -> bool {
        self.0.watched.load(Relaxed)
    }

    /// Watches from now on; `None` when there are too many watchers already.
    pub fn subscribe(&self, filter: TraceFilter) -> Option<Subscription> {
        let (sender, events) = mpsc::channel(SUBSCRIBER_EVENTS);
        let subscriber = Arc::new(Subscriber { filter, events: sender, lost: AtomicU64::new(0) });
        let _changing = self.0.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut subscribers = Vec::clone(&self.0.subscribers.load());
        if subscribers.len() >= SUBSCRIBERS_MAX {
            return None;
        }
        subscribers.push(subscriber.clone());
        self.0.watched.store(true, Relaxed);
        self.0.subscribers.store(Arc::new(subscribers));
        Some(Subscription { hub: self.0.clone(), subscriber, events })
    }

    /// Shows a finished connection or request.
    pub fn record(&self, record: &Record) {
        if !self.is_watched() {
            return;
        }
        let subscribers = self.0.subscribers.load();
        let info = match record {
            Record::Connection(connection) => &connection.info,
            Record::Request(request) => &*request.info,
        };
        let process = info.process.as_deref();
        let dst = info.original_dst.map_or(info.local, |dst| dst.socket());
        let (pid, comm) = (process.map(|process| process.pid), process.map(|process| process.comm.as_str()));
        let pods = || info.pod.iter().chain(&info.source_pod).map(ToString::to_string);
        let admitted = |filter: &TraceFilter| filter.admits(pid, comm, Some(dst)) && filter.admits_pod(pods());
        send(&subscribers, admitted, || json::object(record));
    }

    /// Shows a decision of the kernel side.
    pub fn decision(&self, decision: &Decision) {
        let subscribers = self.0.subscribers.load();
        let admitted = |filter: &TraceFilter| {
            filter.admits(decision.pid, decision.comm.as_deref(), Some(decision.destination))
                && filter.admits_pod(decision.pod.iter().chain(&decision.source_pod).cloned())
        };
        send(&subscribers, admitted, || line(&TaggedDecision { kind: "decision", decision }));
    }
}

fn send(subscribers: &[Arc<Subscriber>], admitted: impl Fn(&TraceFilter) -> bool, event: impl Fn() -> String) {
    let mut text = None;
    for subscriber in subscribers.iter().filter(|subscriber| admitted(&subscriber.filter)) {
        let text = text.get_or_insert_with(&event).clone();
        if subscriber.events.try_send(text).is_err() {
            subscriber.lost.fetch_add(1, Relaxed);
        }
    }
}

#[derive(Serialize)]
struct TaggedDecision<'a> {
    kind: &'static str,
    #[serde(flatten)]
    decision: &'a Decision,
}

#[derive(Serialize)]
struct Lost {
    kind: &'static str,
    events: u64,
}

fn line(event: &impl Serialize) -> String {
    // Strings and numbers only, which always serialise.
    harden_json(serde_json::to_string(event).unwrap_or_default())
}

impl Subscription {
    /// The next event as one JSON object; after a loss first `{"kind":"lost","events":N}`. `None` never comes while
    /// the agent lives.
    pub async fn next(&mut self) -> Option<String> {
        let lost = self.subscriber.lost.swap(0, Relaxed);
        if lost > 0 {
            return Some(line(&Lost { kind: "lost", events: lost }));
        }
        self.events.recv().await
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let _changing = self.hub.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut subscribers = Vec::clone(&self.hub.subscribers.load());
        subscribers.retain(|subscriber| !Arc::ptr_eq(subscriber, &self.subscriber));
        self.hub.watched.store(!subscribers.is_empty(), Relaxed);
        self.hub.subscribers.store(Arc::new(subscribers));
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    fn request() -> Record {
        Record::Request(Box::new(samples::request()))
    }

    #[test]
    fn a_destination_is_read_in_every_form() {
        let cases = [
            ("10.0.0.0/8", "10.0.0.9:8080", true),
            ("10.0.0.9", "10.0.0.9:1", true),
            ("10.0.0.9:8080", "10.0.0.9:8081", false),
            (":8080", "10.0.0.9:8080", true),
            ("[::1]:80", "[::1]:80", true),
            ("::1", "[::2]:80", false),
        ];
        for (filter, address, expected) in cases {
            let filter: Destination = filter.parse().expect(filter);
            assert_eq!(filter.covers(address.parse().expect(address)), expected, "{filter:?} {address}");
        }
        for bad in ["", ":", ":http", "host", "10.0.0.1:99999"] {
            assert!(bad.parse::<Destination>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_watcher_sees_what_its_filter_admits() {
        let trace = Trace::default();
        let mut curl = trace
            .subscribe(TraceFilter { comm: Some("curl".to_owned()), ..TraceFilter::default() })
            .expect("subscription");
        let mut other = trace.subscribe(TraceFilter { pid: Some(1), ..TraceFilter::default() }).expect("subscription");
        trace.record(&request());
        let event: serde_json::Value = serde_json::from_str(&curl.next().await.expect("event")).expect("JSON");
        assert_eq!((&event["kind"], &event["pid"]), (&"request".into(), &123.into()));
        assert!(other.events.try_recv().is_err());
        drop((curl, other));
        assert!(!trace.is_watched());
    }

    #[tokio::test]
    async fn a_slow_watcher_is_told_what_it_lost() {
        let trace = Trace::default();
        let mut slow = trace.subscribe(TraceFilter::default()).expect("subscription");
        for _ in 0..SUBSCRIBER_EVENTS + 3 {
            trace.record(&request());
        }
        assert_eq!(slow.next().await.as_deref(), Some(r#"{"kind":"lost","events":3}"#));
        assert!(slow.next().await.expect("event").contains(r#""kind":"request""#));
    }

    #[test]
    fn watchers_are_bounded() {
        let trace = Trace::default();
        let all: Vec<_> = (0..SUBSCRIBERS_MAX).map_while(|_| trace.subscribe(TraceFilter::default())).collect();
        assert_eq!(all.len(), SUBSCRIBERS_MAX);
        assert!(trace.subscribe(TraceFilter::default()).is_none());
    }
}
