//! One request's way through a route configuration. The data path and `explain` call the very same function.
//!
//! Before: a request's head that the connection manager has checked. After: an endpoint of the cluster decided on, or an
//! answer of the agent's own. Pure: the request's random number comes from outside.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::matching::{Observer, RequestView};
use super::redirect::forwarded_scheme;
use super::rows::RowIndex;
use super::vhost::without_port;
use super::{
    Action, DirectResponse, HeaderMutations, HostRewrite, RequireTls, RetryPolicy, Route, RouteAction, RouteConfig,
    VirtualHost,
};
use crate::cluster::{Cluster, ClusterSpecifier};
use crate::http::headers::number;
use crate::workload::Workload;

/// How long the endpoint's answer is awaited, in milliseconds.
const X_ENVOY_EXPECTED_RQ_TIMEOUT_MS: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
/// Where a rewritten path is kept.
const X_ENVOY_ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
/// Where a rewritten host is kept.
const X_ENVOY_ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");
/// Where a rewritten host is kept too, if the route asks for it.
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// What routing looks at.
#[derive(Clone, Copy, Debug)]
pub struct RequestFacts<'a> {
    /// The request's method.
    pub method: &'a Method,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Host or `:authority`, as received.
    pub authority: &'a str,
    /// Path with query, as sent by the client (after normalisation, where that is on). Empty for a CONNECT request that
    /// names none.
    pub path_and_query: &'a str,
    /// All request headers.
    pub headers: &'a HeaderMap,
    /// One random number for the whole request: runtime fractions and weights use the same.
    pub random: u64,
    /// Where the request comes from, when that is known.
    pub source_pod: Option<&'a Workload>,
}

/// What was decided.
#[derive(Debug)]
pub struct Decision<'a> {
    /// The route configuration that decided.
    pub config: &'a RouteConfig,
    /// `None`: no virtual host serves this host.
    pub virtual_host: Option<&'a VirtualHost>,
    /// The row that matched; `None`: 404, flag NR (or a redirect to https by `require_tls`).
    pub route: Option<&'a Route>,
    /// What to do.
    pub outcome: Outcome<'a>,
}

/// What to do with the request.
#[derive(Debug)]
pub enum Outcome<'a> {
    /// Send it on. The rewritten request line and the headers are applied with [`Decision::forward_head`].
    Forward {
        /// The action, for time-outs, retries and rewrites.
        action: &'a RouteAction,
        /// Where to; `None`: a `cluster_header` named none that exists (flag NC).
        cluster: Option<&'a Arc<Cluster>>,
    },
    /// Answer with this status and `location`.
    Redirect {
        /// 301, 302, 303, 307, 308.
        status: StatusCode,
        /// The new location.
        location: String,
    },
    /// Answer with this.
    DirectResponse(&'a DirectResponse),
    /// 404, flag NR, `route_not_found`.
    NotFound,
}

/// Sends `request` through `config`. `clusters` looks a `cluster_header`'s value up.
pub fn decide<'a>(
    config: &'a RouteConfig,
    request: &RequestFacts<'_>,
    clusters: &dyn Fn(&str) -> Option<&'a Arc<Cluster>>,
) -> Decision<'a> {
    decide_observed(config, request, clusters, &mut ())
}

/// As [`decide`], and tells `observer` how each row fared: they are walked over one by one for that, where [`decide`]
/// asks the [index](super::rows::RowIndex) of the virtual host.
pub fn decide_observed<'a, O: Observer>(
    config: &'a RouteConfig,
    request: &RequestFacts<'_>,
    clusters: &dyn Fn(&str) -> Option<&'a Arc<Cluster>>,
    observer: &mut O,
) -> Decision<'a> {
    let Some((virtual_host, rows)) = config.host_and_rows(request.authority) else {
        return Decision { config, virtual_host: None, route: None, outcome: Outcome::NotFound };
    };
    let decided = |route, outcome| Decision { config, virtual_host: Some(virtual_host), route, outcome };
    if let Some(location) = virtual_host.tls_redirect(request) {
        return decided(None, Outcome::Redirect { status: StatusCode::MOVED_PERMANENTLY, location });
    }
    let view = RequestView::new(request);
    let matched = match O::WANTS_ROWS {
        true => virtual_host.routes.iter().find(|route| {
            let result = route.matches.check::<O>(&view);
            let matched = result.is_ok();
            observer.row(route, result);
            matched
        }),
        false => rows.first(&virtual_host.routes, &view),
    };
    let Some(route) = matched else { return decided(None, Outcome::NotFound) };
    let outcome = match &route.action {
        Action::Route(action) => Outcome::Forward { action, cluster: action.cluster.choose(request, clusters) },
        Action::Redirect(redirect) => {
            Outcome::Redirect { status: redirect.response_code, location: redirect.location(&route.matches, request) }
        }
        Action::DirectResponse(response) => Outcome::DirectResponse(response),
    };
    decided(Some(route), outcome)
}

impl RouteConfig {
    /// The virtual host that serves `authority`.
    pub fn virtual_host(&self, authority: &str) -> Option<&VirtualHost> {
        self.host_and_rows(authority).map(|(virtual_host, _)| virtual_host)
    }

    fn host_and_rows(&self, authority: &str) -> Option<(&VirtualHost, &RowIndex)> {
        let place = self.hosts.find(self.host_of(authority))?;
        self.virtual_hosts.get(place).zip(self.hosts.rows(place))
    }

    /// What of `authority` the domains are compared with.
    pub fn host_of<'r>(&self, authority: &'r str) -> &'r str {
        if self.ignore_port_in_host_matching { without_port(authority) } else { authority }
    }
}

impl VirtualHost {
    /// Where a plain-text request has to go instead, when `require_tls` says so.
    fn tls_redirect(&self, request: &RequestFacts<'_>) -> Option<String> {
        let internal = || request.headers.get("x-envoy-internal").is_some_and(|value| value == "true");
        let required = match self.require_tls {
            RequireTls::None => false,
            RequireTls::ExternalOnly => !internal(),
            RequireTls::All => true,
        };
        let location = || format!("https://{}{}", request.authority, request.path_and_query);
        (required && forwarded_scheme(request) != "https").then(location)
    }
}

impl ClusterSpecifier {
    /// The cluster of a request; `None` when a header names none that exists.
    fn choose<'a>(
        &'a self,
        request: &RequestFacts<'_>,
        clusters: &dyn Fn(&str) -> Option<&'a Arc<Cluster>>,
    ) -> Option<&'a Arc<Cluster>> {
        match self {
            Self::Cluster(cluster) => Some(cluster),
            Self::Weighted(weighted) => Some(weighted.pick(request.random)),
            Self::Header(name) => clusters(request.headers.get(name)?.to_str().ok()?),
        }
    }
}

/// The request line of a request that is sent on, as far as it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardHead {
    /// The rewritten path with query; `None` when it stays as it is. Begins with `/`.
    pub path_and_query: Option<String>,
    /// What becomes of the host.
    pub host: ForwardHost,
}

/// What becomes of a request's host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwardHost {
    /// It stays as it is.
    Unchanged,
    /// This one.
    Rewritten(HeaderValue),
    /// The chosen endpoint's host name, if it has one; see [`Decision::keep_host`].
    OfEndpoint,
}

impl<'a> Decision<'a> {
    /// Changes `headers` as route, virtual host and route configuration say, and rewrites the request line.
    ///
    /// `authority` and `path_and_query` are those that were decided on. The changes come first: a `host_rewrite_header`
    /// may have been set by them. Does nothing unless the outcome is [`Outcome::Forward`].
    pub fn forward_head(&self, authority: &str, path_and_query: &str, headers: &mut HeaderMap) -> ForwardHead {
        let (Some(route), Outcome::Forward { action, .. }) = (self.route, &self.outcome) else {
            return ForwardHead { path_and_query: None, host: ForwardHost::Unchanged };
        };
        for scope in self.scopes() {
            scope.request.apply(headers);
        }
        self.announce_timeout(action, headers);
        let host = match &action.host_rewrite {
            None => ForwardHost::Unchanged,
            Some(HostRewrite::Literal(host)) => ForwardHost::Rewritten(host.clone()),
            Some(HostRewrite::Auto) => ForwardHost::OfEndpoint,
            Some(HostRewrite::Header(name)) => match headers.get(name) {
                Some(host) if !host.is_empty() => ForwardHost::Rewritten(host.clone()),
                _ => ForwardHost::Unchanged,
            },
        };
        if let ForwardHost::Rewritten(_) = host {
            self.keep_host(authority, headers);
        }
        let rewritten = action.path_rewrite.as_ref().map(|rewrite| rewrite.rewrite(&route.matches, path_and_query));
        let rewritten = rewritten.filter(|rewritten| rewritten != path_and_query);
        if let (Some(_), Ok(original)) = (&rewritten, HeaderValue::from_str(path_and_query)) {
            headers.insert(X_ENVOY_ORIGINAL_PATH, original);
        }
        ForwardHead { path_and_query: rewritten, host }
    }

    /// Tells the endpoint how long the answer is awaited, as Envoy's router does: one try, if those are limited.
    fn announce_timeout(&self, action: &RouteAction, headers: &mut HeaderMap) {
        let of_a_try = self.retry_policy().and_then(|policy| policy.per_try_timeout);
        let Some(timeout) = of_a_try.or(action.timeout) else { return };
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        headers.insert(X_ENVOY_EXPECTED_RQ_TIMEOUT_MS, number(timeout_ms));
    }

    /// Keeps the original host in `x-envoy-original-host`, and appends it to `x-forwarded-host` where the route asks for
    /// it: to be called for [`ForwardHost::OfEndpoint`] once the endpoint turned out to have a name.
    pub fn keep_host(&self, authority: &str, headers: &mut HeaderMap) {
        let Outcome::Forward { action, .. } = &self.outcome else { return };
        let Ok(host) = HeaderValue::from_str(authority) else { return };
        if action.append_x_forwarded_host {
            headers.append(X_FORWARDED_HOST, host.clone());
        }
        headers.insert(X_ENVOY_ORIGINAL_HOST, host);
    }

    /// Changes the headers of the response, also of one of the agent's own, as the scopes say. A request for which no
    /// row was found is answered without them, as in Envoy.
    pub fn mutate_response(&self, headers: &mut HeaderMap) {
        if self.route.is_none() {
            return;
        }
        for scope in self.scopes() {
            scope.response.apply(headers);
        }
    }

    /// The retry policy: the route's, which replaces the virtual host's.
    pub fn retry_policy(&self) -> Option<&'a Arc<RetryPolicy>> {
        match self.outcome {
            Outcome::Forward { action, .. } => {
                action.retry_policy.as_ref().or_else(|| self.virtual_host?.retry_policy.as_ref())
            }
            _ => None,
        }
    }

    /// The scopes of header changes in the order in which they apply: the last one wins.
    fn scopes(&self) -> impl Iterator<Item = &'a HeaderMutations> + use<'a> {
        let route = self.route.map(|route| &route.headers);
        let virtual_host = self.virtual_host.map(|virtual_host| &virtual_host.headers);
        let config = Some(&self.config.headers);
        let order = match self.config.most_specific_header_mutations_wins {
            true => [config, virtual_host, route],
            false => [route, virtual_host, config],
        };
        order.into_iter().flatten()
    }
}
