//! Which headers pass, and which are the agent's own: both ways.
//!
//! Pure but for the ids of requests. Sources: RFC 9110 section 7.6.1; Envoy, http_conn_man/headers.

use std::cell::RefCell;
use std::net::IpAddr;

use http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};

use super::exchange::{X_FORWARDED_FOR, X_REQUEST_ID};
use super::field::{lists, members};
use super::refusal::Refusal;
use super::{HttpConnectionManager, ServerHeader};

const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_ENVOY_EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");
const X_ENVOY_UPSTREAM_SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Tokens in `connection`: more are refused (Envoy, `sanitizeConnectionHeader`).
const MAX_CONNECTION_TOKENS: usize = 10;

/// Headers that a client may not have removed on the way by naming them in `connection`.
fn must_stay(name: &HeaderName) -> bool {
    let essential = [header::HOST, header::CONTENT_LENGTH, header::AUTHORIZATION, header::COOKIE, header::FORWARDED];
    essential.contains(name) || name.as_str().starts_with("x-forwarded-") || name.as_str().starts_with("x-envoy-")
}

/// The names in all `connection` headers.
fn connection_tokens(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let values = headers.get_all(header::CONNECTION).into_iter();
    values.flat_map(|value| members(value.as_bytes()))
}

/// Whether `connection` is one of the two that nearly all are. There is no header `close` (RFC 9110 section 7.6.1 reserves
/// the name), and `keep-alive` goes anyway.
fn connection_names_nothing(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::CONNECTION).iter().map(HeaderValue::as_bytes);
    let usual = |value: &[u8]| value.eq_ignore_ascii_case(b"keep-alive") || value.eq_ignore_ascii_case(b"close");
    values.next().is_some_and(usual) && values.next().is_none()
}

/// Whether `connection` says that the connection is to change its protocol.
pub fn connection_says_upgrade(headers: &HeaderMap) -> bool {
    connection_tokens(headers).any(|token| token.eq_ignore_ascii_case(b"upgrade"))
}

/// Which rules the headers of one message call for. One look at each name: most messages have none of the headers that
/// are removed, and to ask for each of those would hash it and look it up every time.
#[derive(Clone, Copy, Default)]
struct Rules(u16);

impl Rules {
    const CONNECTION: Self = Self(1);
    /// Concerns the connection alone, as `connection` itself does.
    const HOP_BY_HOP: Self = Self(1 << 1);
    const TE: Self = Self(1 << 2);
    const EXPECT: Self = Self(1 << 3);
    const REFERER: Self = Self(1 << 4);
    /// What is left of an upgrade.
    const UPGRADE: Self = Self(1 << 5);
    /// [`INTERNAL`] or [`EDGE_ONLY`], perhaps.
    const INTERNAL: Self = Self(1 << 6);
    const FORWARDED_PROTO: Self = Self(1 << 7);
    const REQUEST_ID: Self = Self(1 << 8);
    const CONTENT_LENGTH: Self = Self(1 << 9);

    fn of(headers: &HeaderMap) -> Self {
        Self(headers.keys().fold(0, |rules, name| rules | Self::of_name(name.as_str()).0))
    }

    fn of_name(name: &str) -> Self {
        match name {
            "connection" => Self::CONNECTION,
            "transfer-encoding" | "upgrade" | "keep-alive" | "proxy-connection" => Self::HOP_BY_HOP,
            "te" => Self::TE,
            "expect" => Self::EXPECT,
            "referer" => Self::REFERER,
            "content-length" => Self::CONTENT_LENGTH,
            "http2-settings" => Self::UPGRADE,
            "x-forwarded-proto" => Self::FORWARDED_PROTO,
            "x-request-id" => Self::REQUEST_ID,
            "x-forwarded-client-cert" => Self::INTERNAL,
            _ if name.starts_with("x-envoy-") => Self::INTERNAL,
            _ => Self(0),
        }
    }

    fn contain(self, rule: Self) -> bool {
        self.0 & rule.0 != 0
    }
}

/// Removes what concerns this connection only.
///
/// # Errors
/// `connection` has too many tokens, or names a header that must stay.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) -> Result<(), Refusal> {
    let refused =
        || Err(Refusal::request(StatusCode::BAD_REQUEST, "connection_header_rejected", "Bad Request").closing());
    let rules = Rules::of(headers);
    if rules.contain(Rules::CONNECTION) {
        let mut named: Vec<HeaderName> = Vec::new();
        for (index, token) in connection_tokens(headers).filter(|token| !token.is_empty()).enumerate() {
            let Ok(name) = HeaderName::from_bytes(token) else { return refused() };
            if index >= MAX_CONNECTION_TOKENS || must_stay(&name) {
                return refused();
            }
            // `te` has its own rule below.
            if name != header::TE && headers.contains_key(&name) {
                named.push(name);
            }
        }
        for name in named {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    if rules.contain(Rules::HOP_BY_HOP) {
        for name in [header::TRANSFER_ENCODING, header::UPGRADE, KEEP_ALIVE, PROXY_CONNECTION] {
            headers.remove(name);
        }
    }
    Ok(())
}

/// Completes the sanitation of a request: `te`, `expect` and the remains of an upgrade to HTTP/2.
pub fn sanitize_request(headers: &mut HeaderMap) {
    let rules = Rules::of(headers);
    if rules.contain(Rules::TE)
        && let Entry::Occupied(mut te) = headers.entry(header::TE)
    {
        if te.iter().any(|value| lists(value.as_bytes(), "trailers")) {
            te.insert(HeaderValue::from_static("trailers"));
        } else {
            te.remove();
        }
    }
    // The agent answers it itself, as soon as the endpoint wants the body.
    if rules.contain(Rules::EXPECT)
        && headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    {
        headers.remove(header::EXPECT);
    }
    if rules.contain(Rules::UPGRADE) {
        headers.remove(HTTP2_SETTINGS);
    }
    if rules.contain(Rules::REFERER) {
        let mut referers = headers.get_all(header::REFERER).iter();
        let valid = referers.next().is_none_or(is_referer) && referers.next().is_none();
        if !valid {
            headers.remove(header::REFERER);
        }
    }
}

/// Says that no body follows where one would be expected: some origins ask with 411 for the length of a POST (RFC 9110
/// section 8.6).
pub fn announce_empty_body(method: &Method, is_empty: bool, headers: &mut HeaderMap) {
    if is_empty && [Method::POST, Method::PUT, Method::PATCH].contains(method) {
        headers.entry(header::CONTENT_LENGTH).or_insert(HeaderValue::from_static("0"));
    }
}

/// Envoy's `isValidRefererValue`: an absolute URL without user and fragment, or a relative one.
fn is_referer(value: &HeaderValue) -> bool {
    let Ok(text) = value.to_str() else { return false };
    if text.bytes().any(|byte| byte == b'#' || byte == b' ' || b"\"<>\\^`{|}".contains(&byte)) {
        return false;
    }
    match text.split_once("://") {
        Some((scheme, rest)) if !scheme.contains('/') => {
            let authority = rest.split(['/', '?']).next().unwrap_or_default();
            !authority.is_empty() && !authority.contains('@')
        }
        _ => text.find(':').is_none_or(|colon| text[..colon].contains('/')),
    }
}

/// Says who asked: x-forwarded-for, x-forwarded-proto, x-request-id; and removes what only the mesh itself may say.
/// No client counts as internal: Envoy 1.40 without `internal_address_config`.
pub fn forward(headers: &mut HeaderMap, manager: &HttpConnectionManager, client: IpAddr, id: impl Fn() -> HeaderValue) {
    let rules = Rules::of(headers);
    if rules.contain(Rules::INTERNAL) {
        INTERNAL.iter().for_each(|name| drop(headers.remove(*name)));
    }
    if manager.use_remote_address {
        append_client(headers, client);
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
        if let Ok(address) = HeaderValue::from_str(&client.to_string()) {
            headers.insert(X_ENVOY_EXTERNAL_ADDRESS, address);
        }
        if rules.contain(Rules::INTERNAL) {
            EDGE_ONLY.iter().for_each(|name| drop(headers.remove(*name)));
        }
    } else if !rules.contain(Rules::FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    // At the edge, an id from outside says nothing about the requests of this mesh.
    if manager.generate_request_id && (manager.use_remote_address || !rules.contain(Rules::REQUEST_ID)) {
        headers.insert(X_REQUEST_ID, id());
    }
}

/// What an edge proxy removes besides [`INTERNAL`].
const EDGE_ONLY: [&str; 3] =
    ["x-envoy-decorator-operation", "x-envoy-downstream-service-cluster", "x-envoy-downstream-service-node"];

fn append_client(headers: &mut HeaderMap, client: IpAddr) {
    let mut all: Vec<u8> = Vec::with_capacity(40);
    for value in headers.get_all(X_FORWARDED_FOR) {
        all.extend_from_slice(value.as_bytes());
        all.extend_from_slice(b",");
    }
    all.extend_from_slice(client.to_string().as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&all) {
        headers.insert(X_FORWARDED_FOR, value);
    }
}

/// What only the mesh itself may say: retries, timeouts and the like.
const INTERNAL: [&str; 16] = [
    "x-envoy-internal",
    "x-envoy-retriable-status-codes",
    "x-envoy-retriable-header-names",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-max-retries",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-force-trace",
    "x-envoy-ip-tags",
    "x-envoy-original-url",
    "x-envoy-hedge-on-per-try-timeout",
    // Its certificate was checked by nobody here.
    "x-forwarded-client-cert",
];

/// Takes away what a message of HTTP/2 must not have (RFC 9113 section 8.2.2).
pub fn strip_connection(headers: &mut HeaderMap) {
    for name in
        [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, header::TE, KEEP_ALIVE, PROXY_CONNECTION]
    {
        headers.remove(name);
    }
}

/// A response's headers on the way to the client.
pub fn sanitize_response(headers: &mut HeaderMap) {
    let rules = Rules::of(headers);
    if rules.contain(Rules::CONNECTION) && !connection_names_nothing(headers) {
        // An endpoint's odd `connection` header is no reason to refuse: what it names is dropped as far as possible.
        let named = |name: &&HeaderName| {
            connection_tokens(headers).any(|token| token.eq_ignore_ascii_case(name.as_str().as_bytes()))
        };
        let may_go = |name: &&HeaderName| !must_stay(name) && **name != header::SET_COOKIE;
        let named: Vec<HeaderName> = headers.keys().filter(named).filter(may_go).cloned().collect();
        for name in named {
            headers.remove(name);
        }
    }
    if rules.contain(Rules::CONNECTION) {
        headers.remove(header::CONNECTION);
    }
    if rules.contain(Rules::HOP_BY_HOP) {
        for name in [header::TRANSFER_ENCODING, header::UPGRADE, KEEP_ALIVE, PROXY_CONNECTION] {
            headers.remove(name);
        }
    }
    if rules.contain(Rules::CONTENT_LENGTH)
        && headers.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some()
        && let Some(length) = headers.remove(header::CONTENT_LENGTH)
    {
        // The codec has checked that all of them are equal.
        headers.insert(header::CONTENT_LENGTH, length);
    }
}

/// Says who answered, and how fast.
pub fn sign_response(headers: &mut HeaderMap, manager: &HttpConnectionManager, service_time_ms: u128) {
    match manager.server_header {
        ServerHeader::Overwrite => {
            headers.insert(header::SERVER, manager.server_name.clone());
        }
        ServerHeader::AppendIfAbsent => {
            headers.entry(header::SERVER).or_insert_with(|| manager.server_name.clone());
        }
        ServerHeader::PassThrough => {}
    }
    let service_time = u64::try_from(service_time_ms).unwrap_or(u64::MAX);
    headers.insert(X_ENVOY_UPSTREAM_SERVICE_TIME, number(service_time));
}

/// A number. The least ones, and the same one as the last time, need no allocation.
pub fn number(number: u64) -> HeaderValue {
    const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    thread_local! {
        static LAST: RefCell<(u64, HeaderValue)> = const { RefCell::new((0, HeaderValue::from_static("0"))) };
    }
    if let Some(digit) = usize::try_from(number).ok().and_then(|number| DIGITS.get(number)) {
        return HeaderValue::from_static(digit);
    }
    LAST.with_borrow_mut(|(last, value)| {
        if *last != number {
            (*last, *value) = (number, HeaderValue::from(number));
        }
        value.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        headers.keys().map(HeaderName::as_str).collect()
    }

    #[test]
    fn what_concerns_the_connection_alone_does_not_pass() {
        let mut all = headers(&[
            ("host", "a"),
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
            ("te", "gzip, trailers"),
            ("expect", "100-continue"),
        ]);
        remove_hop_by_hop(&mut all).expect("sound");
        sanitize_request(&mut all);
        assert_eq!(names(&all), ["host", "te"]);
        assert_eq!(all["te"], "trailers");
    }

    #[test]
    fn connection_cannot_take_away_what_must_stay() {
        for token in ["host", "Content-Length", "x-forwarded-for", "a b", "a,b,c,d,e,f,g,h,i,j,k"] {
            let mut all = HeaderMap::new();
            all.insert("connection", HeaderValue::from_static(token));
            assert_eq!(remove_hop_by_hop(&mut all).map_err(|refusal| refusal.status.as_u16()), Err(400), "{token}");
        }
    }
}
