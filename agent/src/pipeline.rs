//! The way of a connection. Read this first: all branching of the data path is here, the straight lines are in the
//! modules it calls.
//!
//! Before: [`crate::server`], whose workers accept. After: [`crate::tcp`] or [`crate::http`]. Whatever happens to a
//! connection on its way, it ends in exactly one [`ConnectionRecord`].

pub mod detect;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::net::TcpStream;

use crate::addr::{ClientAddr, OrigDstAddr};
use crate::drain::Open;
use crate::http::{self, ConnectionContext};
use crate::kernel::{Handover, Kernel, KernelError, Process};
use crate::listener::chain::ConnectionFacts;
use crate::listener::filter::Detected;
use crate::listener::filter::peek::rearm;
use crate::listener::{HandOff, Listener, NetworkFilter, TrafficDirection};
use crate::place::{Behalf, Place};
use crate::snapshot::Snapshot;
use crate::tcp::proxy::{Job, Proxying};
use crate::tcp::{self, reset_on_drop};
use crate::telemetry::ResponseFlags;
use crate::telemetry::metric::Active;
use crate::telemetry::record::{ConnectionInfo, ConnectionRecord, Recording};
use crate::telemetry::stats::{ListenerStats, PodStats};
use crate::worker::Worker;
use crate::workload::Workload;

use detect::{Detection, Readiness};

/// How long the connection manager may take to end by itself once everything has to close.
const HTTP_CLOSE_GRACE: Duration = Duration::from_millis(200);

/// A connection that a worker accepted.
#[derive(Debug)]
pub struct Accepted {
    /// The accepted socket.
    pub stream: TcpStream,
    /// Its peer.
    pub client: ClientAddr,
    /// Its own address.
    pub local: SocketAddr,
    /// Where that socket lives.
    pub place: Arc<Place>,
    /// The listener whose socket accepted it.
    pub listener: Arc<Listener>,
    /// The configuration it keeps for its life.
    pub snapshot: Arc<Snapshot>,
    /// Counts it as open.
    pub open: Open,
}

/// Why a connection was not served.
#[derive(Debug)]
struct Refusal {
    flags: ResponseFlags,
    details: String,
}

impl Refusal {
    fn new(flags: ResponseFlags, details: impl Into<String>) -> Self {
        Self { flags, details: details.into() }
    }

    fn note(self, record: &mut ConnectionRecord) {
        record.flags.insert(self.flags);
        record.details = Some(self.details);
    }
}

/// Serves one connection, from accept to close.
///
/// Its memory is that of a connection which is only open, so what it takes to get there is in memory of its own, and given
/// back. That begins with what it is given: a future keeps room for it to its end.
pub fn serve(accepted: Accepted, worker: Rc<Worker>) -> impl Future<Output = ()> {
    serve_boxed(Box::new(accepted), worker)
}

async fn serve_boxed(accepted: Box<Accepted>, worker: Rc<Worker>) {
    let mut record = Recording::new(accepted.record(&worker), worker.shared.records.clone());
    let _total = Active::new(&worker.shared.runtime.stats.server.total_connections);
    let mut prepared = match Box::pin(prepare(accepted, &mut record, &worker)).await {
        Ok(prepared) => prepared,
        Err(refusal) => return refusal.note(&mut record),
    };
    // By reference: what is moved out of a value is kept twice as long as the task waits.
    let stats = &prepared.counted.listener.stats;
    match &mut prepared.job {
        ConnectionJob::Tcp(proxying) => proxying.run(stats, &mut record, &worker).await,
        ConnectionJob::Http(serving) => {
            if let Err(refusal) = http(serving, stats, &mut record, &worker).await {
                refusal.note(&mut record);
            }
        }
        ConnectionJob::Over => {}
    }
}

/// A connection of which is known what serves it. Dropped in this order: it is open until its sockets are closed.
struct Prepared {
    job: ConnectionJob,
    counted: Counted,
    _open: Open,
}

/// What serves it.
enum ConnectionJob {
    /// The TCP proxy, connected to an endpoint.
    Tcp(Proxying),
    /// The connection manager.
    Http(http::connection::Serving),
    /// Nobody any more: the record says why.
    Over,
}

/// From accept to where only bytes or requests are left to be handed on.
async fn prepare(
    accepted: Box<Accepted>,
    record: &mut Recording<ConnectionRecord>,
    worker: &Rc<Worker>,
) -> Result<Prepared, Refusal> {
    let mut behalf = accepted.behalf();
    let arrival = tokio::select! {
        biased;
        arrival = resolve(&accepted, worker) => arrival,
        reason = behalf.cut(&worker.shared.drain) => Err(Refusal::new(ResponseFlags::LOCAL_RESET, reason)),
    };
    match arrival {
        Ok(arrival) => {
            behalf.original_dst = arrival.original_dst;
            record.info.original_dst = arrival.original_dst;
            record.info.process = arrival.process;
            route(*accepted, behalf, record, worker).await
        }
        Err(refusal) => {
            reset_on_drop(&accepted.stream);
            Err(refusal)
        }
    }
}

/// How a connection came to the agent.
struct Arrival {
    /// Where it was going; `None` on a listener that is addressed directly.
    original_dst: Option<OrigDstAddr>,
    /// Who connected, when the kernel knows.
    process: Option<Arc<Process>>,
}

impl Accepted {
    /// What the kernel hands over with it.
    fn take_over(&self, kernel: &Kernel) -> Result<Option<Handover>, KernelError> {
        let netns_cookie = match self.place.id() {
            0 => kernel.netns_cookie(),
            other => other,
        };
        kernel.take_over(&self.stream, (self.client.socket(), self.local), netns_cookie)
    }

    fn behalf(&self) -> Behalf {
        Behalf { place: self.place.clone(), direction: self.listener.direction, original_dst: None }
    }

    /// Outbound, whoever owns the namespace connected. Inbound, it is whoever has the client's address on this node.
    fn source_pod(&self, worker: &Worker) -> Option<Arc<Workload>> {
        match self.listener.direction {
            TrafficDirection::Outbound => self.place.workload(),
            TrafficDirection::Inbound => worker.shared.workloads.load().at(self.client.ip()).cloned(),
        }
    }

    fn record(&self, worker: &Worker) -> ConnectionRecord {
        ConnectionRecord {
            info: ConnectionInfo {
                connection_id: worker.shared.connection_id(),
                client: self.client,
                local: self.local,
                original_dst: None,
                direction: self.listener.direction,
                pod: self.place.workload(),
                source_pod: self.source_pod(worker),
                process: None,
                listener: Some(self.listener.name.clone()),
                filter_chain: None,
                server_name: None,
            },
            start: SystemTime::now(),
            dispatch: crate::listener::Dispatch::Agent,
            rtt: None,
            detected: None,
            server_first: false,
            cluster: None,
            endpoint: None,
            bytes_received: 0,
            bytes_sent: 0,
            requests: 0,
            flags: ResponseFlags::NONE,
            details: None,
            duration: Duration::ZERO,
        }
    }
}

/// Where the connection was going before the kernel took it.
async fn resolve(accepted: &Accepted, worker: &Worker) -> Result<Arrival, Refusal> {
    match (accepted.listener.direction, accepted.listener.hand_off) {
        (TrafficDirection::Inbound, _) => arrived(accepted, worker),
        (TrafficDirection::Outbound, HandOff::ByOriginalDst) => redirected(accepted, worker).await,
        (TrafficDirection::Outbound, HandOff::Stay) => Ok(Arrival { original_dst: None, process: None }),
    }
}

/// The kernel gave it to another listening socket than the one it was for, and left its addresses alone.
fn arrived(accepted: &Accepted, worker: &Worker) -> Result<Arrival, Refusal> {
    let local = crate::addr::canonical(accepted.local);
    if worker.shared.own_listeners.load().contains(local) {
        accepted.listener.stats.downstream_cx_no_original_dst.inc();
        return Err(Refusal::new(ResponseFlags::NONE, "it was for the agent itself: the kernel had not taken it"));
    }
    Ok(Arrival { original_dst: Some(OrigDstAddr::new(local)), process: None })
}

/// The kernel redirected it, and handed over where it was going.
async fn redirected(accepted: &Accepted, worker: &Worker) -> Result<Arrival, Refusal> {
    let stats = &accepted.listener.stats;
    let handover = match worker.shared.kernel_attached().await {
        Some(kernel) => accepted.take_over(kernel).unwrap_or_else(|error| {
            tracing::warn!(%error, client = %accepted.client, "reading the original destination");
            None
        }),
        None => None,
    };
    // Without one it did not come through the kernel: anybody could use the agent as an open proxy.
    let Some(handover) = handover else {
        stats.downstream_cx_no_original_dst.inc();
        return Err(Refusal::new(ResponseFlags::NONE, "no original destination: the kernel had not redirected it"));
    };
    if worker.shared.own_listeners.load().contains(crate::addr::canonical(handover.original_dst)) {
        stats.downstream_cx_self_connect.inc();
        let details = format!("{} is one of the agent's own listeners", handover.original_dst);
        return Err(Refusal::new(ResponseFlags::NONE, details));
    }
    let original_dst = Some(OrigDstAddr::new(handover.original_dst));
    Ok(Arrival { original_dst, process: Some(Arc::new(handover.process)) })
}

/// From the original destination to the network filter: listener, filter chain.
async fn route(
    accepted: Accepted,
    behalf: Behalf,
    record: &mut Recording<ConnectionRecord>,
    worker: &Rc<Worker>,
) -> Result<Prepared, Refusal> {
    let Accepted { stream, client, local, listener: accepting, snapshot, open, place: _ } = accepted;
    let destination = behalf.original_dst.unwrap_or_else(|| OrigDstAddr::new(local));
    let (listener, _) = snapshot.listeners.dispatch(&accepting, destination);
    record.info.listener = Some(listener.name.clone());
    let counted = Counted::new(listener, &behalf);

    let mut facts = ConnectionFacts::raw(destination, client);
    let Detection { findings, early, server_first, readiness } =
        match detected(&stream, listener, &facts, &behalf, worker).await {
            Ok(detection) => detection,
            Err(ended) => {
                reset_on_drop(&stream);
                return Err(Refusal::new(ended.flags(), ended.to_string()));
            }
        };
    let stream = match readiness {
        Readiness::Known => stream,
        Readiness::Forgotten => {
            rearm(stream).map_err(|error| Refusal::new(ResponseFlags::OVERLOAD, error.to_string()))?
        }
    };
    findings.apply(&mut facts);
    record.detected = findings.detected.map(Detected::name);
    record.server_first = server_first;
    record.info.server_name = findings.server_name.as_deref().map(Arc::from);

    let Some((chain, label)) = listener.chains.find_labelled(&facts) else {
        reset_on_drop(&stream);
        listener.stats.no_filter_chain_match.inc();
        return Err(Refusal::new(ResponseFlags::NO_ROUTE, "filter_chain_not_found"));
    };
    record.info.filter_chain = Some(label.clone());
    let job = match &chain.filter {
        NetworkFilter::Tcp(tcp) => {
            let early = early.filter(|early| early.serves(chain));
            let job = Job { tcp, behalf, early };
            tcp::proxy::begin(stream, job, record, worker).await.map_or(ConnectionJob::Over, ConnectionJob::Tcp)
        }
        NetworkFilter::Http(manager) => {
            drop(early);
            let manager = manager.clone();
            let context =
                ConnectionContext { info: record.info.clone(), behalf, snapshot, detected: findings.detected };
            ConnectionJob::Http(http::connection::Serving::new(stream, context, manager, worker.clone()))
        }
    };
    Ok(Prepared { job, counted, _open: open })
}

/// Looks at the first bytes, if anybody wants to. In memory of its own, which it gives back: the task lives on without it.
async fn detected(
    stream: &TcpStream,
    listener: &Listener,
    facts: &ConnectionFacts,
    behalf: &Behalf,
    worker: &Rc<Worker>,
) -> Result<Detection, detect::Ended> {
    if listener.listener_filters.is_empty() {
        return Ok(Detection::none());
    }
    Box::pin(detect::detect(stream, listener, facts, behalf, worker)).await
}

/// Hands the connection to the connection manager and takes over into the record how it ended.
async fn http(
    serving: &mut http::connection::Serving,
    stats: &ListenerStats,
    record: &mut ConnectionRecord,
    worker: &Rc<Worker>,
) -> Result<(), Refusal> {
    let behalf = serving.behalf().clone();
    let cut = async {
        let reason = behalf.cut(&worker.shared.drain).await;
        worker.timers.sleep(HTTP_CLOSE_GRACE).await;
        reason
    };
    let end = tokio::select! {
        end = serving.run() => end,
        reason = cut => return Err(Refusal::new(ResponseFlags::LOCAL_RESET, reason)),
    };
    stats.downstream_cx_rx_bytes_total.add(end.bytes_received);
    stats.downstream_cx_tx_bytes_total.add(end.bytes_sent);
    if let Some(pod) = behalf.stats() {
        pod.downstream_cx_rx_bytes_total.add(end.bytes_received);
        pod.downstream_cx_tx_bytes_total.add(end.bytes_sent);
    }
    record.bytes_received = end.bytes_received;
    record.bytes_sent = end.bytes_sent;
    record.requests = end.requests;
    record.flags.insert(end.flags);
    record.details = end.details;
    Ok(())
}

/// Counts a connection in the statistics of the listener that serves it, and of its pod, until it is dropped.
struct Counted {
    listener: Arc<Listener>,
    place: Arc<Place>,
    since: Instant,
}

impl Counted {
    fn new(listener: &Arc<Listener>, behalf: &Behalf) -> Self {
        let counted = Self { listener: listener.clone(), place: behalf.place.clone(), since: Instant::now() };
        listener.stats.downstream_cx_total.inc();
        listener.stats.downstream_cx_active.inc();
        if let Some(pod) = counted.pod() {
            pod.downstream_cx_total.inc();
            pod.downstream_cx_active.inc();
        }
        counted
    }

    fn pod(&self) -> Option<&PodStats> {
        self.place.traffic().map(|traffic| traffic.of(self.listener.direction))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(pod) = self.pod() {
            pod.downstream_cx_active.dec();
        }
        self.listener.stats.downstream_cx_active.dec();
        self.listener.stats.downstream_cx_length.observe(self.since.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<F: Future>(_: impl FnOnce(Accepted, Rc<Worker>) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_takes_little_memory() {
        // The task of every connection that is open, whatever it does at the moment.
        let bytes = size_of_future(serve);
        assert!(bytes <= 1024, "{bytes} bytes");
    }
}
