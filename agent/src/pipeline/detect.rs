//! Protocol detection: runs the listener filters over the client's first bytes, and lets the endpoint decide when it
//! speaks before the client does.
//!
//! Before: the listener was found. After: the filter chain match. Server-speaks-first protocols (MySQL, SMTP, ...) would
//! wait for the timeout here, so a silent client makes the agent connect early for the chain that would be chosen if
//! nothing more became known; whoever speaks first decides.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::time::{sleep, sleep_until};

use crate::listener::chain::ConnectionFacts;
use crate::listener::filter::peek::{self, Peeked};
use crate::listener::filter::{Detected, Findings, Inspection, Step};
use crate::listener::{Listener, ListenerFilter, NetworkFilter, OnFiltersTimeout};
use crate::place::Behalf;
use crate::tcp::early::{Early, Heard};
use crate::telemetry::ResponseFlags;
use crate::telemetry::metric::Active;
use crate::telemetry::stats::ListenerStats;
use crate::worker::Worker;

/// A client that is silent for so long may be waiting for the server. The clients of a transparent proxy are on this
/// host: one that speaks first does so within a few turns of the scheduler (3 ms each at most) after `connect` returned,
/// while those that wait for the server pay this delay once for each connection.
const SILENCE_GRACE: Duration = Duration::from_millis(10);

/// How long a client may stay silent after the early connection has failed, when a word from it could still lead it
/// elsewhere. One that waits for a server learns after this time that there is none; without the agent it would have
/// known from `connect`. One that has a request to send has done so by then, and what opens connections in reserve
/// (browsers, connection pools) takes a connection that closes unused for what it is.
const FAILURE_GRACE: Duration = Duration::from_secs(1);

/// What detection brought.
#[derive(Debug)]
pub struct Detection {
    /// Of the listener filters.
    pub findings: Findings,
    /// The early connection, whoever decided; a failed one only if that decided.
    pub early: Option<Early>,
    /// The endpoint decided.
    pub server_first: bool,
    /// Whether the socket still announces the bytes that it holds.
    pub readiness: Readiness,
}

impl Detection {
    /// Nobody wanted to know anything.
    pub fn none() -> Self {
        Self { findings: Findings::default(), early: None, server_first: false, readiness: Readiness::Known }
    }
}

/// See [`peek`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It does.
    Known,
    /// The last peek waited in vain: the socket has to be armed again.
    Forgotten,
}

/// Why the connection ended before its protocol was known.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// Flag DC.
    #[error("client reset the connection during protocol detection")]
    Reset(#[source] std::io::Error),
    /// Flag DC.
    #[error("client closed the connection before it sent anything")]
    Closed,
    /// The listener does not go on after the timeout.
    #[error("listener filters timed out")]
    Timeout,
    /// The limit of a listener filter.
    #[error("{} reached its limit", .0.name())]
    TooLarge(ListenerFilter),
    /// The agent shuts down, or the workload is gone.
    #[error("{0}")]
    Cut(&'static str),
}

impl Ended {
    /// For the record.
    pub fn flags(&self) -> ResponseFlags {
        match self {
            Self::Reset(_) | Self::Closed => ResponseFlags::DOWNSTREAM_TERMINATION,
            Self::TooLarge(_) => ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR,
            Self::Timeout => ResponseFlags::NONE,
            Self::Cut(_) => ResponseFlags::LOCAL_RESET,
        }
    }
}

/// What ended detection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum DecidedBy {
    Filters,
    /// No more bytes will come, and the filters would need them.
    End {
        silent: bool,
    },
    Server,
    /// The endpoint cannot be connected to, and the client has nothing to say.
    Failure,
    Timeout,
}

impl DecidedBy {
    fn readiness(self) -> Readiness {
        match self {
            Self::Filters | Self::End { .. } => Readiness::Known,
            Self::Server | Self::Failure | Self::Timeout => Readiness::Forgotten,
        }
    }
}

/// Runs the listener filters of `listener` over `stream`. `facts` are those of a connection of which nothing is known.
pub async fn detect(
    stream: &TcpStream,
    listener: &Listener,
    facts: &ConnectionFacts,
    behalf: &Behalf,
    worker: &Rc<Worker>,
) -> Result<Detection, Ended> {
    let inspection = RefCell::new(Inspection::new(&listener.listener_filters));
    if inspection.borrow().is_decided() {
        return Ok(Detection::none());
    }
    let stats = &listener.stats;
    let _detecting = Active::new(&stats.downstream_pre_cx_active);
    let started = Instant::now();
    // Only a TCP proxy is raced for: an HTTP server never speaks first.
    let unknown = listener.chains.find(facts).filter(|chain| matches!(chain.filter, NetworkFilter::Tcp(_)));
    let spoke = Cell::new(false);
    let mut early: Option<Early> = None;
    let raced = {
        let mut client = std::pin::pin!(client_side(stream, &inspection, &spoke, worker));
        let mut grace = std::pin::pin!(sleep(SILENCE_GRACE));
        let mut timeout = std::pin::pin!(timeout(listener.listener_filters_timeout));
        let (mut waited, mut heard, mut give_up) = (false, false, None);
        loop {
            tokio::select! {
                biased;
                decided = &mut client => break decided,
                () = &mut grace, if !waited => {
                    waited = true;
                    if let (false, Some(chain)) = (spoke.get(), unknown) {
                        early = Early::begin(worker, listener, chain, behalf, facts.client);
                    }
                }
                spoken = hear(&mut early, worker), if !heard => match spoken {
                    Heard::Speech => break Ok(DecidedBy::Server),
                    Heard::Failure => {
                        heard = true;
                        give_up = early.as_ref().map(|early| Instant::now() + patience(early, listener));
                    }
                },
                () = until(give_up) => {
                    give_up = None;
                    if !spoke.get() {
                        break Ok(DecidedBy::Failure);
                    }
                }
                () = &mut timeout => break timed_out(listener),
                reason = behalf.cut(&worker.shared.drain) => break Err(Ended::Cut(reason)),
            }
        }
    };
    stats.detection_time.observe(started.elapsed());
    let findings = inspection.into_inner().findings().clone();
    match raced {
        // Nobody wants anything, unless the endpoint would have spoken to a client that has nothing to say.
        Ok(DecidedBy::End { silent: true }) if unknown.is_none() => Err(Ended::Closed),
        Ok(decided) => {
            let server_first = decided == DecidedBy::Server;
            count(stats, &findings, server_first);
            let readiness = decided.readiness();
            // The endpoint may be there by now; only a client that has waited in vain is told of the failure.
            let told = matches!(decided, DecidedBy::Server | DecidedBy::Failure);
            let early = early.filter(|early| told || !early.has_failed());
            Ok(Detection { findings, early, server_first, readiness })
        }
        Err(ended) => Err(ended),
    }
    .inspect_err(|ended| count_ended(stats, ended))
}

/// Feeds the listener filters with the client's bytes until they know.
async fn client_side(
    stream: &TcpStream,
    inspection: &RefCell<Inspection<'_>>,
    spoke: &Cell<bool>,
    worker: &Worker,
) -> Result<DecidedBy, Ended> {
    let mut seen = 0;
    loop {
        let look = |bytes: &[u8]| inspection.borrow_mut().look(bytes);
        match peek::beyond(stream, worker, seen, look).await.map_err(Ended::Reset)? {
            Peeked::More { look: Step::Decided, .. } => return Ok(DecidedBy::Filters),
            Peeked::More { look: Step::TooLarge(filter), .. } => return Err(Ended::TooLarge(filter)),
            Peeked::More { look: Step::NeedMore, bytes } => {
                spoke.set(true);
                seen = bytes;
            }
            Peeked::Ended => return Ok(DecidedBy::End { silent: seen == 0 }),
        }
    }
}

async fn hear(early: &mut Option<Early>, worker: &Worker) -> Heard {
    match early {
        Some(early) => early.heard(worker).await,
        None => pending().await,
    }
}

/// How long to wait for a silent client whose early connection has failed: not at all when nothing it could say would
/// lead it elsewhere.
fn patience(early: &Early, listener: &Listener) -> Duration {
    if early.serves_all(listener) { Duration::ZERO } else { FAILURE_GRACE }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment.into()).await,
        None => pending().await,
    }
}

async fn timeout(after: Option<Duration>) {
    match after {
        Some(after) => sleep(after).await,
        None => pending().await,
    }
}

fn timed_out(listener: &Listener) -> Result<DecidedBy, Ended> {
    listener.stats.downstream_pre_cx_timeout.inc();
    match listener.on_filters_timeout {
        OnFiltersTimeout::Continue => Ok(DecidedBy::Timeout),
        OnFiltersTimeout::Close => Err(Ended::Timeout),
    }
}

fn count(stats: &ListenerStats, findings: &Findings, server_first: bool) {
    match findings.detected {
        _ if server_first => stats.detection_server_first.inc(),
        Some(Detected::Tls) => stats.detection_tls.inc(),
        Some(Detected::Http10) => stats.detection_http10.inc(),
        Some(Detected::Http11) => stats.detection_http11.inc(),
        Some(Detected::H2c) => stats.detection_http2.inc(),
        None => stats.detection_opaque.inc(),
    }
}

fn count_ended(stats: &ListenerStats, ended: &Ended) {
    match ended {
        Ended::Reset(_) | Ended::Closed => stats.downstream_listener_filter_remote_close.inc(),
        Ended::TooLarge(ListenerFilter::TlsInspector) => stats.tls_client_hello_too_large.inc(),
        Ended::TooLarge(ListenerFilter::HttpInspector) => stats.downstream_listener_filter_error.inc(),
        // Counted when it happened.
        Ended::Timeout => {}
        Ended::Cut(_) => {}
    }
}
