//! `/trace`: what happens, as it happens: one JSON object a line for each decision of the kernel side, each request and
//! each connection. And the pump that brings the kernel's decisions to whoever watches.
//!
//! The kernel records decisions only while somebody watches: the first watcher starts the pump, which ends with the last.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};

use super::State;
use super::query::Query;
use super::reply::{self, Reply};
use crate::kernel::{self, DecisionEvent, Verdict};
use crate::listener::TrafficDirection;
use crate::telemetry::export::KernelCounter;
use crate::telemetry::text::timestamp;
use crate::telemetry::trace::{Decision, TraceFilter};
use crate::worker::Shared;
use crate::workload::Workloads;

/// How often the ring is emptied: often enough that a decision is shown before its connection.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The page: goes on until the watcher hangs up.
pub fn page(state: &Arc<State>, query: &Query) -> Result<Reply, String> {
    let filter = TraceFilter {
        pid: query.parsed("pid")?,
        comm: query.value("comm").map(str::to_owned),
        dst: query.parsed("dst")?,
        pod: query.value("pod").map(str::to_owned),
    };
    let Some(subscription) = state.sinks.trace().subscribe(filter) else {
        return Ok(reply::text(StatusCode::SERVICE_UNAVAILABLE, "too many watchers\n"));
    };
    state.decisions.start(state);
    let lines = stream::unfold(subscription, |mut subscription| async move {
        let mut line = subscription.next().await?;
        line.push('\n');
        Some((Ok(Frame::data(Bytes::from(line))), subscription))
    });
    let content_type = HeaderValue::from_static("application/x-ndjson");
    Ok(reply::stream(StatusCode::OK, content_type, StreamBody::new(lines).boxed_unsync()))
}

/// The counters of the kernel side; none when nothing is intercepted.
pub fn kernel_counters(shared: &Shared) -> Vec<KernelCounter> {
    let Some(kernel) = shared.kernel() else { return Vec::new() };
    match kernel.counters() {
        Ok(counters) => counters
            .into_iter()
            .map(|(counter, value)| KernelCounter { name: counter.name(), help: counter.help(), value })
            .collect(),
        Err(error) => {
            tracing::warn!(%error, "the kernel's counters cannot be read");
            Vec::new()
        }
    }
}

/// Whether decisions are being brought over from the kernel.
#[derive(Debug, Default)]
pub struct DecisionPump(AtomicBool);

impl DecisionPump {
    /// Starts the pump when it does not run yet and there is a kernel side.
    fn start(&self, state: &Arc<State>) {
        let Some(kernel) = state.shared.kernel().cloned() else { return };
        if self.0.swap(true, SeqCst) {
            return;
        }
        let state = state.clone();
        tokio::spawn(async move {
            match kernel.trace() {
                Ok(ring) => pump(ring, &state).await,
                Err(error) => tracing::warn!(%error, "decisions of the kernel cannot be traced"),
            }
            state.decisions.0.store(false, SeqCst);
            // Somebody may have subscribed after the pump's last look and found it running.
            if state.sinks.trace().is_watched() {
                tokio::time::sleep(POLL_INTERVAL).await;
                state.decisions.start(&state);
            }
        });
    }
}

/// Brings decisions over for as long as anybody watches.
async fn pump(mut ring: kernel::Trace, state: &State) {
    let trace = state.sinks.trace();
    while trace.is_watched() {
        let clock = Clock::now();
        let workloads = state.shared.workloads.load();
        while let Some(event) = ring.next() {
            trace.decision(&decision(&event, &clock, &workloads));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Translates the kernel's monotonic nanoseconds into the time of day.
struct Clock {
    wall: SystemTime,
    monotonic: Duration,
}

impl Clock {
    fn now() -> Self {
        let monotonic = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let monotonic = Duration::try_from(monotonic).unwrap_or_default();
        Self { wall: SystemTime::now(), monotonic }
    }

    fn time_of_day(&self, monotonic: Duration) -> SystemTime {
        let age = self.monotonic.saturating_sub(monotonic);
        self.wall.checked_sub(age).unwrap_or(self.wall)
    }
}

fn decision(event: &DecisionEvent, clock: &Clock, workloads: &Workloads) -> Decision {
    let process = (event.direction == TrafficDirection::Outbound).then_some(&event.process);
    let pod = workloads.of_netns(event.process.netns_cookie);
    // What goes out of a pod comes from that pod.
    let source_pod = event.source.map_or(pod, |source| workloads.at(source.ip()));
    Decision {
        time: timestamp(clock.time_of_day(Duration::from_nanos(event.time_ns))),
        direction: event.direction.name(),
        netns_cookie: event.process.netns_cookie,
        pid: process.map(|process| process.pid),
        comm: process.map(|process| process.comm.clone()),
        uid: process.map(|process| process.uid),
        cgroup_id: process.map(|process| process.cgroup_id),
        pod: pod.map(ToString::to_string),
        source: event.source,
        source_pod: source_pod.map(ToString::to_string),
        destination: event.destination,
        verdict: match event.verdict {
            Verdict::Redirected => "redirected",
            Verdict::Dispatched => "dispatched",
            Verdict::Passed => "passed",
            Verdict::Refused => "refused",
        },
        reason: event.reason.name(),
    }
}
