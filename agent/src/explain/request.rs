//! A request's way through the connection manager and the route table, by the data path's own checks and decisions.

use std::collections::BTreeMap;

use http::header::HOST;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Version};

use super::connection::Arrived;
use super::{Action, Explanation, Question, Row, Upstream, endpoint};
use crate::cluster::ClusterSpecifier;
use crate::http::HttpConnectionManager;
use crate::http::check::{Body, Checked, check};
use crate::http::headers;
use crate::http::request_id::RequestIds;
use crate::http::route::decide::{Decision, ForwardHost, Outcome, RequestFacts, decide_observed};
use crate::http::route::hash_policy::{Hashed, Source, Sticky};
use crate::http::route::matching::RequestView;
use crate::http::route::mismatch::Mismatch;
use crate::http::route::{RouteAction, VirtualHost};
use crate::snapshot::Snapshot;
use crate::telemetry::flags::ResponseFlags;

/// How each row that was looked at fared.
type Rows = Vec<(usize, Result<(), Mismatch>)>;

/// Follows the request of `question`.
pub(super) fn explain(
    snapshot: &Snapshot,
    question: &Question,
    arrived: &Arrived<'_>,
    manager: &HttpConnectionManager,
    answer: &mut Explanation,
) {
    if question.is_tls() {
        answer.flag(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR);
        answer.section(
            "http",
            "the connection is TLS, of which the agent sees no requests: it is no HTTP, and is closed (flag DPE). \
             A filter chain with tcp_proxy would pass it on",
        );
        return;
    }
    let Some(mut head) = head(question) else {
        answer.status = Some(StatusCode::BAD_REQUEST.as_u16());
        answer.section("request", "no valid request");
        return;
    };
    let checked = match check(manager, &mut head, Body::Absent) {
        Ok(checked) => checked,
        Err(refusal) => {
            answer.status = Some(refusal.status.as_u16());
            answer.flag(refusal.flags);
            answer.section("request", format!("refused with {}: {}", refusal.status, refusal.details));
            return;
        }
    };
    headers::forward(&mut head.headers, manager, arrived.client.ip(), || {
        RequestIds::default().next(|| question.random)
    });
    let facts = checked.facts(&head, question.random, question.source_pod.as_ref());
    answer.section("request", format!("{} {} at {}", facts.method, facts.path_and_query, facts.authority));
    let mut rows = Rows::new();
    let clusters = |name: &str| snapshot.clusters.get(name);
    let decision = decide_observed(&manager.route_config, &facts, &clusters, &mut rows);
    table(&decision, &facts, rows, answer);
    let sticky = sticky(question, arrived, manager, &decision, (&checked, &head));
    outcome(snapshot, question, arrived, (&decision, sticky.as_ref()), &checked, &head, answer);
}

/// What the row's hash policy makes of the request; `None` when it has none.
fn sticky(
    question: &Question,
    arrived: &Arrived<'_>,
    manager: &HttpConnectionManager,
    decision: &Decision<'_>,
    (checked, head): (&Checked, &Parts),
) -> Option<Sticky> {
    let Outcome::Forward { action, .. } = decision.outcome else { return None };
    let mut headers = head.headers.clone();
    let forwarded = decision.forward_head(checked.authority(), checked.path.as_str(), &mut headers);
    let path = forwarded.path_and_query.unwrap_or_else(|| checked.path.as_str().to_owned());
    if let ForwardHost::Rewritten(host) = forwarded.host {
        headers.insert(HOST, host);
    }
    let local = arrived.destination.map_or(arrived.listener.address, |destination| destination.socket());
    let pod = question.source_pod.as_ref();
    let source = Source::new(&headers, manager.use_remote_address, arrived.client, pod, local);
    let hashed = Hashed { method: &head.method, path: &path, headers: &headers };
    (!action.hash_policy.is_empty()).then(|| action.hash_policy.apply(&hashed, source))
}

/// The request's head as it arrives.
fn head(question: &Question) -> Option<Parts> {
    let authority = question.authority();
    let path = question.url.path_and_query();
    let mut builder = Request::builder().method(question.method.clone());
    builder = match question.is_h2c() {
        true => builder.version(Version::HTTP_2).uri(format!("http://{authority}{path}")),
        false => builder.uri(path),
    };
    let (mut head, ()) = builder.body(()).ok()?.into_parts();
    head.headers = question.headers.clone();
    if !question.is_h2c() && !head.headers.contains_key(HOST) {
        head.headers.insert(HOST, HeaderValue::from_str(&authority).ok()?);
    }
    Some(head)
}

/// The virtual host and its rows.
fn table(decision: &Decision<'_>, facts: &RequestFacts<'_>, mut rows: Rows, answer: &mut Explanation) {
    let config = decision.config;
    answer.section("route table", config.name.to_string());
    let host = config.host_of(facts.authority);
    let Some(virtual_host) = decision.virtual_host else {
        answer.section("virtual host", format!("none: no domain is {host}"));
        return;
    };
    answer.virtual_host = Some(virtual_host.name.to_string());
    let by = config.hosts.found_by(host).map(|by| format!(", by {by}")).unwrap_or_default();
    answer.section("virtual host", format!("{}{by}", virtual_host.name));
    answer.routes = all_rows(virtual_host, facts, &mut rows);
    for index in 0..answer.routes.len() {
        let row = &answer.routes[index];
        let mark = if row.matched { "=>" } else { "  " };
        let name = row.name.as_ref().map(|name| format!("{name}: ")).unwrap_or_default();
        let line = format!("{mark} {index}  {name}{}", row.reason);
        answer.section(if index == 0 { "rows" } else { "" }, line);
    }
}

fn all_rows(virtual_host: &VirtualHost, facts: &RequestFacts<'_>, seen: &mut Rows) -> Vec<Row> {
    let view = RequestView::new(facts);
    let mut seen = seen.drain(..);
    let row = |route: &crate::http::route::Route| {
        let (matched, reason) = match seen.next() {
            Some((_, Ok(()))) => (true, route.matches.because(&view)),
            Some((_, Err(why))) => (false, why.to_string()),
            None => (false, "not reached".to_owned()),
        };
        Row { index: route.index, name: route.name.as_ref().map(ToString::to_string), matched, reason }
    };
    virtual_host.routes.iter().map(row).collect()
}

fn outcome(
    snapshot: &Snapshot,
    question: &Question,
    arrived: &Arrived<'_>,
    (decision, sticky): (&Decision<'_>, Option<&Sticky>),
    checked: &Checked,
    head: &Parts,
    answer: &mut Explanation,
) {
    answer.route = decision.route.map(|route| route.index);
    match &decision.outcome {
        Outcome::NotFound => {
            answer.status = Some(StatusCode::NOT_FOUND.as_u16());
            answer.flag(ResponseFlags::NO_ROUTE);
            answer.section("action", "none: 404 Not Found (flag NR)");
        }
        Outcome::Redirect { status, location } => {
            answer.action = Action::Redirect;
            answer.status = Some(status.as_u16());
            answer.location = Some(location.clone());
            let why = if decision.route.is_none() { ", because of require_tls" } else { "" };
            answer.section("action", format!("redirect: {status}, location {location}{why}"));
        }
        Outcome::DirectResponse(response) => {
            answer.action = Action::DirectResponse;
            answer.status = Some(response.status.as_u16());
            let bytes = response.body.len();
            answer.section("action", format!("direct_response: {}, {bytes} bytes", response.status));
        }
        Outcome::Forward { action, cluster } => {
            answer.action = Action::Route;
            let section = answer.section("action", described(action));
            if let ClusterSpecifier::Weighted(weighted) = &action.cluster {
                section.details.extend(endpoint::weights(weighted, question.random));
            }
            let Some(cluster) = cluster else {
                answer.status = Some(action.cluster_not_found_response_code.as_u16());
                answer.flag(ResponseFlags::NO_CLUSTER);
                answer.section("cluster", "none: the header is absent or names no cluster (flag NC)");
                return;
            };
            if let Some(sticky) = sticky {
                let of: Vec<_> = action.hash_policy.0.iter().map(|rule| rule.on.to_string()).collect();
                let section = answer.hashed(sticky.hash, &of.join(", "));
                let cookies = sticky.cookies.iter().map(|cookie| String::from_utf8_lossy(cookie.as_bytes()));
                section.details.extend(cookies.map(|cookie| format!("made for the response: set-cookie: {cookie}")));
            }
            match answer.choose(snapshot, cluster, question, arrived, sticky.and_then(|sticky| sticky.hash)) {
                Some(choice) => send(decision, checked, head, choice.hostname.as_deref(), answer),
                None => answer.status = Some(StatusCode::SERVICE_UNAVAILABLE.as_u16()),
            }
        }
    }
}

fn described(action: &RouteAction) -> String {
    let to = match &action.cluster {
        ClusterSpecifier::Cluster(cluster) => format!("cluster {}", cluster.name),
        ClusterSpecifier::Weighted(_) => "one of the weighted_clusters".to_owned(),
        ClusterSpecifier::Header(name) => format!("the cluster that header {name} names"),
    };
    format!("route to {to}")
}

/// The request as the endpoint gets it.
fn send(decision: &Decision<'_>, checked: &Checked, head: &Parts, hostname: Option<&str>, answer: &mut Explanation) {
    let mut headers = head.headers.clone();
    let forwarded = decision.forward_head(checked.authority(), checked.path.as_str(), &mut headers);
    let path = forwarded.path_and_query.unwrap_or_else(|| checked.path.as_str().to_owned());
    if PathAndQuery::try_from(path.as_str()).is_err() {
        answer.status = Some(StatusCode::BAD_REQUEST.as_u16());
        answer.section("sent on", format!("nothing: the rewritten path {path:?} is none (400)"));
        return;
    }
    let host = match (&forwarded.host, hostname) {
        (ForwardHost::Rewritten(host), _) => String::from_utf8_lossy(host.as_bytes()).into_owned(),
        (ForwardHost::OfEndpoint, Some(hostname)) => {
            decision.keep_host(checked.authority(), &mut headers);
            hostname.to_owned()
        }
        (ForwardHost::OfEndpoint, None) | (ForwardHost::Unchanged, _) => checked.authority().to_owned(),
    };
    headers.remove(HOST);
    let upstream = Upstream { method: head.method.to_string(), path, host, headers: listed(&headers) };
    let section = answer.section("sent on", format!("{} {}", upstream.method, upstream.path));
    section.details.push(format!("host: {}", upstream.host));
    for (name, values) in &upstream.headers {
        section.details.extend(values.iter().map(|value| format!("{name}: {value}")));
    }
    answer.upstream = Some(upstream);
}

fn listed(headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
    let mut listed: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        listed.entry(name.to_string()).or_default().push(value);
    }
    listed
}
