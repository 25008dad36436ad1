//! Which page answers a request. Paths and parameters are Envoy's (operations/admin).
//!
//! Before: [`super::serve`]. After: one module a page.

use std::fmt::Display;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode};
use http_body::Body;

use super::query::Query;
use super::reply::{self, Reply};
use super::{Site, State, clusters, cni, dump, info, listeners, pods, routes, stats, trace};
use crate::telemetry::{log, prometheus};
use crate::worker;

/// What a page may be asked with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Change,
}

/// All pages of the admin socket, for `/help` and for the 405s.
const PAGES: &[(&str, Access, &str)] = &[
    ("/clusters", Access::Read, "endpoints of all clusters (?format=json)"),
    ("/cni/add", Access::Change, "enrol a pod that is being made (a JSON object, from `waylay cni`)"),
    ("/cni/del", Access::Change, "let a pod go (a JSON object, from `waylay cni`)"),
    ("/config_dump", Access::Read, "the configuration as Envoy dumps it (?include_eds, ?resource=, ?name_regex=)"),
    ("/drain_listeners", Access::Change, "stop taking connections; those in flight finish"),
    ("/help", Access::Read, "this list"),
    ("/listeners", Access::Read, "names and addresses of all listeners (?format=json)"),
    ("/logging", Access::Change, "the level of the agent's log (?level=debug, or target=level,...)"),
    ("/pods", Access::Read, "the pods of this node, and whether they are enrolled (?format=json)"),
    ("/quitquitquit", Access::Change, "end the agent, as SIGTERM does"),
    ("/ready", Access::Read, "LIVE, or 503 and the state"),
    ("/reload", Access::Change, "load the configuration again"),
    ("/routes", Access::Read, "all rows of all route tables, in order, with their hits (?format=json)"),
    ("/server_info", Access::Read, "version, state, times"),
    ("/stats", Access::Read, "statistics (?filter=REGEX, ?usedonly, ?type=, ?format=text|json|prometheus)"),
    ("/stats/prometheus", Access::Read, "statistics for Prometheus (?filter=REGEX, ?usedonly)"),
    ("/trace", Access::Read, "decisions, requests and connections as they happen (?pid=, ?comm=, ?dst=)"),
];

/// Whether the agent should be started anew, which is another question than whether it takes connections.
const LIVENESS: &[&str] = &["/healthz/live", "/live"];

/// Answers `request` to one of the three listeners.
pub async fn answer<B>(site: Site, state: &Arc<State>, request: Request<B>) -> Reply
where
    B: Body<Data = Bytes, Error: Display>,
{
    match site {
        Site::Admin => admin(state, request).await,
        Site::Prometheus => only(&request, &["/metrics", "/stats/prometheus"], |query| prometheus_page(state, query)),
        Site::Readiness if LIVENESS.contains(&request.uri().path()) => only(&request, LIVENESS, |_| Ok(alive(state))),
        Site::Readiness => only(&request, &["/healthz/ready", "/ready"], |_| Ok(ready(state))),
    }
}

/// The pages of a listener that serves just one, at several paths.
fn only<B>(request: &Request<B>, paths: &[&str], page: impl FnOnce(&Query) -> Result<Reply, String>) -> Reply {
    if !paths.contains(&request.uri().path()) {
        return reply::not_found("Not found\n");
    }
    if !is_read(request.method()) {
        return reply::method_not_allowed("GET, HEAD");
    }
    page(&Query::of(request.uri())).unwrap_or_else(|error| reply::bad_request(&error))
}

fn is_read(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

async fn admin<B>(state: &Arc<State>, request: Request<B>) -> Reply
where
    B: Body<Data = Bytes, Error: Display>,
{
    let (head, body) = request.into_parts();
    let path = match head.uri.path() {
        "/" => "/help",
        path => path,
    };
    let Some((path, access, _)) = PAGES.iter().find(|(page, ..)| *page == path) else {
        return reply::not_found("Not found: see /help\n");
    };
    match access {
        Access::Read if !is_read(&head.method) => return reply::method_not_allowed("GET, HEAD"),
        Access::Change if head.method != Method::POST => return reply::method_not_allowed("POST"),
        _ => {}
    }
    let query = Query::of(&head.uri);
    let page = match *path {
        "/clusters" => clusters::page(&state.shared.snapshot.load(), &query),
        "/cni/add" => cni::add(state, body).await,
        "/cni/del" => cni::del(state, body).await,
        "/config_dump" => dump::page(state, &query),
        "/drain_listeners" => {
            state.control.drain_listeners();
            Ok(accepted())
        }
        "/listeners" => listeners::page(&state.shared.snapshot.load(), &query),
        "/logging" => logging(&query),
        "/pods" => pods::page(&state.shared.enrolments.load(), &query),
        "/quitquitquit" => {
            state.control.stop();
            Ok(accepted())
        }
        "/ready" => Ok(ready(state)),
        "/reload" => Ok(reload(state).await),
        "/routes" => routes::page(&state.shared.snapshot.load(), &query),
        "/server_info" => Ok(info::page(state)),
        "/stats" => stats::page(state, &query),
        "/stats/prometheus" => prometheus_page(state, &query),
        "/trace" => trace::page(state, &query),
        _ => Ok(help()),
    };
    page.unwrap_or_else(|error| reply::bad_request(&error))
}

fn help() -> Reply {
    let lines = PAGES.iter().map(|(path, access, help)| {
        let method = if *access == Access::Change { " (POST)" } else { "" };
        format!("  {path}{method}: {help}\n")
    });
    reply::text(StatusCode::OK, format!("admin commands are:\n{}", lines.collect::<String>()))
}

fn ready(state: &State) -> Reply {
    let live = state.shared.state() == worker::State::Live;
    let status = if live { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    reply::text(status, format!("{}\n", state.state_name()))
}

/// An agent that starts or drains is alive; one whose workers hang is not, and the kernel passes it by.
fn alive(state: &State) -> Reply {
    match state.shared.stalled_workers().as_slice() {
        [] => reply::text(StatusCode::OK, "ALIVE\n"),
        stalled => reply::text(StatusCode::SERVICE_UNAVAILABLE, format!("workers do not turn: {stalled:?}\n")),
    }
}

fn prometheus_page(state: &State, query: &Query) -> Result<Reply, String> {
    let text = prometheus::encode(&stats::samples(state, query)?);
    Ok(reply::with_type(StatusCode::OK, HeaderValue::from_static(prometheus::CONTENT_TYPE), text))
}

fn logging(query: &Query) -> Result<Reply, String> {
    if let Some(level) = query.value("level") {
        log::set_level(level).map_err(|error| error.to_string())?;
        tracing::info!(level, "log level changed");
    }
    let level = log::level().unwrap_or_else(|| "off".to_owned());
    Ok(reply::text(StatusCode::OK, format!("active log level: {level}\n")))
}

fn accepted() -> Reply {
    reply::text(StatusCode::OK, "OK\n")
}

async fn reload(state: &State) -> Reply {
    match state.control.reload().await {
        Ok(version) => reply::text(StatusCode::OK, format!("configuration version {version} is in force\n")),
        Err(errors) => reply::bad_request(errors.trim_end()),
    }
}
