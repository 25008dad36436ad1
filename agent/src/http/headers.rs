//! Which headers pass, and which are the agent's own: both ways.
//!
//! Pure but for the random number of a request id. Sources: RFC 9110 section 7.6.1; Envoy, http_conn_man/headers.

use std::net::IpAddr;

use http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};

use super::exchange::{X_FORWARDED_FOR, X_REQUEST_ID};
use super::gate::IGNORED_UPGRADE;
use super::refusal::Refusal;
use super::{HttpConnectionManager, ServerHeader};

const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_ENVOY_EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");
const X_ENVOY_UPSTREAM_SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const IGNORED: HeaderName = HeaderName::from_static(IGNORED_UPGRADE);

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
    values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
}

/// Whether `connection` says that the connection is to change its protocol.
pub fn connection_says_upgrade(headers: &HeaderMap) -> bool {
    connection_tokens(headers).any(|token| token.eq_ignore_ascii_case(b"upgrade"))
}

/// Removes what concerns this connection only.
///
/// # Errors
/// `connection` has too many tokens, or names a header that must stay.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) -> Result<(), Refusal> {
    let refused =
        || Err(Refusal::request(StatusCode::BAD_REQUEST, "connection_header_rejected", "Bad Request").closing());
    if headers.contains_key(header::CONNECTION) {
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
    for name in [header::TRANSFER_ENCODING, header::UPGRADE, KEEP_ALIVE, PROXY_CONNECTION] {
        headers.remove(name);
    }
    Ok(())
}

/// Completes the sanitation of a request: `te`, `expect` and the remains of an upgrade to HTTP/2.
pub fn sanitize_request(headers: &mut HeaderMap) {
    if let Entry::Occupied(mut te) = headers.entry(header::TE) {
        let trailers = |value: &HeaderValue| {
            value
                .as_bytes()
                .split(|byte| *byte == b',')
                .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
        };
        if te.iter().any(trailers) {
            te.insert(HeaderValue::from_static("trailers"));
        } else {
            te.remove();
        }
    }
    // The agent answers it itself, as soon as the endpoint wants the body.
    if headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        headers.remove(header::EXPECT);
    }
    headers.remove(HTTP2_SETTINGS);
    headers.remove(IGNORED);
    let mut referers = headers.get_all(header::REFERER).iter();
    let valid = referers.next().is_none_or(is_referer) && referers.next().is_none();
    if !valid {
        headers.remove(header::REFERER);
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
pub fn forward(headers: &mut HeaderMap, manager: &HttpConnectionManager, client: IpAddr, random: impl Fn() -> u64) {
    remove_internal(headers);
    if manager.use_remote_address {
        append_client(headers, client);
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
        if let Ok(address) = HeaderValue::from_str(&client.to_string()) {
            headers.insert(X_ENVOY_EXTERNAL_ADDRESS, address);
        }
        for name in EDGE_ONLY {
            headers.remove(name);
        }
        if manager.generate_request_id {
            // An id from outside says nothing about the requests of this mesh.
            headers.remove(X_REQUEST_ID);
        }
    } else if !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if manager.generate_request_id
        && let Entry::Vacant(id) = headers.entry(X_REQUEST_ID)
    {
        id.insert(request_id(random(), random()));
    }
}

/// What an edge proxy removes besides [`remove_internal`].
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
fn remove_internal(headers: &mut HeaderMap) {
    for name in [
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
    ] {
        headers.remove(name);
    }
}

/// A UUID of version 4 (RFC 9562 section 5.4).
fn request_id(high: u64, low: u64) -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bits = (u128::from(high) << 64) | u128::from(low);
    let bits = (bits & !(0xf << 76)) | (0x4 << 76);
    let bits = (bits & !(0x3 << 62)) | (0x2 << 62);
    let mut text = [b'-'; 36];
    let places = (0..36).filter(|place| ![8, 13, 18, 23].contains(place));
    for (digit, place) in places.enumerate() {
        text[place] = HEX[(bits >> (124 - 4 * digit)) as usize & 0xf];
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// A response's headers on the way to the client.
pub fn sanitize_response(headers: &mut HeaderMap) {
    // An endpoint's odd `connection` header is no reason to refuse: what it names is dropped as far as possible.
    let named: Vec<HeaderName> = connection_tokens(headers)
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .filter(|name| !must_stay(name) && *name != header::SET_COOKIE)
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, KEEP_ALIVE, PROXY_CONNECTION] {
        headers.remove(name);
    }
    let lengths = headers.get_all(header::CONTENT_LENGTH).iter().take(2).count();
    if lengths > 1
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
    headers.insert(X_ENVOY_UPSTREAM_SERVICE_TIME, HeaderValue::from(service_time));
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

    #[test]
    fn a_request_id_is_a_uuid_of_version_4() {
        assert_eq!(request_id(0, 0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(request_id(u64::MAX, u64::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(request_id(0x0123_4567_89ab_cdef, 0x0123_4567_89ab_cdef), "01234567-89ab-4def-8123-456789abcdef");
    }
}
