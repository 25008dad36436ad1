//! The checks that a request passes before it is routed, in Envoy's order (`ConnectionManagerImpl::decodeHeaders`).
//!
//! Before: the codecs, which have seen to the framing. After: `service`, which routes what passed. Changes
//! the head only where the checks themselves do: one authority, one spelling of the path, no hop-by-hop headers.

use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{Method, StatusCode, Uri, Version};

use super::HttpConnectionManager;
use super::headers::{self, remove_hop_by_hop, sanitize_request};
use super::path::{Spelling, respell};
use super::refusal::Refusal;
use super::route::decide::RequestFacts;
use crate::workload::Workload;

/// A request that passed.
#[derive(Debug)]
pub struct Checked {
    /// Host, or `:authority`; also in `host` of the headers.
    pub authority: HeaderValue,
    /// As it is routed.
    pub path: PathAndQuery,
    /// The `upgrade` header, when the client may and wants to change the protocol.
    pub upgrade: Option<HeaderValue>,
}

impl Checked {
    /// The authority as text; it was checked to be some.
    pub fn authority(&self) -> &str {
        self.authority.to_str().unwrap_or_default()
    }

    /// What the routes see of the request with this head. Requests that can be read here came without TLS.
    pub fn facts<'a>(&'a self, head: &'a Parts, random: u64, source_pod: Option<&'a Workload>) -> RequestFacts<'a> {
        RequestFacts {
            method: &head.method,
            scheme: "http",
            authority: self.authority(),
            path_and_query: self.path.as_str(),
            headers: &head.headers,
            random,
            source_pod,
        }
    }
}

fn bad_request(details: &'static str) -> Refusal {
    Refusal::request(StatusCode::BAD_REQUEST, details, "").closing()
}

fn invalid_authority() -> Refusal {
    Refusal::request(StatusCode::BAD_REQUEST, "invalid_authority", "Bad Request").closing()
}

/// Checks `head`; a body follows it if `body`.
///
/// # Errors
/// What the client is told instead.
pub fn check(manager: &HttpConnectionManager, head: &mut Parts, body: Body) -> Result<Checked, Refusal> {
    let http1 = head.version < Version::HTTP_2;
    if head.version == Version::HTTP_10 && !manager.accept_http_10 {
        return Err(Refusal::request(StatusCode::UPGRADE_REQUIRED, "low_version", "Upgrade Required").closing());
    }
    if !http1 {
        check_size(manager, head)?;
    }
    let authority = authority(head, manager)?;
    if head.method == Method::CONNECT {
        return Err(Refusal::request(StatusCode::FORBIDDEN, "upgrade_failed", "").closing());
    }
    let path = path(&head.uri, manager)?;
    let upgrade = if http1 { upgrade(manager, &head.headers, body)? } else { None };
    remove_hop_by_hop(&mut head.headers)?;
    sanitize_request(&mut head.headers);
    if head.uri.authority().is_some() || manager.strip_any_host_port {
        head.headers.insert(header::HOST, authority.clone());
    }
    Ok(Checked { authority, path, upgrade })
}

/// Whether a body follows the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// No.
    Absent,
    /// Yes.
    Follows,
}

/// HTTP/1's limits were the parser's to enforce.
fn check_size(manager: &HttpConnectionManager, head: &Parts) -> Result<(), Refusal> {
    let refused = |details| Err(Refusal::protocol(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, details, ""));
    // Each field counts 32 bytes more, as in HTTP/2's SETTINGS_MAX_HEADER_LIST_SIZE.
    let fields: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
    let path = head.uri.path_and_query().map_or(0, |path| path.as_str().len());
    if fields + path > manager.max_request_headers_kb as usize * 1024 {
        return refused("http2.headers_too_large");
    }
    if head.headers.len() > manager.max_headers_count as usize {
        return refused("http2.too_many_headers");
    }
    Ok(())
}

/// Whether it can be an authority, without user information.
fn is_valid(authority: &[u8]) -> bool {
    // Names, IPv4 addresses and ports, which most are made of, need no second look; parsing would copy them.
    let (host, port) = match authority.iter().position(|byte| *byte == b':') {
        Some(colon) => (&authority[..colon], &authority[colon + 1..]),
        None => (authority, &b""[..]),
    };
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    if !host.is_empty() && host.iter().all(plain) && port.len() <= 5 && port.iter().all(u8::is_ascii_digit) {
        return true;
    }
    Authority::try_from(authority).is_ok_and(|parsed| !parsed.as_str().contains('@'))
}

/// The one authority of the request.
fn authority(head: &Parts, manager: &HttpConnectionManager) -> Result<HeaderValue, Refusal> {
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(Refusal::protocol(StatusCode::BAD_REQUEST, "http1.duplicate_host", "Bad Request"));
    }
    let connect = head.method == Method::CONNECT;
    let of_target = head.uri.authority().filter(|_| !connect || host.is_none());
    let authority = match (of_target, host) {
        // HTTP/1: RFC 9112 section 3.2.2, the target's wins. HTTP/2: RFC 9113 section 8.3.1, they must not differ.
        (Some(authority), host) => {
            if head.version == Version::HTTP_2
                && host.is_some_and(|host| !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()))
            {
                return Err(bad_request("http2.authority_mismatch"));
            }
            if head.version < Version::HTTP_2 && head.uri.scheme_str().is_some_and(|scheme| scheme == "https") {
                return Err(Refusal::request(StatusCode::FORBIDDEN, "http1.mismatched_scheme", "").closing());
            }
            HeaderValue::from_str(authority.as_str()).map_err(|_| invalid_authority())?
        }
        (None, Some(host)) => host.clone(),
        (None, None) => return Err(bad_request("missing_host_header")),
    };
    if authority.is_empty() {
        return Err(bad_request("missing_host_header"));
    }
    if !is_valid(authority.as_bytes()) {
        return Err(invalid_authority());
    }
    if manager.strip_any_host_port { without_port(&authority) } else { Ok(authority) }
}

fn without_port(authority: &HeaderValue) -> Result<HeaderValue, Refusal> {
    let text = authority.to_str().map_err(|_| invalid_authority())?;
    match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => HeaderValue::from_str(host).map_err(|_| invalid_authority()),
        _ => Ok(authority.clone()),
    }
}

fn path(uri: &Uri, manager: &HttpConnectionManager) -> Result<PathAndQuery, Refusal> {
    let not_found = |details| Refusal::request(StatusCode::NOT_FOUND, details, "");
    let path = uri.path_and_query().ok_or_else(|| not_found("missing_path_rejected"))?;
    if path.as_str().is_empty() {
        return Err(not_found("missing_path_rejected"));
    }
    if !path.as_str().starts_with('/') {
        // `OPTIONS *` and the like.
        return Err(not_found("absolute_path_rejected"));
    }
    let spelling = Spelling { normalize: manager.normalize_path, merge_slashes: manager.merge_slashes };
    if !spelling.normalize && !spelling.merge_slashes {
        return Ok(path.clone());
    }
    let failed = || bad_request("path_normalization_failed");
    match respell(path.as_str(), spelling).map_err(|_| failed())? {
        None => Ok(path.clone()),
        Some(respelled) => PathAndQuery::try_from(respelled).map_err(|_| failed()),
    }
}

/// What the client wants to change to, if it may.
fn upgrade(manager: &HttpConnectionManager, headers: &HeaderMap, body: Body) -> Result<Option<HeaderValue>, Refusal> {
    let Some(upgrade) = headers.get(header::UPGRADE) else { return Ok(None) };
    if !headers::connection_says_upgrade(headers) {
        return Ok(None);
    }
    let allowed = |wanted: &[u8]| manager.upgrades.iter().any(|kind| wanted.eq_ignore_ascii_case(kind.as_bytes()));
    let several = headers.get_all(header::UPGRADE).iter().nth(1).is_some();
    if several || !allowed(upgrade.as_bytes().trim_ascii()) {
        return Err(Refusal::request(StatusCode::FORBIDDEN, "upgrade_failed", "").closing());
    }
    if body == Body::Follows {
        // Where the body ends and the new protocol begins would be read in two ways.
        return Err(bad_request("upgrade_with_body_rejected"));
    }
    Ok(Some(upgrade.clone()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_needs_no_second_look_is_what_the_parser_takes(authority in "[a-zA-Z0-9._:@\\[\\]/-]{0,12}") {
            let parsed = Authority::try_from(authority.as_bytes()).is_ok_and(|parsed| !parsed.as_str().contains('@'));
            prop_assert_eq!(is_valid(authority.as_bytes()), parsed, "{}", authority);
        }
    }
}
