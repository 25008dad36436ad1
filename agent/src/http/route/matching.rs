//! Whether one row matches one request.
//!
//! Before: the virtual host. After: the row's action. The very same function serves the data path, which wants a yes or
//! no, and `explain`, which wants to know why not: it is generic over an [`Observer`], and the data path's builds no
//! reason. On the data path [`super::rows`] says which rows to look at. Nothing here allocates for a row; the values of a repeated header are joined in one buffer per request.

use std::cell::RefCell;

use http::Method;
use http::header::CONTENT_TYPE;

use super::decide::RequestFacts;
use super::mismatch::{Mismatch, PathCondition, list};
use super::strings::query_parameter;
use super::{FullRegex, HeaderMatch, PathMatch, Route, RouteMatch};
use crate::workload::Workload;

/// What [`RouteMatch::runtime_fraction_per_million`] is a fraction of.
const MILLION: u64 = 1_000_000;

/// Is told how each row fared, in order, up to the one that matched.
pub trait Observer {
    /// Why a row did not match.
    type Reason;

    /// Whether it wants to hear of each row, so that they have to be walked over.
    const WANTS_ROWS: bool;

    /// Makes a reason of `why`, or nothing without asking.
    fn because(why: impl FnOnce() -> Mismatch) -> Self::Reason;

    /// `route` was looked at.
    fn row(&mut self, route: &Route, result: Result<(), Self::Reason>);
}

/// Sees nothing: the data path.
impl Observer for () {
    type Reason = ();
    const WANTS_ROWS: bool = false;

    fn because(_why: impl FnOnce() -> Mismatch) -> Self::Reason {}

    fn row(&mut self, _route: &Route, _result: Result<(), Self::Reason>) {}
}

/// Records, by row index, why rows did not match; `Ok` for the one that did.
impl Observer for Vec<(usize, Result<(), Mismatch>)> {
    type Reason = Mismatch;
    const WANTS_ROWS: bool = true;

    fn because(why: impl FnOnce() -> Mismatch) -> Self::Reason {
        why()
    }

    fn row(&mut self, route: &Route, result: Result<(), Self::Reason>) {
        self.push((route.index, result));
    }
}

/// A request as the rows look at it: taken apart once.
#[derive(Debug)]
pub struct RequestView<'r> {
    facts: &'r RequestFacts<'r>,
    path: &'r str,
    query: &'r str,
    /// Values of a repeated header, joined.
    joined: RefCell<Vec<u8>>,
}

impl<'r> RequestView<'r> {
    /// Takes `facts` apart.
    pub fn new(facts: &'r RequestFacts<'r>) -> Self {
        let (path, rest) = split_path(facts.path_and_query);
        let query = rest.strip_prefix('?').unwrap_or_default();
        let query = query.split_once('#').map_or(query, |(query, _)| query);
        Self { facts, path, query, joined: RefCell::default() }
    }

    /// The path without query and fragment.
    pub fn path(&self) -> &'r str {
        self.path
    }

    /// A CONNECT request that names no path.
    pub(super) fn is_pathless(&self) -> bool {
        self.facts.path_and_query.is_empty()
    }

    /// Hands the value of header `name` to `look`: pseudo-headers too, several values joined with a comma.
    fn header<R>(&self, name: &str, look: impl FnOnce(Option<&[u8]>) -> R) -> R {
        let facts = self.facts;
        match name {
            ":method" => return look(Some(facts.method.as_str().as_bytes())),
            ":authority" | "host" => return look(Some(facts.authority.as_bytes())),
            ":path" if facts.path_and_query.is_empty() => return look(None),
            ":path" => return look(Some(facts.path_and_query.as_bytes())),
            ":scheme" => return look(Some(facts.scheme.as_bytes())),
            _ => {}
        }
        let mut values = facts.headers.get_all(name).iter();
        let Some(first) = values.next() else { return look(None) };
        let Some(second) = values.next() else { return look(Some(first.as_bytes())) };
        let mut joined = self.joined.borrow_mut();
        joined.clear();
        joined.extend_from_slice(first.as_bytes());
        for value in std::iter::once(second).chain(values) {
            joined.push(b',');
            joined.extend_from_slice(value.as_bytes());
        }
        look(Some(&joined))
    }

    fn is_grpc(&self) -> bool {
        self.header(CONTENT_TYPE.as_str(), |value| {
            let rest = value.and_then(|value| value.strip_prefix(b"application/grpc"));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"+"))
        })
    }

    /// CONNECT, or the HTTP/1 form of connect-udp.
    pub(super) fn is_connect(&self) -> bool {
        self.facts.method == Method::CONNECT
            || self.header("upgrade", |value| value.is_some_and(|value| value.eq_ignore_ascii_case(b"connect-udp")))
    }
}

/// The path, and what follows it from `?` or `#` on.
pub(super) fn split_path(path_and_query: &str) -> (&str, &str) {
    // Bytes are searched faster than characters, and neither byte is part of another character.
    let end = path_and_query.bytes().position(|byte| byte == b'?' || byte == b'#');
    path_and_query.split_at(end.unwrap_or(path_and_query.len()))
}

impl RouteMatch {
    /// Whether all conditions hold.
    ///
    /// # Errors
    /// The first that does not, as far as the observer wants to know.
    pub fn check<O: Observer>(&self, request: &RequestView<'_>) -> Result<(), O::Reason> {
        self.check_path::<O>(request)?;
        self.check_conditions::<O>(request)
    }

    /// Whether it asks for nothing but its path.
    pub(super) fn is_path_alone(&self) -> bool {
        self.methods.is_empty()
            && self.headers.is_empty()
            && self.query_parameters.is_empty()
            && !self.grpc
            && self.source_pod.is_none()
            && self.runtime_fraction_per_million.is_none_or(|fraction| u64::from(fraction) >= MILLION)
    }

    /// Whether all conditions but that on the path hold.
    pub(super) fn check_conditions<O: Observer>(&self, request: &RequestView<'_>) -> Result<(), O::Reason> {
        let method = request.facts.method;
        if !self.methods.is_empty() && !self.methods.contains(method) {
            return Err(O::because(|| Mismatch::Method { method: method.clone(), wanted: self.methods.clone() }));
        }
        for wanted in &self.headers {
            if !request.header(&wanted.name, |value| wanted.matches(value)) {
                let found = || request.header(&wanted.name, |value| value.map(text));
                return Err(O::because(|| Mismatch::Header { found: found(), wanted: wanted.clone() }));
            }
        }
        for wanted in &self.query_parameters {
            let found = query_parameter(request.query, &wanted.name);
            if !wanted.matches(found) {
                let found = found.map(str::to_owned);
                return Err(O::because(|| Mismatch::Query { found, wanted: wanted.clone() }));
            }
        }
        if self.grpc && !request.is_grpc() {
            let content_type = || request.header(CONTENT_TYPE.as_str(), |value| value.map(text));
            return Err(O::because(|| Mismatch::NotGrpc { content_type: content_type() }));
        }
        self.check_source::<O>(request.facts.source_pod)?;
        self.check_fraction::<O>(request.facts.random)
    }

    fn check_source<O: Observer>(&self, pod: Option<&Workload>) -> Result<(), O::Reason> {
        match &self.source_pod {
            Some(wanted) if !pod.is_some_and(|pod| wanted.matches(pod)) => Err(O::because(|| {
                let found = pod.map(|pod| (pod.to_string(), wanted.lacks(pod).unwrap_or_default()));
                Mismatch::SourcePod { found, wanted: wanted.clone() }
            })),
            _ => Ok(()),
        }
    }

    fn check_path<O: Observer>(&self, request: &RequestView<'_>) -> Result<(), O::Reason> {
        if matches!(self.path, PathMatch::Connect) {
            return match request.is_connect() {
                true => Ok(()),
                false => Err(O::because(|| Mismatch::NotConnect { method: request.facts.method.clone() })),
            };
        }
        if request.is_pathless() {
            return Err(O::because(|| Mismatch::NoPath));
        }
        if self.path.matches(request.path, self.case_sensitive) {
            return Ok(());
        }
        Err(O::because(|| match PathCondition::of(&self.path) {
            Some(condition) => Mismatch::Path { path: request.path.to_owned(), condition },
            None => Mismatch::NotConnect { method: request.facts.method.clone() },
        }))
    }

    fn check_fraction<O: Observer>(&self, random: u64) -> Result<(), O::Reason> {
        match self.runtime_fraction_per_million {
            Some(wanted) if random % MILLION >= u64::from(wanted) => {
                // Below a million, so that it fits.
                let drawn = u32::try_from(random % MILLION).unwrap_or(u32::MAX);
                Err(O::because(|| Mismatch::RuntimeFraction { drawn, wanted }))
            }
            _ => Ok(()),
        }
    }

    /// What the row asks for, in the words of the configuration.
    pub fn summary(&self) -> String {
        let mut parts =
            vec![PathCondition::of(&self.path).map_or("connect_matcher".to_owned(), |path| path.to_string())];
        if !self.case_sensitive {
            parts.push("in any case".to_owned());
        }
        if !self.methods.is_empty() {
            parts.push(format!("methods {}", list(&self.methods)));
        }
        parts.extend(self.headers.iter().map(|header| format!("header {} {}", header.name, header.want())));
        parts.extend(self.query_parameters.iter().map(|query| format!("query {} {}", query.name, query.want())));
        if self.grpc {
            parts.push("grpc".to_owned());
        }
        if let Some(fraction) = self.runtime_fraction_per_million {
            parts.push(format!("{} % of requests", f64::from(fraction) / 10_000.0));
        }
        parts.extend(self.source_pod.iter().map(|pod| format!("from {pod}")));
        parts.join(", ")
    }

    /// Why the row matches a request that it is known to match, for people.
    pub fn because(&self, request: &RequestView<'_>) -> String {
        let path = PathCondition::of(&self.path);
        let mut parts = vec![path.map_or("method is CONNECT".to_owned(), |path| path.sentence(request.path, true))];
        if !self.methods.is_empty() {
            parts.push(format!("method is {}", request.facts.method));
        }
        parts.extend(self.headers.iter().map(|header| because_of(header, request)));
        for query in &self.query_parameters {
            parts.push(match query_parameter(request.query, &query.name) {
                Some(value) => format!("query parameter {} is {value:?}", query.name),
                None => format!("query parameter {} is absent", query.name),
            });
        }
        if self.grpc {
            parts.push("content-type is gRPC's".to_owned());
        }
        if let Some(fraction) = self.runtime_fraction_per_million {
            let drawn = request.facts.random % MILLION;
            parts.push(format!("random {drawn} of 1000000 is below runtime_fraction {fraction}"));
        }
        if let (Some(wanted), Some(pod)) = (&self.source_pod, request.facts.source_pod) {
            parts.push(format!("it comes from {pod}, which is {wanted}"));
        }
        parts.join(", ")
    }
}

fn because_of(header: &HeaderMatch, request: &RequestView<'_>) -> String {
    match request.header(&header.name, |value| value.map(text)) {
        Some(value) => format!("header {} is {value:?}", header.name),
        None => format!("header {} is absent", header.name),
    }
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

impl PathMatch {
    /// Whether `path` (without query) is such a path; [`Self::Connect`] asks nothing of it.
    pub fn matches(&self, path: &str, case_sensitive: bool) -> bool {
        let equal = |own: &str, part: &[u8]| match case_sensitive {
            true => own.as_bytes() == part,
            false => own.as_bytes().eq_ignore_ascii_case(part),
        };
        let bytes = path.as_bytes();
        let begins = |own: &str| bytes.get(..own.len()).is_some_and(|part| equal(own, part));
        match self {
            Self::Prefix(prefix) => begins(prefix),
            Self::Exact(exact) => equal(exact, bytes),
            Self::SafeRegex(regex) => FullRegex::is_match(regex, path),
            Self::PathSeparatedPrefix(prefix) => {
                begins(prefix) && bytes.get(prefix.len()).is_none_or(|next| *next == b'/')
            }
            Self::Template(template) => template.is_match(path),
            Self::Connect => true,
        }
    }
}
