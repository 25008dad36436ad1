//! (signatures; the decision part fills them in)
//! One request's way through a route configuration. The data path and `explain` call the very same function.
use super::{Route, RouteConfig, VirtualHost};
use crate::cluster::Cluster;
use http::{HeaderMap, Method, StatusCode};
use std::sync::Arc;

/// What routing looks at.
#[derive(Clone, Copy, Debug)]
pub struct RequestFacts<'a> {
    /// The request's method.
    pub method: &'a Method,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Host or `:authority`, as received.
    pub authority: &'a str,
    /// Path with query, as sent by the client (after normalisation, where that is on).
    pub path_and_query: &'a str,
    /// All request headers.
    pub headers: &'a HeaderMap,
    /// One random number for the whole request: runtime fractions and weights use the same.
    pub random: u64,
}

/// What was decided.
#[derive(Debug)]
pub struct Decision<'a> {
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
    /// Send it on. The rewritten request line and the headers are applied with [`forward_head`].
    Forward {
        /// The action, for time-outs, retries and rewrites.
        action: &'a super::RouteAction,
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
    DirectResponse(&'a super::DirectResponse),
    /// 404, flag NR, `route_not_found`.
    NotFound,
}

/// Sends `request` through `config`. `clusters` looks a `cluster_header`'s value up.
pub fn decide<'a>(
    _config: &'a RouteConfig,
    _request: &RequestFacts<'_>,
    _clusters: &dyn Fn(&str) -> Option<&'a Arc<Cluster>>,
) -> Decision<'a> {
    Decision { virtual_host: None, route: None, outcome: Outcome::NotFound }
}
