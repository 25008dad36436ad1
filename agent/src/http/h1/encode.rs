//! Heads and framing of HTTP/1.1 messages as bytes: what both sides of the agent write.
//!
//! Before: a head and what is known of its body. After: a buffer that goes to the socket, and the [`Framing`] in which
//! the body follows. Knows nothing of sockets. Names are written in lower case and in the order of the map.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Version};
use http_body::Body;

use crate::http::date;
use crate::http::field::lists;

/// What is known of a body before it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// There is none.
    Absent,
    /// So many bytes.
    Known(u64),
    /// It ends when it ends.
    Unknown,
}

impl Length {
    /// Of `body`.
    pub fn of(body: &impl Body) -> Self {
        if body.is_end_stream() {
            return Self::Absent;
        }
        body.size_hint().exact().map_or(Self::Unknown, Self::Known)
    }
}

/// How a body is written behind its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Not at all.
    None,
    /// As it is: so many bytes.
    Length(u64),
    /// In chunks.
    Chunked,
    /// As it is, until the connection closes.
    UntilClose,
}

/// What a response's head depends on besides status and headers.
#[derive(Clone, Copy, Debug)]
pub struct ResponseTo<'a> {
    /// The request's method.
    pub method: &'a Method,
    /// What the client speaks.
    pub version: Version,
    /// Whether another request may follow.
    pub keep_alive: bool,
}

/// Writes a response's head. When the connection does not stay open, the headers say so, unless a client of HTTP/1.0
/// expects nothing else; when it does, such a client is told.
pub fn response(
    out: &mut Vec<u8>,
    to: ResponseTo<'_>,
    status: StatusCode,
    headers: &HeaderMap,
    length: Length,
) -> Framing {
    out.reserve(ROOM_BYTES);
    match (to.version, status) {
        (Version::HTTP_11, StatusCode::OK) => out.extend_from_slice(b"HTTP/1.1 200 OK\r\n"),
        (version, status) => {
            out.extend_from_slice(if version == Version::HTTP_10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
            out.extend_from_slice(status.as_str().as_bytes());
            out.push(b' ');
            // Many parsers expect a reason.
            out.extend_from_slice(status.canonical_reason().unwrap_or("<none>").as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
    let may = May::of(to.method, status);
    let head = *to.method == Method::HEAD;
    let seen = fields(out, headers, |name, bytes| match *name {
        header::TRAILER => may.body && to.version != Version::HTTP_10,
        _ => may.content_length && (head || length != Length::Absent || bytes == 0),
    });
    let until_close = to.version == Version::HTTP_10 && length == Length::Unknown && seen.content_length.is_none();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        connection(out, ResponseTo { keep_alive: to.keep_alive && !until_close, ..to }, headers);
    }
    let framing = response_framing(out, to, may, seen.content_length, length);
    if !seen.date {
        out.extend_from_slice(b"date: ");
        date::with(|value| out.extend_from_slice(value.as_bytes()));
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    framing
}

/// Writes a request's head, as HTTP/1.1. A `content-length` among the headers is the body's.
pub fn request(
    out: &mut Vec<u8>,
    method: &Method,
    path: &PathAndQuery,
    headers: &HeaderMap,
    length: Length,
) -> Framing {
    out.reserve(ROOM_BYTES);
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(path.as_str().as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let seen = fields(out, headers, |_, _| true);
    let framing = match (length, seen.content_length) {
        (Length::Absent, _) => Framing::None,
        (Length::Known(bytes), Some(_)) => Framing::Length(bytes),
        (Length::Unknown, Some(bytes)) => Framing::Length(bytes),
        (Length::Known(bytes), None) => {
            content_length(out, bytes);
            Framing::Length(bytes)
        }
        (Length::Unknown, None) => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            Framing::Chunked
        }
    };
    out.extend_from_slice(b"\r\n");
    framing
}

/// The interim response that asks for the body.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The last chunk, without trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// What stands behind a chunk's data.
pub const CHUNK_END: &[u8] = b"\r\n";

/// What stands before a chunk's data of so many bytes, which is never 0.
pub fn chunk_start(out: &mut Vec<u8>, bytes: usize) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let digits = (bytes | 1).ilog2() / 4;
    for digit in (0..=digits).rev() {
        out.push(HEX[(bytes >> (4 * digit)) & 0xf]);
    }
    out.extend_from_slice(b"\r\n");
}

/// The last chunk with those of `trailers` that the head announced, if they may stand there at all.
pub fn trailers(out: &mut Vec<u8>, trailers: &HeaderMap, announced: &[HeaderValue]) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers {
        if may_trail(name) && announced.iter().any(|names| lists(names.as_bytes(), name.as_str())) {
            field(out, name, value);
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// RFC 9110 section 6.5.1: what the framing, the routing or the meaning of the message depends on comes before the body.
fn may_trail(name: &HeaderName) -> bool {
    ![
        header::AUTHORIZATION,
        header::CACHE_CONTROL,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::HOST,
        header::MAX_FORWARDS,
        header::SET_COOKIE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::TE,
    ]
    .contains(name)
}

/// What [`fields`] came by.
struct Seen {
    content_length: Option<u64>,
    date: bool,
}

/// Writes all headers but those of the framing that `keep` refuses.
fn fields(out: &mut Vec<u8>, headers: &HeaderMap, keep: impl Fn(&HeaderName, u64) -> bool) -> Seen {
    let mut seen = Seen { content_length: None, date: false };
    for (name, value) in headers {
        if *name == header::CONTENT_LENGTH {
            let length = std::str::from_utf8(value.as_bytes()).ok().and_then(|text| text.parse().ok());
            match length {
                Some(length) if seen.content_length.is_none() && keep(name, length) => {
                    seen.content_length = Some(length);
                }
                _ => continue,
            }
        } else if *name == header::DATE {
            seen.date = true;
        } else if *name == header::TRANSFER_ENCODING || (*name == header::TRAILER && !keep(name, 0)) {
            continue;
        }
        field(out, name, value);
    }
    seen
}

fn field(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn content_length(out: &mut Vec<u8>, bytes: u64) {
    out.extend_from_slice(b"content-length: ");
    decimal(out, bytes);
    out.extend_from_slice(b"\r\n");
}

fn decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// What most heads fit into, with a small body behind them.
const ROOM_BYTES: usize = 1000;

/// What a response may have by its status and the request's method (RFC 9110 section 6.4.1, RFC 9112 section 6.1).
#[derive(Clone, Copy)]
struct May {
    body: bool,
    content_length: bool,
}

impl May {
    fn of(method: &Method, status: StatusCode) -> Self {
        let tunnel = *method == Method::CONNECT && status.is_success();
        let bare = tunnel || status.is_informational() || matches!(status.as_u16(), 204 | 304);
        Self { body: !bare && *method != Method::HEAD, content_length: !bare }
    }
}

fn connection(out: &mut Vec<u8>, to: ResponseTo<'_>, headers: &HeaderMap) {
    let value: &[u8] = match (to.version, to.keep_alive) {
        (Version::HTTP_10, true) => b"connection: keep-alive\r\n",
        (Version::HTTP_10, false) | (_, true) => return,
        (_, false) => b"connection: close\r\n",
    };
    if !headers.contains_key(header::CONNECTION) {
        out.extend_from_slice(value);
    }
}

/// Writes the header that says how the body ends, unless one of `length` was written already.
fn response_framing(out: &mut Vec<u8>, to: ResponseTo<'_>, may: May, written: Option<u64>, length: Length) -> Framing {
    let framing = match (length, written) {
        (Length::Unknown, None) if to.version == Version::HTTP_10 => Framing::UntilClose,
        (Length::Unknown, None) if may.body => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            Framing::Chunked
        }
        (Length::Unknown, None) => Framing::None,
        (Length::Unknown, Some(bytes)) | (Length::Known(bytes), Some(_)) => Framing::Length(bytes),
        (Length::Absent | Length::Known(0), None) => {
            if may.body {
                out.extend_from_slice(b"content-length: 0\r\n");
            }
            Framing::None
        }
        (Length::Known(bytes), None) => {
            if may.content_length {
                content_length(out, bytes);
            }
            Framing::Length(bytes)
        }
        (Length::Absent, Some(_)) => Framing::None,
    };
    if may.body { framing } else { Framing::None }
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

    fn answer(
        method: Method,
        version: Version,
        keep_alive: bool,
        status: u16,
        of: &[(&'static str, &'static str)],
        length: Length,
    ) -> (String, Framing) {
        let mut out = Vec::new();
        let to = ResponseTo { method: &method, version, keep_alive };
        let mut all = headers(of);
        all.insert("date", HeaderValue::from_static("now"));
        let framing = response(&mut out, to, StatusCode::from_u16(status).expect("status"), &all, length);
        (String::from_utf8(out).expect("text").replace("date: now\r\n", ""), framing)
    }

    #[test]
    fn a_response_says_how_its_body_ends() {
        use Length::{Absent, Known, Unknown};
        let (get, head, old, new) = (Method::GET, Method::HEAD, Version::HTTP_10, Version::HTTP_11);
        let five: &[_] = &[("content-length", "5")];
        for (method, version, status, of, length, expected, framing) in [
            (&get, new, 200, five, Known(5), "content-length: 5\r\n", Framing::Length(5)),
            (&get, new, 200, &[], Known(5), "content-length: 5\r\n", Framing::Length(5)),
            (&get, new, 200, &[], Absent, "content-length: 0\r\n", Framing::None),
            (&get, new, 200, &[], Unknown, "transfer-encoding: chunked\r\n", Framing::Chunked),
            (&get, old, 200, &[], Unknown, "", Framing::UntilClose),
            (&get, new, 204, five, Absent, "", Framing::None),
            (&get, new, 304, five, Absent, "", Framing::None),
            (&head, new, 200, five, Absent, "content-length: 5\r\n", Framing::None),
            (&head, new, 200, &[], Known(5), "content-length: 5\r\n", Framing::None),
            (&head, new, 200, &[], Absent, "", Framing::None),
            (&head, new, 200, &[], Unknown, "", Framing::None),
        ] {
            let seen = answer(method.clone(), version, version == new, status, of, length);
            let body = seen.0.split_once("\r\n").expect("a line").1;
            assert_eq!((body, seen.1), (format!("{expected}\r\n").as_str(), framing), "{method} {status} {length:?}");
        }
    }

    #[test]
    fn a_connection_that_ends_is_announced_to_whoever_expects_another_request() {
        for (version, keep_alive, expected) in [
            (Version::HTTP_11, true, "HTTP/1.1 404 Not Found\r\n"),
            (Version::HTTP_11, false, "HTTP/1.1 404 Not Found\r\nconnection: close\r\n"),
            (Version::HTTP_10, true, "HTTP/1.0 404 Not Found\r\nconnection: keep-alive\r\n"),
            (Version::HTTP_10, false, "HTTP/1.0 404 Not Found\r\n"),
        ] {
            let (text, _) = answer(Method::GET, version, keep_alive, 404, &[], Length::Absent);
            assert_eq!(text, format!("{expected}content-length: 0\r\n\r\n"));
        }
    }

    #[test]
    fn a_response_has_a_date() {
        let mut out = Vec::new();
        let to = ResponseTo { method: &Method::GET, version: Version::HTTP_11, keep_alive: true };
        response(&mut out, to, StatusCode::OK, &HeaderMap::new(), Length::Absent);
        let text = String::from_utf8(out).expect("text");
        let date = text.split_once("date: ").and_then(|(_, rest)| rest.split_once("\r\n\r\n")).expect("a date").0;
        let date = httpdate::parse_http_date(date).expect("a date");
        assert!(date.elapsed().expect("past") < std::time::Duration::from_secs(60));
    }

    #[test]
    fn a_request_says_how_its_body_ends() {
        for (of, length, expected, framing) in [
            (&[][..], Length::Absent, "", Framing::None),
            (&[("content-length", "0")], Length::Absent, "content-length: 0\r\n", Framing::None),
            (&[("content-length", "3")], Length::Known(3), "content-length: 3\r\n", Framing::Length(3)),
            (&[], Length::Known(3), "content-length: 3\r\n", Framing::Length(3)),
            (&[], Length::Unknown, "transfer-encoding: chunked\r\n", Framing::Chunked),
        ] {
            let mut out = Vec::new();
            let path = PathAndQuery::from_static("/a?b");
            assert_eq!(request(&mut out, &Method::POST, &path, &headers(of), length), framing);
            assert_eq!(String::from_utf8(out).expect("text"), format!("POST /a?b HTTP/1.1\r\n{expected}\r\n"));
        }
    }

    #[test]
    fn chunks_are_framed_in_hexadecimal() {
        for bytes in [1, 9, 10, 15, 16, 255, 256, 65_535, 1_048_576] {
            let mut out = Vec::new();
            chunk_start(&mut out, bytes);
            assert_eq!(String::from_utf8(out).expect("text"), format!("{bytes:X}\r\n"));
        }
    }

    #[test]
    fn only_announced_trailers_that_change_nothing_are_sent() {
        let mut out = Vec::new();
        let all = headers(&[("x-sum", "1"), ("x-other", "2"), ("host", "3"), ("x-last", "4")]);
        trailers(&mut out, &all, &[HeaderValue::from_static("X-Sum, host"), HeaderValue::from_static("x-last")]);
        assert_eq!(out, b"0\r\nx-sum: 1\r\nx-last: 4\r\n\r\n");
    }
}
