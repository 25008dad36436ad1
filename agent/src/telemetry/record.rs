//! Access records: one for every connection and one for every request, each written exactly once, when its guard is
//! dropped, whatever way the connection or request ended.
//!
//! Before: the pipeline and the connection manager, which fill a record in. After: the sinks, which format it and the
//! live trace, which shows it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::addr::{ClientAddr, EndpointAddr, OrigDstAddr};
use crate::kernel::Process;
use crate::listener::{Dispatch, TrafficDirection};
use crate::snapshot::AccessLog;
use crate::workload::Workload;

use super::ResponseFlags;
use super::kept::Text;
use super::writer::OpenError;

/// What a connection and its requests have in common.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Unique in the life of the agent.
    pub connection_id: u64,
    /// The peer.
    pub client: ClientAddr,
    /// The accepted socket's own address.
    pub local: SocketAddr,
    /// Where the client wanted to go; `None` on a listener that is addressed directly.
    pub original_dst: Option<OrigDstAddr>,
    /// Seen from the workload.
    pub direction: TrafficDirection,
    /// In whose network namespace it was taken.
    pub pod: Option<Arc<Workload>>,
    /// Whom it comes from: outbound, the same as `pod`; inbound, the workload of this node with the client's address.
    pub source_pod: Option<Arc<Workload>>,
    /// Who connected, when the kernel knows.
    pub process: Option<Arc<Process>>,
    /// The listener that serves it.
    pub listener: Option<Arc<str>>,
    /// The chosen filter chain.
    pub filter_chain: Option<Arc<str>>,
    /// SNI.
    pub server_name: Option<Arc<str>>,
}

/// How one connection went.
#[derive(Clone, Debug)]
pub struct ConnectionRecord {
    /// Who, where to, and what served it.
    pub info: ConnectionInfo,
    /// When it was accepted.
    pub start: SystemTime,
    /// `tls`, `http/1.1`, `h2c`, ... or `None` when nothing was recognised.
    pub detected: Option<&'static str>,
    /// The endpoint spoke before the client did.
    pub server_first: bool,
    /// For a TCP proxy.
    pub cluster: Option<Arc<str>>,
    /// For a TCP proxy.
    pub endpoint: Option<EndpointAddr>,
    /// From the client, in bytes.
    pub bytes_received: u64,
    /// To the client, in bytes.
    pub bytes_sent: u64,
    /// Requests served; 0 for a TCP proxy.
    pub requests: u64,
    /// Why it ended, when not well.
    pub flags: ResponseFlags,
    /// Envoy's response code details, or a sentence.
    pub details: Option<String>,
    /// From accept to close; set when the record is finished.
    pub duration: Duration,
    /// Who sent it on.
    pub dispatch: Dispatch,
    /// To the endpoint and back, as the kernel smoothed it; `None` when the agent served it.
    pub rtt: Option<Duration>,
}

/// How one request went.
#[derive(Clone, Debug)]
pub struct RequestRecord {
    /// The connection it came on.
    pub info: Arc<ConnectionInfo>,
    /// When its headers had arrived.
    pub start: SystemTime,
    /// As received; empty when nothing could be parsed.
    pub method: Text,
    /// With query, as received.
    pub path: Text,
    /// `HTTP/1.0`, `HTTP/1.1`, `HTTP/2`.
    pub protocol: &'static str,
    /// As received (host or `:authority`).
    pub authority: Option<Text>,
    /// `user-agent`.
    pub user_agent: Option<Text>,
    /// `x-forwarded-for`.
    pub forwarded_for: Option<Text>,
    /// `x-request-id`.
    pub request_id: Option<Text>,
    /// Route configuration.
    pub route_config: Option<Arc<str>>,
    /// Virtual host.
    pub virtual_host: Option<Arc<str>>,
    /// The row that matched, by index.
    pub route: Option<usize>,
    /// The row's name.
    pub route_name: Option<Arc<str>>,
    /// The cluster it went to.
    pub cluster: Option<Arc<str>>,
    /// The endpoint that answered, or was tried last.
    pub endpoint: Option<EndpointAddr>,
    /// The path that was sent on, when it was rewritten.
    pub upstream_path: Option<String>,
    /// How many times it was tried; 0 when it never left the agent.
    pub attempts: u32,
    /// What the client got; 0 when it got nothing.
    pub status: u16,
    /// Why it ended, when not well.
    pub flags: ResponseFlags,
    /// Envoy's response code details.
    pub details: &'static str,
    /// Of the request's body.
    pub bytes_received: u64,
    /// Of the response's body.
    pub bytes_sent: u64,
    /// From sending the request to the response's headers.
    pub upstream_service_time: Option<Duration>,
    /// From the request's headers to the end of the response; set when the record is finished.
    pub duration: Duration,
}

/// Either kind, finished.
#[derive(Clone, Debug)]
pub enum Record {
    /// A connection that ended.
    Connection(Box<ConnectionRecord>),
    /// A request that ended.
    Request(Box<RequestRecord>),
}

/// Takes finished records. Must not block: it is called on the workers.
pub trait RecordSink: Send + Sync {
    /// Called once for each record.
    fn write(&self, record: Record);

    /// Opens the access logs of a new configuration, before it is published; what is returned changes to them. Called on
    /// the main thread.
    ///
    /// # Errors
    /// One of them cannot be opened.
    fn prepare_logs(&self, _logs: &[AccessLog]) -> Result<ReplaceLogs<'_>, OpenError> {
        Ok(Box::new(|| ()))
    }
}

/// Changes to access logs that are open already; dropped instead of called, it changes nothing.
pub type ReplaceLogs<'a> = Box<dyn FnOnce() + 'a>;

/// Ends in exactly one record: `T` is filled in through `DerefMut` and written on drop.
pub struct Recording<T: Recorded> {
    record: Option<Box<T>>,
    started: Instant,
    sink: Arc<dyn RecordSink>,
}

/// What [`Recording`] can hold.
pub trait Recorded: Sized {
    /// Sets the duration and wraps it up.
    fn finish(self: Box<Self>, duration: Duration) -> Record;
}

impl Recorded for ConnectionRecord {
    fn finish(mut self: Box<Self>, duration: Duration) -> Record {
        self.duration = duration;
        Record::Connection(self)
    }
}

impl<T: Recorded> Recording<T> {
    /// Begins to record.
    pub fn new(record: T, sink: Arc<dyn RecordSink>) -> Self {
        Self { record: Some(Box::new(record)), started: Instant::now(), sink }
    }

    /// Since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// The record of a request that is under way; whoever has it writes it at the end.
pub struct Unwritten(Option<Box<RequestRecord>>);

impl Unwritten {
    /// Of a request that began.
    pub fn new(record: RequestRecord) -> Self {
        Self(Some(Box::new(record)))
    }

    /// The request has ended. Only the first call writes.
    pub fn write(&mut self, sink: &dyn RecordSink, duration: Duration) {
        if let Some(mut record) = self.0.take() {
            record.duration = duration;
            sink.write(Record::Request(record));
        }
    }
}

impl std::ops::Deref for Unwritten {
    type Target = RequestRecord;

    fn deref(&self) -> &RequestRecord {
        self.0.as_deref().unwrap_or_else(|| unreachable!("taken only when the request has ended"))
    }
}

impl std::ops::DerefMut for Unwritten {
    fn deref_mut(&mut self) -> &mut RequestRecord {
        self.0.as_deref_mut().unwrap_or_else(|| unreachable!("taken only when the request has ended"))
    }
}

impl<T: Recorded> std::ops::Deref for Recording<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.record.as_deref().unwrap_or_else(|| unreachable!("taken only by drop"))
    }
}

impl<T: Recorded> std::ops::DerefMut for Recording<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.record.as_deref_mut().unwrap_or_else(|| unreachable!("taken only by drop"))
    }
}

impl<T: Recorded> Drop for Recording<T> {
    fn drop(&mut self) {
        if let Some(record) = self.record.take() {
            self.sink.write(record.finish(self.started.elapsed()));
        }
    }
}
