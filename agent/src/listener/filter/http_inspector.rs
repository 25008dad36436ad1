//! Recognises HTTP by its first bytes: the HTTP/2 preface, or a request line.
//!
//! Pure. The rule is Envoy's `http_inspector` with its legacy parser: a method that it does not know ends the
//! inspection at once, so that binary protocols are decided within their first bytes.

use super::{Detected, Verdict};

/// A request line longer than this closes the connection (Envoy's `MAX_INSPECT_SIZE`).
pub const MAX_REQUEST_LINE_BYTES: usize = 64 * 1024;

const _: () = assert!(MAX_REQUEST_LINE_BYTES <= crate::worker::SCRATCH_BYTES, "the line has to fit the peek");

/// RFC 9113, 3.4: what every HTTP/2 client sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The methods of Envoy's parser: RFC 9110, WebDAV and what grew around them, and QUERY.
const METHODS: &[&[u8]] = &[
    b"GET",
    b"POST",
    b"PUT",
    b"HEAD",
    b"DELETE",
    b"PATCH",
    b"OPTIONS",
    b"CONNECT",
    b"TRACE",
    b"COPY",
    b"LOCK",
    b"MKCOL",
    b"MOVE",
    b"PROPFIND",
    b"PROPPATCH",
    b"SEARCH",
    b"UNLOCK",
    b"BIND",
    b"REBIND",
    b"UNBIND",
    b"ACL",
    b"REPORT",
    b"MKACTIVITY",
    b"CHECKOUT",
    b"MERGE",
    b"M-SEARCH",
    b"NOTIFY",
    b"SUBSCRIBE",
    b"UNSUBSCRIBE",
    b"PURGE",
    b"MKCALENDAR",
    b"LINK",
    b"UNLINK",
    b"SOURCE",
    b"QUERY",
];

/// What `bytes`, all that the client has sent so far, are.
pub fn inspect(bytes: &[u8]) -> Verdict<Detected> {
    // What lies beyond the limit must not count, or the answer would depend on how the bytes were cut into segments.
    let bytes = &bytes[..bytes.len().min(MAX_REQUEST_LINE_BYTES)];
    if bytes.starts_with(PREFACE) {
        return Verdict::Done(Detected::H2c);
    }
    if PREFACE.starts_with(bytes) {
        return Verdict::NeedMore;
    }
    let Some(space) = bytes.iter().position(|byte| *byte == b' ') else {
        let possible = METHODS.iter().any(|method| method.starts_with(bytes));
        return if possible { Verdict::NeedMore } else { Verdict::NotMine };
    };
    if !METHODS.contains(&&bytes[..space]) {
        return Verdict::NotMine;
    }
    match after_method(&bytes[space + 1..]) {
        Verdict::NeedMore if bytes.len() >= MAX_REQUEST_LINE_BYTES => Verdict::TooLarge,
        verdict => verdict,
    }
}

/// The target and the version. Without a version the line is HTTP/0.9, which counts as 1.0.
fn after_method(rest: &[u8]) -> Verdict<Detected> {
    let Some(end) = rest.iter().position(|byte| !is_target(*byte)) else {
        return Verdict::NeedMore;
    };
    if end == 0 {
        return Verdict::NotMine;
    }
    match rest[end] {
        b' ' => version(&rest[end + 1..]),
        b'\r' | b'\n' => line_end(&rest[end..], Detected::Http10),
        _ => Verdict::NotMine,
    }
}

/// Bytes that Envoy's parser takes in a request target: visible ASCII, and anything above it.
fn is_target(byte: u8) -> bool {
    byte > b' ' && byte != 0x7f
}

fn version(rest: &[u8]) -> Verdict<Detected> {
    const NAME: &[u8] = b"HTTP/";
    let (name, digits) = rest.split_at(rest.len().min(NAME.len()));
    if !NAME.starts_with(name) {
        return Verdict::NotMine;
    }
    match digits {
        [] | [b'0' | b'1'] | [b'0' | b'1', b'.'] => Verdict::NeedMore,
        [b'1', b'.', b'1'] | [b'0' | b'1', b'.', b'0'..=b'9'] => Verdict::NeedMore,
        [b'1', b'.', b'1', end @ ..] => line_end(end, Detected::Http11),
        [b'0' | b'1', b'.', b'0'..=b'9', end @ ..] => line_end(end, Detected::Http10),
        _ => Verdict::NotMine,
    }
}

fn line_end(rest: &[u8], protocol: Detected) -> Verdict<Detected> {
    match rest {
        [b'\n', ..] | [b'\r', b'\n', ..] => Verdict::Done(protocol),
        [] | [b'\r'] => Verdict::NeedMore,
        _ => Verdict::NotMine,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use Verdict::{Done, NeedMore, NotMine};

    #[test]
    fn first_bytes_are_recognised_as_envoy_recognises_them() {
        let cases: &[(&[u8], Verdict<Detected>)] = &[
            (b"", NeedMore),
            (b"G", NeedMore),
            (b"GET", NeedMore),
            (b"GET ", NeedMore),
            (b"GET / HTTP/1.1", NeedMore),
            (b"GET / HTTP/1.1\r", NeedMore),
            (b"GET / HTTP/1.1\r\n", Done(Detected::Http11)),
            (b"GET / HTTP/1.1\nHost: a\n\n", Done(Detected::Http11)),
            (b"GET / HTTP/1.0\r\n", Done(Detected::Http10)),
            (b"GET / HTTP/0.9\r\n", Done(Detected::Http10)),
            (b"GET /\r\n", Done(Detected::Http10)),
            (b"CONNECT a:443 HTTP/1.1\r\n", Done(Detected::Http11)),
            (b"M-SEARCH * HTTP/1.1\r\n", Done(Detected::Http11)),
            (PREFACE, Done(Detected::H2c)),
            (b"PRI * HTTP/2.0\r\n", NeedMore),
            (b"PRI * HTTP/1.1\r\n", NotMine),
            (b"PROPFIND / HTTP/1.1\r\n", Done(Detected::Http11)),
            (b"GET / HTTP/2.0\r\n", NotMine),
            (b"GET / FTP", NotMine),
            (b"GET  HTTP/1.1", NotMine),
            (b"GET /\x01", NotMine),
            (b"GET / HTTP/1.1 ", NotMine),
            (b"get / ", NotMine),
            (b"HELO there", NotMine),
            (b"\r\nGET / HTTP/1.1\r\n", NotMine),
            (b"\n", NotMine),
            (b"\x16\x03\x01", NotMine),
            (b"*1\r\n", NotMine),
            (b"SSH-2.0-x\r\n", NotMine),
        ];
        for (bytes, expected) in cases {
            assert_eq!(&inspect(bytes), expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_request_line_without_an_end_is_given_up_at_the_limit() {
        let mut line = b"GET /".to_vec();
        line.resize(MAX_REQUEST_LINE_BYTES - 1, b'a');
        assert_eq!(inspect(&line), NeedMore);
        line.push(b'a');
        assert_eq!(inspect(&line), Verdict::TooLarge);
    }

    proptest! {
        #[test]
        fn more_bytes_never_change_a_decision(
            start in prop::sample::select(vec!["", "GET ", "GET / ", "GET / HTTP/", "PRI * HTTP/2.0", "POST /x HTTP/1.1"]),
            rest in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let bytes = [start.as_bytes(), &rest].concat();
            let mut decided: Option<Verdict<Detected>> = None;
            for end in 0..=bytes.len() {
                let verdict = inspect(&bytes[..end]);
                match &decided {
                    Some(earlier) => prop_assert_eq!(earlier, &verdict),
                    None if verdict != NeedMore => decided = Some(verdict),
                    None => {}
                }
            }
        }
    }
}
