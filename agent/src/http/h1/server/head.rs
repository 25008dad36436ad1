//! A request's head: parsed, and checked on its raw bytes for what could be read in two ways.
//!
//! Before: [`super`], with what was read so far. After: the service, which sees only heads that passed. Pure. The rule is
//! RFC 9112 section 6.3 in its strict form: at most one Content-Length, of digits only, or one `Transfer-Encoding:
//! chunked`, never both. The values of a
//! head that passed are slices of what was read, or of one copy where more was read than the head.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request, StatusCode, Uri, Version};

use crate::http::field::{digits, lists, members};
use crate::http::refusal::Refusal;
use crate::http::spare;

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

/// A head that passed.
#[derive(Debug)]
pub struct Head {
    /// Method, target, version, headers. In an allocation of their own: whoever waits with them is small.
    pub parts: Box<Parts>,
    /// How its body ends.
    pub framing: Framing,
    /// Whether the client would go on with another request.
    pub keep_alive: bool,
    /// It waits for a `100 Continue` before it sends the body.
    pub expects: bool,
    /// It wants another protocol: what follows the head may be anything.
    pub upgrade: bool,
    /// It takes trailers.
    pub takes_trailers: bool,
}

/// What was found at the beginning of the bytes.
#[derive(Debug)]
pub enum Parsed {
    /// The head is not complete.
    Partial,
    /// A head that passed; it is no longer in the buffer.
    Complete(Head),
    /// A head that must not pass.
    Refused(Refusal),
}

/// Fields for which the parser has room on the stack; more are refused anyway, unless so configured.
const STACK_HEADERS: usize = 128;

/// The body of a 431.
const TOO_LARGE: &str = "Request Header Fields Too Large";

/// Takes the head at the beginning of `buffer` out of it, if it is there in full and may pass.
pub fn take(buffer: &mut BytesMut, limits: HeadLimits) -> Parsed {
    let read = std::mem::take(buffer).freeze();
    let (parsed, taken) = if limits.max_headers <= STACK_HEADERS {
        let mut headers = [const { MaybeUninit::uninit() }; STACK_HEADERS];
        parse(&read, limits, &mut headers[..limits.max_headers])
    } else {
        parse(&read, limits, &mut vec![MaybeUninit::uninit(); limits.max_headers])
    };
    if taken < read.len() {
        // Nobody else holds it: the head has a copy.
        *buffer = read.try_into_mut().unwrap_or_else(|read| BytesMut::from(&read[..]));
        buffer.advance(taken);
    }
    parsed
}

/// The head at the beginning of `bytes`, and how many of them it takes.
fn parse<'b>(
    read: &'b Bytes,
    limits: HeadLimits,
    headers: &mut [MaybeUninit<httparse::Header<'b>>],
) -> (Parsed, usize) {
    match parse_head(read, limits, headers) {
        Ok(Some((head, len))) => (Parsed::Complete(head), len),
        Ok(None) => (Parsed::Partial, 0),
        Err(refusal) => (Parsed::Refused(refusal), 0),
    }
}

fn parse_head<'b>(
    bytes: &'b Bytes,
    limits: HeadLimits,
    headers: &mut [MaybeUninit<httparse::Header<'b>>],
) -> Result<Option<(Head, usize)>, Refusal> {
    let mut request = httparse::Request::new(&mut []);
    let len = match request.parse_with_uninit_headers(bytes, headers) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() > limits.max_bytes => return Err(too_large()),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            return Err(Refusal::protocol(status, "http1.too_many_headers", TOO_LARGE));
        }
        Err(_) => return Err(syntax()),
    };
    if len > limits.max_bytes {
        return Err(too_large());
    }
    let path = request.path.unwrap_or_default();
    let method = request.method.unwrap_or_default();
    let framing = framing(&request).map_err(|refusal| refusal.of(method, path))?;
    target(method, path).map_err(|refusal| refusal.of(method, path))?;
    let head = build(&Kept::new(bytes, len), &request, framing).ok_or_else(|| syntax().of(method, path))?;
    Ok(Some((head, len)))
}

/// A head, of which the values of its fields are slices. It goes with the request; what was read behind it does not.
struct Kept<'b> {
    read: &'b [u8],
    kept: Bytes,
}

impl<'b> Kept<'b> {
    fn new(read: &'b Bytes, len: usize) -> Self {
        let kept = if len == read.len() { read.clone() } else { Bytes::copy_from_slice(&read[..len]) };
        Self { read, kept }
    }

    /// The same part of what is kept as `part` is of what was read; `None` when it is none.
    fn part(&self, part: &[u8]) -> Option<Bytes> {
        if part.is_empty() {
            return Some(Bytes::new());
        }
        let start = (part.as_ptr() as usize).checked_sub(self.read.as_ptr() as usize)?;
        let end = start.checked_add(part.len()).filter(|end| *end <= self.kept.len())?;
        Some(self.kept.slice(start..end))
    }
}

/// The head as a value; `None` when it is not one after all.
fn build(bytes: &Kept<'_>, parsed: &httparse::Request<'_, '_>, framing: Framing) -> Option<Head> {
    let http11 = parsed.version == Some(1);
    let mut headers = spare::headers(parsed.headers.len() + ADDED_HEADERS);
    let mut facts = Facts::default();
    for field in &*parsed.headers {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        facts.note(&name, field.value);
        let value = HeaderValue::from_maybe_shared(bytes.part(field.value)?).ok()?;
        headers.append(name, value);
    }
    if facts.upgrade != Upgrade::None && !(http11 && facts.upgrade == Upgrade::Wanted) {
        // May be ignored without harm (RFC 9110 section 7.8).
        headers.remove(header::UPGRADE);
    }
    let mut parts = Box::new(Request::new(()).into_parts().0);
    parts.method = Method::from_bytes(parsed.method?.as_bytes()).ok()?;
    parts.uri = Uri::from_maybe_shared(bytes.part(parsed.path?.as_bytes())?).ok()?;
    parts.version = if http11 { Version::HTTP_11 } else { Version::HTTP_10 };
    parts.headers = headers;
    Some(Head {
        parts,
        framing,
        keep_alive: !facts.close && (http11 || facts.keep_alive),
        expects: http11 && facts.expects,
        upgrade: http11 && facts.upgrade == Upgrade::Wanted,
        takes_trailers: facts.takes_trailers,
    })
}

/// Headers that the agent adds to a request, so that the map need not grow.
const ADDED_HEADERS: usize = 4;

/// What the headers say of the connection.
#[derive(Default)]
struct Facts {
    close: bool,
    keep_alive: bool,
    expects: bool,
    takes_trailers: bool,
    upgrade: Upgrade,
}

/// What a head says of other protocols.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Upgrade {
    /// Nothing.
    #[default]
    None,
    /// Offers only what may be ignored.
    Ignored,
    /// Names something else.
    Wanted,
}

impl Facts {
    fn note(&mut self, name: &HeaderName, value: &[u8]) {
        match *name {
            header::CONNECTION => {
                self.close |= lists(value, "close");
                self.keep_alive |= lists(value, "keep-alive");
            }
            header::EXPECT => self.expects = value.eq_ignore_ascii_case(b"100-continue"),
            header::TE => self.takes_trailers |= lists(value, "trailers"),
            header::UPGRADE if !members(value).all(is_ignorable) => self.upgrade = Upgrade::Wanted,
            header::UPGRADE if self.upgrade == Upgrade::None => self.upgrade = Upgrade::Ignored,
            _ => {}
        }
    }
}

fn syntax() -> Refusal {
    Refusal::protocol(StatusCode::BAD_REQUEST, "http1.codec_error", "Bad Request")
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
fn is_ignorable(protocol: &[u8]) -> bool {
    protocol.eq_ignore_ascii_case(b"h2c")
        || protocol.get(..4).is_some_and(|prefix| prefix.eq_ignore_ascii_case(b"TLS/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { max_bytes: 1024, max_headers: 10 };

    fn status(head: &str) -> u16 {
        match take(&mut BytesMut::from(head), LIMITS) {
            Parsed::Partial => 0,
            Parsed::Complete(..) => 200,
            Parsed::Refused(refusal) => refusal.status.as_u16(),
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

    fn head(text: &str) -> Head {
        match take(&mut BytesMut::from(text), LIMITS) {
            Parsed::Complete(head) => head,
            other => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn an_upgrade_that_may_be_ignored_is() {
        for (fields, wanted, kept) in [
            ("HTTP/1.1\r\nUpgrade: h2c\r\n", false, false),
            ("HTTP/1.1\r\nUpgrade: TLS/1.2, h2c\r\n", false, false),
            ("HTTP/1.1\r\nUpgrade: websocket\r\n", true, true),
            ("HTTP/1.1\r\nUpgrade: h2c, websocket\r\n", true, true),
            ("HTTP/1.1\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n", true, true),
            ("HTTP/1.0\r\nUpgrade: websocket\r\n", false, false),
        ] {
            let head = head(&format!("GET / {fields}\r\n"));
            let seen = (head.upgrade, head.parts.headers.contains_key(header::UPGRADE));
            assert_eq!(seen, (wanted, kept), "{fields}");
        }
    }

    #[test]
    fn whether_another_request_follows_is_the_clients_to_say() {
        for (expected, fields) in [
            (true, "HTTP/1.1\r\n"),
            (false, "HTTP/1.1\r\nConnection: x, Close\r\n"),
            (false, "HTTP/1.1\r\nConnection: close\r\nConnection: keep-alive\r\n"),
            (false, "HTTP/1.0\r\n"),
            (true, "HTTP/1.0\r\nConnection: Keep-Alive\r\n"),
        ] {
            assert_eq!(head(&format!("GET / {fields}\r\n")).keep_alive, expected, "{fields}");
        }
    }

    #[test]
    fn a_head_ends_with_its_empty_line() {
        let mut bytes = BytesMut::from(&b"\r\nGET /d?e HTTP/1.1\nHost:  h \nA:\n\nnext"[..]);
        let Parsed::Complete(head) = take(&mut bytes, LIMITS) else { panic!("a head") };
        assert_eq!(head.parts.uri, "/d?e");
        assert_eq!(
            (&head.parts.headers["host"], &head.parts.headers["a"]),
            (&"h".parse().expect("h"), &"".parse().expect(""))
        );
        assert_eq!(bytes, "next");
        assert!(matches!(take(&mut bytes, LIMITS), Parsed::Partial));
        assert_eq!(bytes, "next");
    }

    #[test]
    fn a_head_that_is_all_there_is_leaves_nothing_behind() {
        let mut bytes = BytesMut::from("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let Parsed::Complete(head) = take(&mut bytes, LIMITS) else { panic!("a head") };
        assert_eq!((head.parts.headers["host"].as_bytes(), bytes.len()), (&b"a"[..], 0));
    }

    #[test]
    fn what_is_refused_stays_where_it_is() {
        let mut bytes = BytesMut::from("G@T / HTTP/1.1\r\n\r\nrest");
        assert!(matches!(take(&mut bytes, LIMITS), Parsed::Refused(_)));
        assert_eq!(bytes, "G@T / HTTP/1.1\r\n\r\nrest");
    }
}
