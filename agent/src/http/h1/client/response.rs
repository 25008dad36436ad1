//! The head of a response, out of its bytes.
//!
//! Pure. A head passes only if it has one meaning: what is ambiguous about where the body ends is refused, because
//! whoever is misled reads the next response wrong (RFC 9112 sections 6.3 and 11).

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};

use crate::http::field::{digits, lists, members};
use crate::http::h1::decode::Decoder;
use crate::http::spare;

/// Fields of one head: hyper's limit, and Envoy's default.
const MAX_HEADERS: usize = 100;

/// Headers that the agent adds to a response, so that the map need not grow.
const ADDED_HEADERS: usize = 4;

/// What the response belongs to.
#[derive(Clone, Copy, Debug)]
pub struct RequestKind<'a> {
    /// Its method.
    pub method: &'a Method,
    /// It asks for an upgrade.
    pub upgrade: bool,
}

/// A complete head.
#[derive(Debug)]
pub struct Head {
    /// The status; never 1xx but 101.
    pub status: StatusCode,
    /// As they came.
    pub headers: HeaderMap,
    /// Whether another request may follow.
    pub keep_alive: bool,
    /// Takes the body out.
    pub decoder: Decoder,
}

/// What stands at the beginning of the bytes.
#[derive(Debug)]
pub enum Parsed {
    /// Not all of a head.
    Partial,
    /// An interim response of so many bytes: the final one follows.
    Interim(usize),
    /// A head of so many bytes.
    Head(usize, Head),
}

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not HTTP/1.
    #[error("malformed: {0}")]
    Malformed(#[source] httparse::Error),
    /// A name or value that no header can have.
    #[error("a malformed header")]
    Header,
    /// Both lengths, two lengths, no number.
    #[error("the body's length is ambiguous")]
    AmbiguousLength,
    /// Anything but `chunked`, or in HTTP/1.0.
    #[error("a transfer encoding that is not supported")]
    TransferEncoding,
    /// A 101 that nobody asked for.
    #[error("an upgrade that was not asked for")]
    Upgrade,
}

/// Parses the head at the beginning of `bytes`.
///
/// # Errors
/// See [`ParseError`].
pub fn parse(bytes: &[u8], to: RequestKind<'_>) -> Result<Parsed, ParseError> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut response, bytes, &mut fields)
        .map_err(ParseError::Malformed)?;
    let httparse::Status::Complete(len) = parsed else { return Ok(Parsed::Partial) };
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(ParseError::Malformed(httparse::Error::Status))?;
    if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Parsed::Interim(len));
    }
    let http11 = response.version == Some(1);
    let mut reading = Reading { keep_alive: http11, ..Reading::default() };
    let mut headers = spare::headers(response.headers.len() + ADDED_HEADERS);
    let head = Bytes::copy_from_slice(&bytes[..len]);
    for field in response.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| ParseError::Header)?;
        let start = field.value.as_ptr().addr() - bytes.as_ptr().addr();
        let value = HeaderValue::from_maybe_shared(head.slice(start..start + field.value.len()));
        let value = value.map_err(|_| ParseError::Header)?;
        reading.note(&name, value.as_bytes())?;
        headers.append(name, value);
    }
    let decoder = reading.decoder(to, status, http11)?;
    Ok(Parsed::Head(len, Head { status, headers, keep_alive: reading.keep_alive, decoder }))
}

/// What the headers say about the connection and the body.
#[derive(Default)]
struct Reading {
    keep_alive: bool,
    close: bool,
    content_length: Option<u64>,
    transfer_encodings: usize,
    chunked: bool,
}

impl Reading {
    fn note(&mut self, name: &HeaderName, value: &[u8]) -> Result<(), ParseError> {
        if *name == header::CONNECTION {
            // Once it says that it closes, nothing undoes it.
            self.close |= lists(value, "close");
            self.keep_alive = !self.close && (self.keep_alive || lists(value, "keep-alive"));
        } else if *name == header::CONTENT_LENGTH {
            for length in members(value) {
                let length = digits(length).ok_or(ParseError::AmbiguousLength)?;
                if self.content_length.is_some_and(|other| other != length) {
                    return Err(ParseError::AmbiguousLength);
                }
                self.content_length = Some(length);
            }
        } else if *name == header::TRANSFER_ENCODING {
            self.transfer_encodings += 1;
            self.chunked = value.trim_ascii().eq_ignore_ascii_case(b"chunked");
        }
        Ok(())
    }

    /// RFC 9112 section 6.3.
    fn decoder(&self, to: RequestKind<'_>, status: StatusCode, http11: bool) -> Result<Decoder, ParseError> {
        let encoded = self.transfer_encodings > 0;
        if encoded && self.content_length.is_some() {
            return Err(ParseError::AmbiguousLength);
        }
        match status {
            StatusCode::SWITCHING_PROTOCOLS if !to.upgrade => return Err(ParseError::Upgrade),
            StatusCode::SWITCHING_PROTOCOLS | StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED => {
                return Ok(Decoder::length(0));
            }
            _ if *to.method == Method::HEAD => return Ok(Decoder::length(0)),
            _ => {}
        }
        match (encoded, self.content_length) {
            (true, _) if http11 && self.chunked && self.transfer_encodings == 1 => Ok(Decoder::chunked()),
            (true, _) => Err(ParseError::TransferEncoding),
            (false, Some(length)) => Ok(Decoder::length(length)),
            (false, None) => Ok(Decoder::until_close()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(head: &str, method: Method, upgrade: bool) -> Result<(u16, bool, Option<u64>), ParseError> {
        match parse(head.as_bytes(), RequestKind { method: &method, upgrade })? {
            Parsed::Head(len, head_read) => {
                assert_eq!(len, head.len());
                let exact = head_read.decoder.size_hint().exact();
                Ok((head_read.status.as_u16(), head_read.keep_alive, exact))
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_framing_of_a_response_follows_its_head() {
        let cases = [
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", Ok((200, true, Some(5)))),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\ncontent-length: 5\r\n\r\n", Ok((200, true, Some(5)))),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", Ok((200, true, None))),
            ("HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n", Ok((204, true, Some(0)))),
            ("HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", Ok((304, true, Some(0)))),
            ("HTTP/1.1 200\r\nConnection: keep-alive, Close\r\nconnection: keep-alive\r\n\r\n", Ok((200, false, None))),
            ("HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\n", Ok((200, false, Some(5)))),
            ("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\n", Ok((200, true, Some(5)))),
            ("HTTP/1.1 200 OK\r\n\r\n", Ok((200, true, None))),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n", Err(ParseError::AmbiguousLength)),
            ("HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\n", Err(ParseError::AmbiguousLength)),
            ("HTTP/1.1 200 OK\r\ncontent-length:\r\n\r\n", Err(ParseError::AmbiguousLength)),
            ("HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n", Err(ParseError::AmbiguousLength)),
            (
                "HTTP/1.1 204 X\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
                Err(ParseError::AmbiguousLength),
            ),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n", Err(ParseError::TransferEncoding)),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
                Err(ParseError::TransferEncoding),
            ),
            ("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", Err(ParseError::TransferEncoding)),
            ("HTTP/1.1 101 Switching Protocols\r\n\r\n", Err(ParseError::Upgrade)),
        ];
        for (head, expected) in cases {
            assert_eq!(read(head, Method::GET, false), expected, "{head}");
        }
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";
        assert_eq!(read(head, Method::HEAD, false), Ok((200, true, Some(0))));
        assert_eq!(read("HTTP/1.1 101 X\r\n\r\n", Method::GET, true), Ok((101, true, Some(0))));
    }

    #[test]
    fn headers_keep_their_order_and_their_bytes() {
        let head = "HTTP/1.1 200 OK\r\nX-A: 1\r\nSet-Cookie: a\r\nset-cookie: \u{e4}\t b \r\n\r\nbody";
        let to = RequestKind { method: &Method::GET, upgrade: false };
        let Ok(Parsed::Head(len, parsed)) = parse(head.as_bytes(), to) else { panic!("a head") };
        assert_eq!(&head[len..], "body");
        let all: Vec<_> = parsed.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        assert_eq!(all, [("x-a", &b"1"[..]), ("set-cookie", b"a"), ("set-cookie", "\u{e4}\t b".as_bytes())]);
    }

    #[test]
    fn what_is_no_head_is_refused_and_what_may_become_one_is_waited_for() {
        let to = RequestKind { method: &Method::GET, upgrade: false };
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS + 1));
        for head in ["HALLO\r\n\r\n", "HTTP/2 200\r\n\r\n", "HTTP/1.1 200 OK\r\na : b\r\n\r\n", &many] {
            assert!(matches!(parse(head.as_bytes(), to), Err(ParseError::Malformed(_))), "{head}");
        }
        let folded = "HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n";
        assert!(parse(folded.as_bytes(), to).is_err(), "obsolete line folding");
        for head in ["", "HTT", "HTTP/1.1 200 OK\r\na: b\r\n"] {
            assert!(matches!(parse(head.as_bytes(), to), Ok(Parsed::Partial)), "{head}");
        }
        for head in ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"] {
            assert!(matches!(parse(head.as_bytes(), to), Ok(Parsed::Interim(len)) if len == head.len()), "{head}");
        }
    }
}
