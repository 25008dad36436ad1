//! A request's way to an endpoint: tries, time-outs, retries, circuit breakers.
//!
//! Before: [`super::service`], which knows the cluster. After: an [`Answer`], or the [`Refusal`] that the client gets
//! instead. What is tried again is decided by [`super::retry`].

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode, header};

use crate::addr::EndpointAddr;
use crate::cluster::Cluster;
use crate::cluster::breaker::Permit;
use crate::cluster::endpoint::Endpoint;
use crate::cluster::select::{Affinity, select};
use crate::telemetry::ResponseFlags;

use super::exchange::Exchange;
use super::meter::{Clock, Expired};
use super::pool::Protocol;
use super::refusal::Refusal;
use super::request_body::Upload;
use super::retry::{RequestFacts, Tried, Verdict, after_failure, after_response, back_off};
use super::route::RetryPolicy;
use super::route::decide::Decision;
use super::route::hash_policy::Sticky;
use super::upstream::{Answer, Failure, FailureKind, Outgoing, send};

/// What is sent, and where.
pub struct Forward<'a> {
    /// Knows the policy and what becomes of the host.
    pub decision: Decision<'a>,
    /// Chosen by the route.
    pub cluster: &'a Arc<Cluster>,
    /// What is spoken with its endpoints.
    pub protocol: Protocol,
    /// The head.
    pub outgoing: Outgoing,
    /// The host is the endpoint's name, if it has one.
    pub host_of_endpoint: bool,
    /// The body.
    pub upload: Upload,
    /// What ties the request to an endpoint, where the route has a hash policy.
    pub sticky: Option<Box<Sticky>>,
}

impl Forward<'_> {
    fn retry_policy(&self) -> Option<&RetryPolicy> {
        self.decision.retry_policy().map(|policy| &**policy)
    }
}

/// Sends the request until an endpoint answers.
///
/// # Errors
/// What the client is told.
pub async fn forward(exchange: &mut Exchange, clock: &mut Clock, request: &Forward<'_>) -> Result<Answer, Refusal> {
    let raced = {
        let trying = pin!(try_until_answered(exchange, request));
        clock.race(trying).await
    };
    raced.unwrap_or_else(|expired| Err(expire(exchange, request.cluster, expired)))
}

fn expire(exchange: &Exchange, cluster: &Cluster, expired: Expired) -> Refusal {
    let stats = &exchange.connection.manager.stats;
    match expired {
        Expired::Route => {
            cluster.stats.upstream_rq_timeout.inc();
            let text = "upstream request timeout";
            Refusal::request(StatusCode::GATEWAY_TIMEOUT, "upstream_response_timeout", text)
                .flagged(ResponseFlags::UPSTREAM_REQUEST_TIMEOUT)
        }
        Expired::Idle => {
            stats.downstream_rq_idle_timeout.inc();
            let arrived = exchange.meter.has_arrived();
            let status = if arrived { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::REQUEST_TIMEOUT };
            Refusal::request(status, "stream_idle_timeout", "stream timeout")
                .flagged(ResponseFlags::STREAM_IDLE_TIMEOUT)
        }
        Expired::Request => {
            stats.downstream_rq_timeout.inc();
            Refusal::request(StatusCode::REQUEST_TIMEOUT, "request_overall_timeout", "request timeout")
        }
    }
}

async fn try_until_answered(exchange: &mut Exchange, request: &Forward<'_>) -> Result<Answer, Refusal> {
    let mut tries = Tries::default();
    loop {
        let endpoint = choose(exchange, request, &tries.in_vain)?;
        let result = try_once(exchange, request, &endpoint).await;
        // Judged in one step, so that no answer is kept while the next try is waited for.
        let pause = match tries.judge(exchange, request, endpoint.address, result) {
            Next::Done(result) => return result,
            Next::Try => continue,
            Next::TryAfter(pause) => pause,
        };
        exchange.connection.worker.timers.sleep(pause).await;
    }
}

/// The tries of one request.
#[derive(Default)]
struct Tries {
    tried: Tried,
    /// The endpoints that were tried in vain.
    in_vain: Vec<EndpointAddr>,
    /// Counts the try under way as a retry.
    retrying: Option<Permit>,
}

/// What comes after a try.
#[expect(clippy::large_enum_variant, reason = "taken apart at once, and kept by nobody")]
enum Next {
    Done(Result<Answer, Refusal>),
    Try,
    TryAfter(Duration),
}

impl Tries {
    fn judge(
        &mut self,
        exchange: &mut Exchange,
        request: &Forward<'_>,
        endpoint: EndpointAddr,
        result: Result<Answer, Failure>,
    ) -> Next {
        let cluster = request.cluster;
        let policy = request.retry_policy();
        self.retrying = None;
        match (self.verdict(request, endpoint, &result), policy) {
            (Verdict::Free, _) => {
                self.tried.replaced += u32::from(result.is_err_and(|failure| !is_connect(failure)));
                Next::Try
            }
            (Verdict::Retry, Some(policy)) => {
                self.retrying = cluster.try_retry();
                if self.retrying.is_none() {
                    return Next::Done(conclude(exchange, cluster, result, Verdict::Retry, self.tried));
                }
                if result.is_ok() {
                    self.in_vain.push(endpoint);
                }
                self.tried.retries += 1;
                cluster.stats.upstream_rq_retry.inc();
                release(result);
                Next::TryAfter(back_off(policy, self.tried.retries, exchange.connection.worker.random()))
            }
            (verdict, _) => Next::Done(conclude(exchange, cluster, result, verdict, self.tried)),
        }
    }

    fn verdict(&mut self, request: &Forward<'_>, endpoint: EndpointAddr, result: &Result<Answer, Failure>) -> Verdict {
        let policy = request.retry_policy();
        let replayable = request.upload.is_replayable();
        match result {
            Ok(answer) => policy.map_or(Verdict::GiveUp, |policy| {
                let response = &answer.response;
                after_response(policy, replayable, response.status(), response.headers(), self.tried)
            }),
            Err(failure) => {
                self.in_vain.push(endpoint);
                self.tried.connects += u32::from(is_connect(*failure));
                let untried = untried(request.cluster, &self.in_vain);
                let facts = RequestFacts { method: &request.outgoing.method, replayable, untried };
                after_failure(policy, facts, *failure, self.tried)
            }
        }
    }
}

/// How many endpoints take traffic and are not among `tried`.
fn untried(cluster: &Cluster, tried: &[EndpointAddr]) -> usize {
    let endpoints = cluster.endpoints.load();
    endpoints.usable().iter().filter(|member| !tried.contains(&member.endpoint.address)).count()
}

fn is_connect(failure: Failure) -> bool {
    matches!(failure.kind, FailureKind::ConnectFailed | FailureKind::ConnectTimeout)
}

/// A response that is not passed on leaves its connection usable only if it is complete already.
fn release(result: Result<Answer, Failure>) {
    if let Ok(mut answer) = result
        && http_body::Body::is_end_stream(answer.response.body())
    {
        answer.ticket.finish(answer.response.body_mut());
    }
}

fn conclude(
    exchange: &mut Exchange,
    cluster: &Cluster,
    result: Result<Answer, Failure>,
    verdict: Verdict,
    tried: Tried,
) -> Result<Answer, Refusal> {
    match verdict {
        Verdict::Exhausted => {
            cluster.stats.upstream_rq_retry_limit_exceeded.inc();
            exchange.record.flags.insert(ResponseFlags::UPSTREAM_RETRY_LIMIT);
        }
        Verdict::Retry => exchange.record.flags.insert(ResponseFlags::UPSTREAM_OVERFLOW),
        Verdict::Free | Verdict::GiveUp => {
            if tried.retries > 0 && result.is_ok() {
                cluster.stats.upstream_rq_retry_success.inc();
            }
        }
    }
    result.map_err(|failure| explain(failure.kind, tried.retries > 0))
}

fn choose(exchange: &mut Exchange, request: &Forward<'_>, tried: &[EndpointAddr]) -> Result<Arc<Endpoint>, Refusal> {
    let connection = &exchange.connection;
    let hash = request.sticky.as_ref().and_then(|sticky| sticky.hash);
    let affinity = Affinity { original_dst: connection.info.original_dst, hash };
    let endpoint = select(&connection.worker, request.cluster, affinity, tried).map_err(|error| {
        tracing::debug!("{error}");
        Refusal::request(StatusCode::SERVICE_UNAVAILABLE, "no_healthy_upstream", "no healthy upstream")
            .flagged(ResponseFlags::NO_HEALTHY_UPSTREAM)
    })?;
    exchange.record.endpoint = Some(endpoint.address);
    exchange.record.attempts += 1;
    Ok(endpoint)
}

async fn try_once(exchange: &mut Exchange, request: &Forward<'_>, endpoint: &Arc<Endpoint>) -> Result<Answer, Failure> {
    let named = request.host_of_endpoint.then(|| {
        let mut outgoing = Box::new(request.outgoing.clone());
        name_endpoint(&mut outgoing, &request.decision, endpoint);
        outgoing
    });
    let outgoing = named.as_deref().unwrap_or(&request.outgoing);
    let connection = exchange.connection.clone();
    let (worker, behalf) = (&connection.worker, &connection.behalf);
    let body = request.upload.next();
    let sent = pin!(send(worker, behalf, request.cluster, endpoint, request.protocol, outgoing, body));
    let result = match request.retry_policy().and_then(|policy| policy.per_try_timeout) {
        None => sent.await,
        Some(limit) => worker.timers.timeout(limit, sent).await.unwrap_or_else(|| {
            request.cluster.stats.upstream_rq_per_try_timeout.inc();
            endpoint.stats.rq_timeout.inc();
            Err(FailureKind::PerTryTimeout.into())
        }),
    };
    exchange.record.upstream_service_time = result.as_ref().ok().map(|answer| answer.ticket.elapsed());
    result
}

/// `auto_host_rewrite`: the endpoint's name, with the port unless it is the default one.
fn name_endpoint(outgoing: &mut Outgoing, decision: &Decision<'_>, endpoint: &Endpoint) {
    let Some(name) = &endpoint.hostname else { return };
    let address: SocketAddr = endpoint.address.socket();
    let host = if address.port() == 80 { name.to_string() } else { format!("{name}:{}", address.port()) };
    let original = outgoing.headers.get(header::HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
    if let Ok(host) = HeaderValue::from_str(&host) {
        decision.keep_host(original.as_deref().unwrap_or_default(), &mut outgoing.headers);
        outgoing.headers.insert(header::HOST, host);
    }
}

/// What the client is told about a failure.
fn explain(kind: FailureKind, retried: bool) -> Refusal {
    use FailureKind as Kind;
    use ResponseFlags as Flags;
    let (flags, reason, details) = match kind {
        Kind::ConnectFailed => (
            Flags::UPSTREAM_CONNECTION_FAILURE,
            "remote connection failure",
            "upstream_reset_before_response_started{remote_connection_failure}",
        ),
        Kind::ConnectTimeout => (
            Flags::UPSTREAM_CONNECTION_FAILURE,
            "connection timeout",
            "upstream_reset_before_response_started{connection_timeout}",
        ),
        Kind::Overflow => (Flags::UPSTREAM_OVERFLOW, "overflow", "upstream_reset_before_response_started{overflow}"),
        Kind::NotSent | Kind::Terminated => (
            Flags::UPSTREAM_CONNECTION_TERMINATION,
            "connection termination",
            "upstream_reset_before_response_started{connection_termination}",
        ),
        Kind::RemoteReset => {
            (Flags::UPSTREAM_REMOTE_RESET, "remote reset", "upstream_reset_before_response_started{remote_reset}")
        }
        Kind::RefusedStream => (
            Flags::UPSTREAM_REMOTE_RESET,
            "remote refused stream reset",
            "upstream_reset_before_response_started{remote_refused_stream_reset}",
        ),
        Kind::Protocol => {
            (Flags::UPSTREAM_PROTOCOL_ERROR, "protocol error", "upstream_reset_before_response_started{protocol_error}")
        }
        Kind::PerTryTimeout => {
            let text = "upstream request timeout";
            return Refusal::request(StatusCode::GATEWAY_TIMEOUT, "upstream_per_try_timeout", text)
                .flagged(Flags::UPSTREAM_REQUEST_TIMEOUT);
        }
        // Whoever sees this answer is the client whose request could not be read to its end.
        Kind::Request => {
            return Refusal::request(StatusCode::BAD_REQUEST, "request_body_failed", "Bad Request").closing();
        }
    };
    let latest = if retried { "retried and the latest reset reason" } else { "reset reason" };
    let text = format!("upstream connect error or disconnect/reset before headers. {latest}: {reason}");
    let status = if kind == Kind::Protocol { StatusCode::BAD_GATEWAY } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut refusal = Refusal::request(status, details, text).flagged(flags);
    refusal.overloaded = kind == Kind::Overflow;
    refusal
}
