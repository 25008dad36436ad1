//! The records and statistics of connections that the kernel dispatched.
//!
//! Before: the ring in which the kernel tells of their beginnings and ends. After: the same sinks and statistics as those of
//! connections that the agent serves. Each connection ends in exactly one record while the agent lives; one whose end the
//! kernel had no room to tell of, and one that is open when the agent ends, in a record that says so and has no bytes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::targets::{Target, Targets};
use crate::addr::{ClientAddr, EndpointAddr, OrigDstAddr};
use crate::cluster::endpoint::Endpoint;
use crate::kernel::dispatch::{ConnectionEvent, DispatchEvents, Ending, Moment, mark};
use crate::kernel::{KernelError, Process};
use crate::listener::{Dispatch, TrafficDirection};
use crate::telemetry::ResponseFlags;
use crate::telemetry::record::{ConnectionInfo, ConnectionRecord, Record};
use crate::telemetry::stats::{PodStats, PodTraffic};
use crate::worker::Shared;

/// Connections of which the kernel has told the beginning, by the cookies of their sockets.
pub(super) struct Connections {
    shared: Arc<Shared>,
    events: DispatchEvents,
    open: HashMap<u64, Open>,
    /// Ends that found no room, as counted when they were last asked for.
    untold_at: Option<std::time::Instant>,
}

/// One that is open.
struct Open {
    id: u64,
    begun: ConnectionEvent,
    belongs: Option<Belongs>,
    pod: Option<Arc<PodTraffic>>,
}

/// What it is counted for.
struct Belongs {
    target: Arc<Target>,
    endpoint: Arc<Endpoint>,
}

/// How it went, beside what its beginning tells.
struct End {
    duration: Duration,
    bytes: (u64, u64),
    rtt: Option<Duration>,
    flags: ResponseFlags,
    details: Option<String>,
}

/// How often connections are asked for whose end found no room in the ring: that is for a burst, and takes a call of the
/// kernel each time.
const UNTOLD_INTERVAL: Duration = Duration::from_secs(1);

impl Connections {
    pub fn new(shared: &Arc<Shared>, events: DispatchEvents) -> Self {
        Self { shared: shared.clone(), events, open: HashMap::new(), untold_at: None }
    }

    /// From now on there are connections to hear of.
    ///
    /// # Errors
    /// They cannot be heard of.
    pub fn listen(&mut self) -> Result<(), KernelError> {
        self.events.open()
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Takes in what was told since the last look; returns how many events that were.
    pub fn look(&mut self, targets: &Targets) -> usize {
        let clock = Clock::now();
        let mut told = 0;
        while let Some(event) = self.events.next() {
            told += 1;
            match event.moment() {
                Some(Moment::Opened) => {
                    let open = self.begin(event, targets);
                    self.open.insert(event.cookie, open);
                }
                Some(Moment::Closed) => {
                    let open = self.open.remove(&event.cookie).filter(|open| open.begun.target == event.target);
                    let open = open.unwrap_or_else(|| self.begin(event, targets));
                    self.close(open, &event, &clock);
                }
                None => tracing::debug!(event.moment, "a connection is at a moment that this build does not know"),
            }
        }
        if self.untold_at.is_none_or(|at| at.elapsed() >= UNTOLD_INTERVAL) && !self.open.is_empty() {
            self.untold_at = Some(std::time::Instant::now());
            for cookie in self.events.take_untold() {
                self.lose(cookie, "its end found no room in the kernel's ring: how it went is not known", &clock);
            }
        }
        told
    }

    /// Ends the records of all that are open.
    pub fn end(&mut self) {
        let clock = Clock::now();
        let cookies: Vec<u64> = self.open.keys().copied().collect();
        for cookie in cookies {
            self.lose(cookie, "the agent ended: the connection goes on without it", &clock);
        }
    }

    /// Counts a connection as open.
    fn begin(&self, begun: ConnectionEvent, targets: &Targets) -> Open {
        let belongs = targets.get(begun.target).map(|target| {
            let address = EndpointAddr::new(begun.endpoint.into());
            let on_demand = |cluster: &Arc<str>| self.shared.runtime.endpoints.on_demand(cluster);
            Belongs { target: target.clone(), endpoint: target.endpoint(address, on_demand) }
        });
        let enrolments = self.shared.enrolments.load();
        let of_pod = |cookie| enrolments.iter().find(|status| status.netns_cookie == Some(cookie));
        let pod = of_pod(begun.process.netns_cookie).and_then(|status| status.traffic.clone());
        let open = Open { id: self.shared.connection_id(), begun, belongs, pod };
        self.shared.runtime.stats.server.total_connections.inc();
        if let Some(Belongs { target, endpoint }) = &open.belongs {
            target.listener_stats.downstream_cx_total.inc();
            target.listener_stats.downstream_cx_active.inc();
            target.cluster_stats.upstream_cx_total.inc();
            target.cluster_stats.upstream_cx_active.inc();
            endpoint.stats.cx_total.inc();
            endpoint.stats.cx_active.inc();
        }
        if let Some(pod) = open.of_pod() {
            pod.downstream_cx_total.inc();
            pod.downstream_cx_active.inc();
        }
        open
    }

    fn close(&self, open: Open, event: &ConnectionEvent, clock: &Clock) {
        let begun = Duration::from_nanos(event.process.connect_time_ns);
        let (mut flags, mut details) = (ResponseFlags::NONE, None);
        match event.ending() {
            Some(Ending::Complete) | None => {}
            Some(Ending::NotConnected) => {
                flags = ResponseFlags::UPSTREAM_CONNECTION_FAILURE;
                details = Some(not_connected(event));
            }
            Some(Ending::Reset) => {
                flags = ResponseFlags::UPSTREAM_CONNECTION_TERMINATION;
                details = Some(cut_short(event).to_owned());
            }
        }
        let (from_client, to_client) = (event.bytes_from_client, event.bytes_to_client);
        if let Some(Belongs { target, endpoint }) = &open.belongs {
            let cluster = &target.cluster_stats;
            if event.established_ns != 0 {
                cluster
                    .upstream_cx_connect_time
                    .observe(Duration::from_nanos(event.established_ns).saturating_sub(begun));
            } else {
                cluster.upstream_cx_connect_fail.inc();
                endpoint.stats.cx_connect_fail.inc();
            }
            cluster.upstream_cx_tx_bytes_total.add(from_client);
            cluster.upstream_cx_rx_bytes_total.add(to_client);
            target.listener_stats.downstream_cx_rx_bytes_total.add(from_client);
            target.listener_stats.downstream_cx_tx_bytes_total.add(to_client);
        }
        if let Some(pod) = open.of_pod() {
            pod.downstream_cx_rx_bytes_total.add(from_client);
            pod.downstream_cx_tx_bytes_total.add(to_client);
        }
        let end = End {
            duration: Duration::from_nanos(event.time_ns).saturating_sub(begun),
            bytes: (from_client, to_client),
            rtt: (event.rtt_us > 0).then(|| Duration::from_micros(event.rtt_us.into())),
            flags,
            details,
        };
        self.finish(open, end, clock);
    }

    /// Ends what is open without its end.
    fn lose(&mut self, cookie: u64, why: &str, clock: &Clock) {
        if let Some(open) = self.open.remove(&cookie) {
            let begun = Duration::from_nanos(open.begun.process.connect_time_ns);
            let end = End {
                duration: clock.monotonic.saturating_sub(begun),
                bytes: (0, 0),
                rtt: None,
                flags: ResponseFlags::NONE,
                details: Some(why.to_owned()),
            };
            self.finish(open, end, clock);
        }
    }

    fn finish(&self, open: Open, end: End, clock: &Clock) {
        self.shared.runtime.stats.server.total_connections.dec();
        if let Some(Belongs { target, endpoint }) = &open.belongs {
            target.listener_stats.downstream_cx_active.dec();
            target.listener_stats.downstream_cx_length.observe(end.duration);
            target.cluster_stats.upstream_cx_active.dec();
            endpoint.stats.cx_active.dec();
        }
        if let Some(pod) = open.of_pod() {
            pod.downstream_cx_active.dec();
        }
        let record = self.record(open, end, clock);
        self.shared.records.write(Record::Connection(Box::new(record)));
    }

    fn record(&self, open: Open, end: End, clock: &Clock) -> ConnectionRecord {
        let Open { id, begun, belongs, .. } = open;
        let process = begun.process;
        let pod = self.shared.workloads.load().of_netns(process.netns_cookie).cloned();
        let target = belongs.as_ref().map(|belongs| &belongs.target);
        ConnectionRecord {
            info: ConnectionInfo {
                connection_id: id,
                client: ClientAddr::new(begun.client.into()),
                local: begun.original_dst.into(),
                original_dst: Some(OrigDstAddr::new(begun.original_dst.into())),
                direction: TrafficDirection::Outbound,
                source_pod: pod.clone(),
                pod,
                listener: target.map(|target| target.listener.clone()),
                filter_chain: target.map(|target| target.chain.clone()),
                server_name: None,
                process: Some(Arc::new(Process::from(process))),
            },
            start: clock.time_of_day(Duration::from_nanos(process.connect_time_ns)),
            detected: None,
            server_first: false,
            cluster: target.map(|target| target.cluster.clone()),
            endpoint: Some(EndpointAddr::new(begun.endpoint.into())),
            bytes_received: end.bytes.0,
            bytes_sent: end.bytes.1,
            requests: 0,
            flags: end.flags,
            details: end.details,
            duration: end.duration,
            dispatch: Dispatch::Kernel,
            rtt: end.rtt,
        }
    }
}

impl Open {
    fn of_pod(&self) -> Option<&PodStats> {
        self.pod.as_ref().map(|pod| pod.of(TrafficDirection::Outbound))
    }
}

/// Which error the application got, the kernel does not tell; how often it has asked, it does.
fn not_connected(event: &ConnectionEvent) -> String {
    let endpoint = EndpointAddr::new(event.endpoint.into());
    match event.retransmits {
        0 => format!("{endpoint} refused the connection, or is not to be reached, or the client gave up"),
        retransmits => format!("{endpoint} did not answer, asked {} times", retransmits.saturating_add(1)),
    }
}

fn cut_short(event: &ConnectionEvent) -> &'static str {
    if event.marks & mark::ENDPOINT_ENDED != 0 {
        return "the connection was reset after the endpoint had ended it";
    }
    "the client or the endpoint reset the connection"
}

/// Translates the kernel's monotonic time into the time of day.
struct Clock {
    wall: SystemTime,
    monotonic: Duration,
}

impl Clock {
    fn now() -> Self {
        let monotonic = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        Self { wall: SystemTime::now(), monotonic: Duration::try_from(monotonic).unwrap_or_default() }
    }

    fn time_of_day(&self, monotonic: Duration) -> SystemTime {
        self.wall.checked_sub(self.monotonic.saturating_sub(monotonic)).unwrap_or(self.wall)
    }
}
