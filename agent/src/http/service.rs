//! One request, from the codec and back to it: the checks, the route, the answer.
//!
//! Before: the server codecs. After: [`super::router`] for what is sent on, [`super::reply`] for what the agent answers
//! itself. This is the function to read first: all branching of a request is here.

use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Response, StatusCode, Version};
use http_body::Body as _;

use crate::cluster::{Cluster, UpstreamProtocol};
use crate::telemetry::ResponseFlags;

use super::check::{self, Checked, check};
use super::codec_body::Downstream;
use super::connection::Connection;
use super::exchange::Exchange;
use super::headers;
use super::meter::Clock;
use super::pool::Protocol;
use super::refusal::{Afterwards, Refusal};
use super::reply::{refuse, refuse_as, respond};
use super::request_body::{Keep, Upload};
use super::response_body::ResponseBody;
use super::route::RouteAction;
use super::route::decide::{self, Decision, ForwardHost, Outcome};
use super::route::hash_policy::{HashPolicy, Hashed, Source, Sticky};
use super::router::{self, Forward};
use super::spare;
use super::tunnel::Tunnel;
use super::upstream::{Answer, Outgoing};

/// Serves one request. All that needs no waiting is done before the first of it: what waits should be small, because
/// every request in flight holds it.
pub async fn serve(connection: Rc<Connection>, head: Box<Parts>, body: Downstream) -> Response<ResponseBody> {
    let Ready { mut exchange, mut clock, forward } = match prepare(&connection, *head, body) {
        ControlFlow::Continue(ready) => ready,
        ControlFlow::Break(response) => return response,
    };
    let result = router::forward(&mut exchange, &mut clock, &forward).await;
    let Forward { decision, outgoing, upload, sticky, .. } = forward;
    spare::keep(outgoing.headers);
    match result {
        Ok(mut answer) => {
            for cookie in sticky.into_iter().flat_map(|sticky| sticky.cookies) {
                answer.response.headers_mut().append(header::SET_COOKIE, cookie);
            }
            respond_with(exchange, &decision, answer, clock, upload)
        }
        Err(refusal) => give_up(exchange, &decision, refusal),
    }
}

/// A request that is to be sent on.
struct Ready<'a> {
    exchange: Exchange,
    clock: Clock,
    forward: Forward<'a>,
}

/// Checks the request and routes it. Breaks with the response when the agent itself answers.
fn prepare(
    connection: &Rc<Connection>,
    mut head: Parts,
    body: Downstream,
) -> ControlFlow<Response<ResponseBody>, Ready<'_>> {
    let mut exchange = Exchange::begin(connection, &head);
    if body.is_end_stream() {
        exchange.meter.arrive_at_once();
    }
    let follows = if body.is_end_stream() { check::Body::Absent } else { check::Body::Follows };
    let checked = match check(&connection.manager, &mut head, follows) {
        Ok(checked) => checked,
        Err(refusal) => {
            exchange.note_headers(&head.headers);
            connection.note_refusal(&refusal);
            return ControlFlow::Break(refuse(exchange, refusal));
        }
    };
    let worker = &connection.worker;
    let id = || worker.request_ids.next(|| worker.random());
    headers::forward(&mut head.headers, &connection.manager, connection.info.client.ip(), id);
    exchange.note_headers(&head.headers);
    route(connection, exchange, head, body, checked)
}

/// Answers what never became a request, because its head did not pass. `head` stands in for it.
pub fn refused(connection: &Rc<Connection>, head: &Parts, refusal: Refusal) -> Response<ResponseBody> {
    let mut exchange = Exchange::begin(connection, head);
    exchange.meter.arrive_at_once();
    exchange.note_headers(&head.headers);
    connection.note_refusal(&refusal);
    refuse(exchange, refusal)
}

fn route(
    connection: &Rc<Connection>,
    mut exchange: Exchange,
    head: Parts,
    body: Downstream,
    checked: Checked,
) -> ControlFlow<Response<ResponseBody>, Ready<'_>> {
    let (manager, snapshot) = (&connection.manager, &connection.snapshot);
    let facts = checked.facts(&head, connection.worker.random(), connection.info.source_pod.as_deref());
    let decision = decide::decide(&manager.route_config, &facts, &|name| snapshot.clusters.get(name));
    note_decision(&mut exchange, &decision);
    let refusal = match &decision.outcome {
        Outcome::Forward { action, cluster: Some(cluster) } => {
            let (action, cluster) = (*action, *cluster);
            return forward(exchange, head, body, checked, decision, (action, cluster));
        }
        Outcome::Forward { action, cluster: None } => {
            manager.stats.no_cluster.inc();
            Refusal::request(action.cluster_not_found_response_code, "cluster_not_found", "")
                .flagged(ResponseFlags::NO_CLUSTER)
        }
        Outcome::NotFound => {
            manager.stats.no_route.inc();
            Refusal::request(StatusCode::NOT_FOUND, "route_not_found", "").flagged(ResponseFlags::NO_ROUTE)
        }
        Outcome::Redirect { status, location } => {
            manager.stats.rq_redirect.inc();
            return ControlFlow::Break(direct(exchange, &decision, *status, Bytes::new(), Some(location)));
        }
        Outcome::DirectResponse(response) => {
            manager.stats.rq_direct_response.inc();
            return ControlFlow::Break(direct(exchange, &decision, response.status, response.body.clone(), None));
        }
    };
    ControlFlow::Break(refuse_as(exchange, refusal, |headers| decision.mutate_response(headers)))
}

fn note_decision(exchange: &mut Exchange, decision: &Decision<'_>) {
    exchange.record.virtual_host = decision.virtual_host.map(|virtual_host| virtual_host.name.clone());
    if let Some(route) = decision.route {
        route.stats.rq_total.inc();
        exchange.record.route = Some(route.index);
        exchange.record.route_name.clone_from(&route.name);
    }
}

/// An answer that the route table holds.
fn direct(
    mut exchange: Exchange,
    decision: &Decision<'_>,
    status: StatusCode,
    body: Bytes,
    location: Option<&String>,
) -> Response<ResponseBody> {
    exchange.record.details = "direct_response";
    let mut headers = HeaderMap::new();
    if let Some(location) = location.and_then(|location| HeaderValue::from_str(location).ok()) {
        headers.insert(header::LOCATION, location);
    }
    decision.mutate_response(&mut headers);
    respond(exchange, status, headers, body, Afterwards::Keep)
}

/// What ties the request to an endpoint, as it is sent on.
fn stick(connection: &Connection, policy: &HashPolicy, head: &Parts, path: &PathAndQuery) -> Box<Sticky> {
    let (info, manager) = (&connection.info, &connection.manager);
    let local = info.original_dst.map_or(info.local, |destination| destination.socket());
    let pod = info.source_pod.as_deref();
    let source = Source::new(&head.headers, manager.use_remote_address, info.client, pod, local);
    Box::new(policy.apply(&Hashed { method: &head.method, path: path.as_str(), headers: &head.headers }, source))
}

fn forward<'a>(
    mut exchange: Exchange,
    mut head: Parts,
    body: Downstream,
    checked: Checked,
    decision: Decision<'a>,
    (action, cluster): (&RouteAction, &'a Arc<Cluster>),
) -> ControlFlow<Response<ResponseBody>, Ready<'a>> {
    exchange.record.cluster = Some(cluster.name.clone());
    let forwarded = decision.forward_head(checked.authority(), checked.path.as_str(), &mut head.headers);
    let mut path = checked.path;
    if let Some(rewritten) = forwarded.path_and_query {
        match PathAndQuery::try_from(rewritten.as_str()) {
            Ok(new) => path = new,
            Err(_) => {
                let refusal = Refusal::request(StatusCode::BAD_REQUEST, "path_normalization_failed", "");
                let response = refuse_as(exchange, refusal, |headers| decision.mutate_response(headers));
                return ControlFlow::Break(response);
            }
        }
        exchange.record.upstream_path = Some(rewritten);
    }
    if let ForwardHost::Rewritten(host) = &forwarded.host {
        head.headers.insert(header::HOST, host.clone());
    }
    headers::announce_empty_body(&head.method, body.is_end_stream(), &mut head.headers);
    let policy = &action.hash_policy;
    let sticky = (!policy.is_empty()).then(|| stick(&exchange.connection, policy, &head, &path));
    let keep = if decision.retry_policy().is_some() { Keep::Yes } else { Keep::No };
    let upload = Upload::new(body, exchange.meter.clone(), keep);
    let clock = clock(&exchange, action);
    let forward = Forward {
        decision,
        cluster,
        protocol: protocol(cluster, head.version, checked.upgrade.is_some()),
        outgoing: Outgoing { method: head.method, path, headers: head.headers, upgrade: checked.upgrade },
        host_of_endpoint: forwarded.host == ForwardHost::OfEndpoint,
        upload,
        sticky,
    };
    ControlFlow::Continue(Ready { exchange, clock, forward })
}

/// An upgraded connection has to be an HTTP/1 connection on both sides.
fn protocol(cluster: &Cluster, version: Version, upgrade: bool) -> Protocol {
    match cluster.protocol {
        UpstreamProtocol::Http1 => Protocol::Http1,
        _ if upgrade => Protocol::Http1,
        UpstreamProtocol::Http2 => Protocol::Http2,
        UpstreamProtocol::Downstream if version == Version::HTTP_2 => Protocol::Http2,
        UpstreamProtocol::Downstream => Protocol::Http1,
    }
}

fn clock(exchange: &Exchange, action: &RouteAction) -> Clock {
    let manager = &exchange.connection.manager;
    let mut clock = Clock::new(exchange.meter.clone(), &exchange.connection.worker.timers);
    clock.route = action.timeout;
    clock.idle = action.idle_timeout.unwrap_or(manager.stream_idle_timeout);
    clock.request = manager.request_timeout;
    exchange.connection.wait_for_reader(clock.idle);
    clock
}

/// The agent's own answer to a request that no endpoint answered.
fn give_up(exchange: Exchange, decision: &Decision<'_>, mut refusal: Refusal) -> Response<ResponseBody> {
    let connection = exchange.connection.clone();
    if exchange.meter.has_failed() && connection.wire.is_broken() {
        refusal = Refusal::protocol(StatusCode::BAD_REQUEST, "http1.codec_error", "Bad Request");
        connection.note_refusal(&refusal);
    } else if exchange.meter.has_failed() {
        refusal = refusal.flagged(ResponseFlags::DOWNSTREAM_TERMINATION);
        refusal.details = "downstream_remote_disconnect";
    }
    refuse_as(exchange, refusal, |headers| decision.mutate_response(headers))
}

fn respond_with(
    mut exchange: Exchange,
    decision: &Decision<'_>,
    answer: Answer,
    clock: Clock,
    upload: Upload,
) -> Response<ResponseBody> {
    let Answer { response, ticket } = answer;
    let (mut head, incoming) = response.into_parts();
    let switching = head.status == StatusCode::SWITCHING_PROTOCOLS;
    let upgrade = if switching { head.headers.get(header::UPGRADE).cloned() } else { None };
    headers::sanitize_response(&mut head.headers);
    let service_time_ms = exchange.record.upstream_service_time.unwrap_or_default().as_millis();
    headers::sign_response(&mut head.headers, &exchange.connection.manager, service_time_ms);
    decision.mutate_response(&mut head.headers);
    head.version = Version::HTTP_11;
    head.extensions.remove::<h2::ext::Protocol>();
    exchange.note_status(head.status);
    exchange.record.details = "via_upstream";
    let body = if switching {
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(upgrade) = upgrade {
            head.headers.insert(header::UPGRADE, upgrade);
        }
        let connection = exchange.connection.clone();
        if let Some(upgraded) = incoming.into_upgraded() {
            connection.prepare_tunnel(Tunnel { exchange, upgraded, ticket, idle: clock.idle });
        }
        ResponseBody::none()
    } else {
        ResponseBody::streamed(exchange, incoming, clock, ticket, upload)
    };
    Response::from_parts(head, body)
}
