//! The check of an HTTP/1 request's head on its raw bytes: what a parser downstream of it would silently repair.
//!
//! Before: [`super::gate`], which holds a head back until it is complete. After: the codec, which sees only heads that
//! passed. Pure. The rule it enforces is RFC 9112 section 6.3 in its strict form: at most one Content-Length, of
//! digits only, or one `Transfer-Encoding: chunked`, never both.

use std::mem::MaybeUninit;
use std::ops::Range;

use http::StatusCode;

use super::refusal::Refusal;

/// How many bytes and fields a head may have.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Of the whole head, request line included.
    pub max_bytes: usize,
    /// Header fields.
    pub max_headers: usize,
}

/// How the end of a request's body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes; 0 without a Content-Length.
    Length(u64),
    /// By chunks.
    Chunked,
}

/// What a head asks of the connection beyond the request itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// No `upgrade` header, or one that names nothing that is refused or known.
    None,
    /// Names a configured type: what follows the head may be anything.
    Wanted,
    /// Names something that may be ignored (RFC 9110 section 7.8); the header's name is at these bytes.
    Ignored(Vec<Range<usize>>),
}

/// What was found at the beginning of the bytes.
#[derive(Debug, PartialEq)]
pub enum Inspected {
    /// The head is not complete.
    Partial,
    /// A head that may pass.
    Complete {
        /// Its length, with the empty line at its end.
        len: usize,
        /// How its body ends.
        framing: Framing,
        /// Whether the connection may change its protocol.
        upgrade: Upgrade,
    },
    /// A head that must not pass.
    Refused(Refusal),
}

/// Fields for which the parser has room on the stack; more are refused anyway, unless so configured.
const STACK_HEADERS: usize = 128;

/// The body of a 431.
const TOO_LARGE: &str = "Request Header Fields Too Large";

/// Looks at the head at the beginning of `bytes`.
pub fn inspect(bytes: &[u8], limits: HeadLimits) -> Inspected {
    if limits.max_headers <= STACK_HEADERS {
        let mut headers = [const { MaybeUninit::uninit() }; STACK_HEADERS];
        inspect_with(bytes, limits, &mut headers[..limits.max_headers])
    } else {
        inspect_with(bytes, limits, &mut vec![MaybeUninit::uninit(); limits.max_headers])
    }
}

fn inspect_with<'b>(
    bytes: &'b [u8],
    limits: HeadLimits,
    headers: &mut [MaybeUninit<httparse::Header<'b>>],
) -> Inspected {
    let mut request = httparse::Request::new(&mut []);
    let len = match request.parse_with_uninit_headers(bytes, headers) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() > limits.max_bytes => return refused(too_large()),
        Ok(httparse::Status::Partial) => return Inspected::Partial,
        Err(httparse::Error::TooManyHeaders) => {
            return refused(Refusal::protocol(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "http1.too_many_headers",
                TOO_LARGE,
            ));
        }
        Err(_) => return refused(Refusal::protocol(StatusCode::BAD_REQUEST, "http1.codec_error", "Bad Request")),
    };
    if len > limits.max_bytes {
        return refused(too_large());
    }
    let path = request.path.unwrap_or_default();
    let method = request.method.unwrap_or_default();
    match framing(&request).and_then(|framing| target(method, path).map(|()| framing)) {
        Ok(framing) => Inspected::Complete { len, framing, upgrade: upgrade(bytes, &request) },
        Err(refusal) => Inspected::Refused(refusal.of(method, path)),
    }
}

fn refused(refusal: Refusal) -> Inspected {
    Inspected::Refused(refusal)
}

fn too_large() -> Refusal {
    Refusal::protocol(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "http1.headers_too_large", TOO_LARGE)
}

/// The framing that the head announces, if there is only one way to read it.
fn framing(request: &httparse::Request<'_, '_>) -> Result<Framing, Refusal> {
    let mut length = None;
    let mut lengths = 0_usize;
    let mut codings = 0_usize;
    let mut chunked = false;
    for header in &*request.headers {
        if header.name.eq_ignore_ascii_case("content-length") {
            lengths += 1;
            length = digits(header.value);
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            codings += 1;
            chunked = header.value.eq_ignore_ascii_case(b"chunked");
        }
    }
    let bad_request = |details| Err(Refusal::protocol(StatusCode::BAD_REQUEST, details, "Bad Request"));
    match (codings, lengths, length) {
        (0, 0, _) => Ok(Framing::Length(0)),
        (0, 1, Some(length)) => Ok(Framing::Length(length)),
        (0, _, _) => bad_request("http1.invalid_content_length"),
        (_, 1.., _) => bad_request("http1.content_length_and_chunked_not_allowed"),
        // RFC 9112 section 6.1: an HTTP/1.0 message with Transfer-Encoding has faulty framing.
        (_, 0, _) if request.version == Some(0) => bad_request("http1.transfer_encoding_not_allowed"),
        (1, 0, _) if chunked => Ok(Framing::Chunked),
        _ => Err(Refusal::protocol(StatusCode::NOT_IMPLEMENTED, "http1.invalid_transfer_encoding", "Not Implemented")),
    }
}

/// A non-empty run of digits that fits.
fn digits(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// The codec parses the target with [`http::Uri`], which is stricter than the tokenizer and silently drops a fragment.
fn target(method: &str, path: &str) -> Result<(), Refusal> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~%?=&+,;:@!$'()*".contains(&byte);
    if path.starts_with('/') && path.len() < usize::from(u16::MAX) && path.bytes().all(plain) {
        return Ok(());
    }
    let invalid = || Err(Refusal::protocol(StatusCode::BAD_REQUEST, "http1.invalid_url", "Bad Request"));
    if !path.is_ascii() {
        return invalid();
    }
    if path.contains('#') {
        return Err(Refusal::request(StatusCode::BAD_REQUEST, "path_normalization_failed", ""));
    }
    let has_a_form = path.starts_with('/') || path == "*" || path.contains("://") || method == "CONNECT";
    if !has_a_form {
        // None of the four of RFC 9112 section 3.2: a relative path.
        return Err(Refusal::request(StatusCode::NOT_FOUND, "absolute_path_rejected", ""));
    }
    match http::Uri::try_from(path) {
        // A proxy for anything but HTTP it is not.
        Ok(uri) if uri.scheme().is_some_and(|scheme| !matches!(scheme.as_str(), "http" | "https")) => invalid(),
        Ok(_) => Ok(()),
        Err(_) => invalid(),
    }
}

/// Upgrades that a proxy may ignore without harm: clients offer them on ordinary requests.
fn is_ignorable(value: &[u8]) -> bool {
    let protocol = value.trim_ascii();
    protocol.eq_ignore_ascii_case(b"h2c")
        || protocol.get(..4).is_some_and(|prefix| prefix.eq_ignore_ascii_case(b"TLS/"))
}

fn upgrade(bytes: &[u8], request: &httparse::Request<'_, '_>) -> Upgrade {
    let upgrades = || request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("upgrade"));
    if upgrades().next().is_none() {
        return Upgrade::None;
    }
    if request.version == Some(1) && upgrades().any(|header| !header.value.split(|b| *b == b',').all(is_ignorable)) {
        return Upgrade::Wanted;
    }
    let start = bytes.as_ptr() as usize;
    let range = |name: &str| {
        let at = name.as_ptr() as usize - start;
        at..at + name.len()
    };
    Upgrade::Ignored(upgrades().map(|header| range(header.name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { max_bytes: 1024, max_headers: 10 };

    fn status(head: &str) -> u16 {
        match inspect(head.as_bytes(), LIMITS) {
            Inspected::Partial => 0,
            Inspected::Complete { .. } => 200,
            Inspected::Refused(refusal) => refusal.status.as_u16(),
        }
    }

    #[test]
    fn a_head_that_can_be_read_in_two_ways_is_refused() {
        for (expected, head) in [
            (200, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
            (200, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"),
            (200, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n"),
            (200, "GET http://a/b?c HTTP/1.1\r\nHost: a\r\n\r\n"),
            (0, "GET / HTTP/1.1\r\nHost: a\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n"),
            (501, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
            (501, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n"),
            (501, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n"),
            (501, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"),
            (400, "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"),
            (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: a\r\nX Y: a\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: a\r\n: a\r\n\r\n"),
            (400, "GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
            (400, "GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
            (400, "GET /\r HTTP/1.1\r\nHost: a\r\n\r\n"),
            (400, "G@T / HTTP/1.1\r\nHost: a\r\n\r\n"),
            (400, "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n"),
            (404, "GET a/b HTTP/1.1\r\nHost: a\r\n\r\n"),
            (400, "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n"),
            (400, "GET ftp://a/b HTTP/1.1\r\nHost: a\r\n\r\n"),
            (200, "GET HTTP://a/b HTTP/1.1\r\nHost: a\r\n\r\n"),
        ] {
            assert_eq!(status(head), expected, "{head:?}");
        }
    }

    #[test]
    fn a_head_beyond_the_limits_is_refused() {
        let wide = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(11));
        assert_eq!(status(&wide), 431);
        let long = format!("GET / HTTP/1.1\r\na: {}", "b".repeat(1024));
        assert_eq!(status(&long), 431);
    }

    #[test]
    fn an_upgrade_that_may_be_ignored_is_found_by_its_name() {
        let head = "GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n";
        match inspect(head.as_bytes(), LIMITS) {
            Inspected::Complete { upgrade: Upgrade::Ignored(names), .. } => assert_eq!(names, vec![16..23]),
            other => panic!("{other:?}"),
        }
        let head = b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n";
        assert!(matches!(inspect(head, LIMITS), Inspected::Complete { upgrade: Upgrade::Wanted, .. }));
    }
}
