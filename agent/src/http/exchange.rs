//! One request and its response: the record that is written when it ends, whatever way it ends, and the statistics.
//!
//! Made when the codec hands a request over; moves into the response's body; dropped when that is sent or given up.

use std::rc::Rc;
use std::time::{Duration, SystemTime};

use http::request::Parts;
use http::{HeaderMap, HeaderName, StatusCode, Version, header};
use tokio::time::Instant;

use crate::telemetry::ResponseFlags;
use crate::telemetry::kept::Text;
use crate::telemetry::record::{RequestRecord, Unwritten};

use super::connection::Connection;
use super::meter::Meter;
use super::refusal::Refusal;

/// See the module.
pub struct Exchange {
    /// The connection it came on.
    pub connection: Rc<Connection>,
    /// What moved.
    pub meter: Rc<Meter>,
    /// Written on drop.
    pub record: Unwritten,
    /// The client wants its answer in gRPC's form.
    pub grpc: bool,
    /// Whether HTTP/1 is spoken with the client.
    pub http1: bool,
    began: Instant,
    end: End,
}

/// How far it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Not to its end: if it is dropped now, the client is gone.
    Open,
    /// The response was handed to the codec in full.
    Complete,
    /// The response had to be cut off.
    Reset,
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<Text> {
    headers.get(name).map(Text::from)
}

/// `x-request-id`.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// `x-forwarded-for`.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

impl Exchange {
    /// Begins: the headers have arrived.
    pub fn begin(connection: &Rc<Connection>, head: &Parts) -> Self {
        let http1 = head.version < Version::HTTP_2;
        let stats = &connection.manager.stats;
        stats.downstream_rq_total.inc();
        stats.downstream_rq_active.inc();
        if http1 { &stats.downstream_rq_http1_total } else { &stats.downstream_rq_http2_total }.inc();
        if let Some(pod) = connection.behalf.stats() {
            pod.downstream_rq_total.inc();
        }
        connection.begin_request();
        let began = Instant::now();
        Self {
            record: Unwritten::new(new_record(connection, head, connection.worker.wall.at(began))),
            meter: Rc::new(Meter::new(began)),
            grpc: is_grpc(&head.headers),
            http1,
            began,
            end: End::Open,
            connection: connection.clone(),
        }
    }

    /// What the headers say now that they were completed, or that the request is refused.
    pub fn note_headers(&mut self, headers: &HeaderMap) {
        self.record.forwarded_for = text(headers, &X_FORWARDED_FOR);
        self.record.request_id = text(headers, &X_REQUEST_ID);
    }

    /// A refusal's part of the record.
    pub fn note_refusal(&mut self, refusal: &Refusal) {
        self.record.flags.insert(refusal.flags);
        self.record.details = refusal.details;
        if let Some(head) = &refusal.head {
            (self.record.method, self.record.path) = (head.0.as_str().into(), head.1.as_str().into());
        }
    }

    /// The response's status.
    pub fn note_status(&mut self, status: StatusCode) {
        self.record.status = status.as_u16();
    }

    /// The response was handed over in full.
    pub fn complete(&mut self) {
        self.end = End::Complete;
    }

    /// The response has to be cut off, for this reason.
    pub fn reset(&mut self, flags: ResponseFlags, details: &'static str) {
        self.end = End::Reset;
        self.record.flags.insert(flags);
        self.record.details = details;
    }

    /// The response is cut off on the wire. An HTTP/1.0 client takes an orderly close for the end of the response.
    pub fn cut_off(&self) {
        if self.record.protocol == "HTTP/1.0" {
            self.connection.cut_off();
        }
    }

    fn note_end(&mut self) {
        if self.end != End::Open {
            return;
        }
        let (flags, details) = if self.connection.is_closing() {
            (ResponseFlags::LOCAL_RESET, "drain_timeout")
        } else if self.connection.is_stalled() {
            self.connection.manager.stats.downstream_rq_idle_timeout.inc();
            (ResponseFlags::STREAM_IDLE_TIMEOUT, "stream_idle_timeout")
        } else {
            (ResponseFlags::DOWNSTREAM_TERMINATION, "downstream_remote_disconnect")
        };
        self.record.flags.insert(flags);
        self.record.details = details;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.note_end();
        self.record.bytes_received = self.meter.received.get();
        self.record.bytes_sent = self.meter.sent.get();
        let stats = &self.connection.manager.stats;
        let now = Instant::now();
        let duration = now.saturating_duration_since(self.began);
        stats.downstream_rq_active.dec();
        stats.downstream_rq_time.observe(duration);
        match self.end {
            End::Open => stats.downstream_rq_rx_reset.inc(),
            End::Reset => stats.downstream_rq_tx_reset.inc(),
            End::Complete => {}
        }
        match self.record.status / 100 {
            1 => stats.downstream_rq_1xx.inc(),
            2 => stats.downstream_rq_2xx.inc(),
            3 => stats.downstream_rq_3xx.inc(),
            4 => stats.downstream_rq_4xx.inc(),
            5 => stats.downstream_rq_5xx.inc(),
            _ => {}
        }
        if let Some(pod) = self.connection.behalf.stats() {
            pod.count_response(self.record.status);
        }
        self.record.write(&*self.connection.worker.shared.records, duration);
        self.connection.end_request(now);
    }
}

/// Whether `content-type` is gRPC's.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else { return false };
    kind.as_bytes().strip_prefix(b"application/grpc").is_some_and(|rest| rest.first().is_none_or(|next| *next == b'+'))
}

fn new_record(connection: &Connection, head: &Parts, start: SystemTime) -> RequestRecord {
    let host = head.uri.authority().map(Text::from);
    RequestRecord {
        info: connection.info.clone(),
        start,
        method: (&head.method).into(),
        path: head.uri.path_and_query().map(Text::from).unwrap_or_default(),
        protocol: match head.version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2",
            _ => "HTTP/1.1",
        },
        authority: host.or_else(|| text(&head.headers, &header::HOST)),
        user_agent: text(&head.headers, &header::USER_AGENT),
        forwarded_for: None,
        request_id: None,
        route_config: Some(connection.manager.route_config.name.clone()),
        virtual_host: None,
        route: None,
        route_name: None,
        cluster: None,
        endpoint: None,
        upstream_path: None,
        attempts: 0,
        status: 0,
        flags: ResponseFlags::NONE,
        details: "",
        bytes_received: 0,
        bytes_sent: 0,
        upstream_service_time: None,
        duration: Duration::ZERO,
    }
}
