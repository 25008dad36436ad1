//! Recognises TLS by its ClientHello, and reads SNI and ALPN from it.
//!
//! Pure. Records are put together here, because a ClientHello may be split over several (RFC 8446, 5.1) and because an
//! unfinished one must be told from a broken one; the message itself is read by the `tls-parser` crate.

use tls_parser::{
    TlsExtension, parse_tls_extension_alpn_content, parse_tls_extension_sni_content, parse_tls_handshake_client_hello,
};

use super::Verdict;

/// The longest ClientHello, in bytes with its record headers (Envoy's `TLS_MAX_CLIENT_HELLO`).
pub const MAX_CLIENT_HELLO_BYTES: usize = 16 * 1024;

const RECORD_HEADER_BYTES: usize = 5;
const HANDSHAKE_HEADER_BYTES: usize = 4;
const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO: u8 = 1;
/// RFC 8446, 5.1: a record's fragment may not be longer.
const MAX_FRAGMENT_BYTES: usize = 16 * 1024;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;
const SNI_HOST_NAME: u8 = 0;

/// What a ClientHello tells about the connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// SNI, lower-cased.
    pub server_name: Option<String>,
    /// The ALPN offer, in the client's order.
    pub application_protocols: Vec<String>,
}

/// What `bytes`, all that the client has sent so far, are.
pub fn inspect(bytes: &[u8]) -> Verdict<ClientHello> {
    // What lies beyond the limit must not count, or the answer would depend on how the bytes were cut into segments.
    let bytes = &bytes[..bytes.len().min(MAX_CLIENT_HELLO_BYTES)];
    let message = match handshake_message(bytes) {
        Verdict::Done(message) => message,
        Verdict::NeedMore if bytes.len() >= MAX_CLIENT_HELLO_BYTES => return Verdict::TooLarge,
        Verdict::NeedMore => return Verdict::NeedMore,
        Verdict::NotMine => return Verdict::NotMine,
        Verdict::TooLarge => return Verdict::TooLarge,
    };
    match parse_tls_handshake_client_hello(&message) {
        Ok((_, hello)) => Verdict::Done(extensions(hello.ext.unwrap_or_default())),
        Err(_) => Verdict::NotMine,
    }
}

/// The body of the first handshake message, put together from its records.
fn handshake_message(bytes: &[u8]) -> Verdict<Vec<u8>> {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        let header = match record_header(rest) {
            Verdict::Done(header) => header,
            Verdict::NeedMore => return Verdict::NeedMore,
            Verdict::NotMine => return Verdict::NotMine,
            Verdict::TooLarge => return Verdict::TooLarge,
        };
        let body = &rest[RECORD_HEADER_BYTES..];
        let (fragment, after) = body.split_at(body.len().min(header.fragment_bytes));
        message.extend_from_slice(fragment);
        match message_bytes(&message) {
            Verdict::Done(total) if message.len() >= total => {
                message.truncate(total);
                message.drain(..HANDSHAKE_HEADER_BYTES);
                return Verdict::Done(message);
            }
            Verdict::NotMine => return Verdict::NotMine,
            Verdict::TooLarge => return Verdict::TooLarge,
            Verdict::Done(_) | Verdict::NeedMore => {}
        }
        if fragment.len() < header.fragment_bytes {
            return Verdict::NeedMore;
        }
        rest = after;
    }
}

struct RecordHeader {
    fragment_bytes: usize,
}

/// Each byte is judged as soon as it is there, so that other protocols are told apart early.
fn record_header(bytes: &[u8]) -> Verdict<RecordHeader> {
    let is_tls = match bytes {
        [] => true,
        [kind] => *kind == HANDSHAKE_RECORD,
        [kind, major, ..] => *kind == HANDSHAKE_RECORD && *major == 3,
    };
    if !is_tls {
        return Verdict::NotMine;
    }
    let [_, _, _, high, low, ..] = bytes else { return Verdict::NeedMore };
    let fragment_bytes = usize::from(u16::from_be_bytes([*high, *low]));
    // RFC 8446, 5.1: no empty handshake fragments.
    if fragment_bytes == 0 || fragment_bytes > MAX_FRAGMENT_BYTES {
        return Verdict::NotMine;
    }
    Verdict::Done(RecordHeader { fragment_bytes })
}

/// The length of the handshake message that begins with `message`, its header included.
fn message_bytes(message: &[u8]) -> Verdict<usize> {
    match message {
        [kind, ..] if *kind != CLIENT_HELLO => Verdict::NotMine,
        [_, high, middle, low, ..] => {
            let body = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
            if body > MAX_CLIENT_HELLO_BYTES { Verdict::TooLarge } else { Verdict::Done(HANDSHAKE_HEADER_BYTES + body) }
        }
        _ => Verdict::NeedMore,
    }
}

/// Reads SNI and ALPN; a broken extension is as good as none, the server will say so.
fn extensions(mut rest: &[u8]) -> ClientHello {
    let mut found = ClientHello::default();
    while let [kind_high, kind_low, high, low, after @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some((content, next)) = after.split_at_checked(length) else { break };
        match u16::from_be_bytes([*kind_high, *kind_low]) {
            EXTENSION_SERVER_NAME => found.server_name = server_name(content),
            EXTENSION_ALPN => found.application_protocols = application_protocols(content),
            _ => {}
        }
        rest = next;
    }
    found
}

fn server_name(content: &[u8]) -> Option<String> {
    let Ok((_, TlsExtension::SNI(names))) = parse_tls_extension_sni_content(content) else { return None };
    let (_, name) = names.into_iter().find(|(kind, _)| kind.0 == SNI_HOST_NAME)?;
    let name = str::from_utf8(name).ok()?;
    (!name.is_empty()).then(|| name.to_ascii_lowercase())
}

fn application_protocols(content: &[u8]) -> Vec<String> {
    let Ok((_, TlsExtension::ALPN(protocols))) = parse_tls_extension_alpn_content(content) else {
        return Vec::new();
    };
    protocols.into_iter().filter_map(|protocol| str::from_utf8(protocol).ok().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with_length(length_bytes: usize, content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len()).expect("length").to_be_bytes();
        [&length[4 - length_bytes..], content].concat()
    }

    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &with_length(2, content)].concat()
    }

    fn hello(server_name: Option<&str>, alpn: &[&str], padding: usize) -> Vec<u8> {
        let mut extensions = Vec::new();
        if let Some(name) = server_name {
            let entry = [&[0][..], &with_length(2, name.as_bytes())].concat();
            extensions.extend(extension(0, &with_length(2, &entry)));
        }
        if !alpn.is_empty() {
            let list: Vec<u8> = alpn.iter().flat_map(|protocol| with_length(1, protocol.as_bytes())).collect();
            extensions.extend(extension(16, &with_length(2, &list)));
        }
        extensions.extend(extension(21, &vec![0; padding]));
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(0);
        body.extend(with_length(2, &[0x13, 0x01]));
        body.extend([1, 0]);
        body.extend(with_length(2, &extensions));
        [&[CLIENT_HELLO][..], &with_length(3, &body)].concat()
    }

    fn records(message: &[u8], fragment_bytes: usize) -> Vec<u8> {
        message
            .chunks(fragment_bytes)
            .flat_map(|fragment| [&[HANDSHAKE_RECORD, 3, 1][..], &with_length(2, fragment)].concat())
            .collect()
    }

    fn expected(server_name: Option<&str>, alpn: &[&str]) -> Verdict<ClientHello> {
        Verdict::Done(ClientHello {
            server_name: server_name.map(str::to_owned),
            application_protocols: alpn.iter().map(|protocol| (*protocol).to_owned()).collect(),
        })
    }

    #[test]
    fn server_name_and_alpn_are_read_from_a_client_hello() {
        let alpn = ["h2", "http/1.1"];
        assert_eq!(
            inspect(&records(&hello(Some("API.Example.com"), &alpn, 0), 16384)),
            expected(Some("api.example.com"), &alpn)
        );
        assert_eq!(inspect(&records(&hello(None, &[], 0), 16384)), expected(None, &[]));
    }

    #[test]
    fn a_client_hello_may_be_split_over_records_anywhere() {
        let message = hello(Some("a.test"), &["h2"], 10);
        for fragment_bytes in 1..message.len() {
            assert_eq!(
                inspect(&records(&message, fragment_bytes)),
                expected(Some("a.test"), &["h2"]),
                "{fragment_bytes}"
            );
        }
    }

    #[test]
    fn other_protocols_are_told_apart_by_their_first_bytes() {
        let cases: &[&[u8]] = &[
            b"GET / HTTP/1.1\r\n",
            b"\x16\x02",
            b"\x15\x03\x01\x00\x02",
            b"\x16\x03\x01\x00\x00",
            b"\x16\x03\x01\x40\x01",
            b"\x16\x03\x01\x00\x05\x02",
            b"\x80\x2e\x01\x03\x01",
        ];
        for bytes in cases {
            assert_eq!(inspect(bytes), Verdict::NotMine, "{}", bytes.escape_ascii());
        }
        assert_eq!(inspect(b"\x16\x03\x01\x00\x05\x01"), Verdict::NeedMore);
    }

    #[test]
    fn a_client_hello_above_the_limit_is_refused_as_soon_as_it_is_announced() {
        let message = hello(None, &[], MAX_CLIENT_HELLO_BYTES);
        assert_eq!(inspect(&records(&message, 16384)[..9]), Verdict::TooLarge);
    }

    #[test]
    fn a_broken_extension_hides_only_itself() {
        let broken = extension(0, &[0xff, 0xff, 0]);
        let alpn = extension(16, &with_length(2, &with_length(1, b"h2")));
        assert_eq!(
            extensions(&[broken, alpn].concat()),
            ClientHello { server_name: None, application_protocols: vec!["h2".to_owned()] }
        );
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(
            start in prop::sample::select(vec![&b""[..], b"\x16\x03\x01", b"\x16\x03\x01\x00\x50\x01\x00\x00\x4c\x03\x03"]),
            rest in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = inspect(&[start, &rest].concat());
        }

        #[test]
        fn more_bytes_never_change_a_decision(
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            fragment_bytes in 1_usize..200,
        ) {
            let mut bytes = records(&hello(Some("a.test"), &["h2"], 3), fragment_bytes);
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            let mut decided: Option<Verdict<ClientHello>> = None;
            for end in 0..=bytes.len() {
                let verdict = inspect(&bytes[..end]);
                match &decided {
                    Some(earlier) => prop_assert_eq!(earlier, &verdict),
                    None if verdict != Verdict::NeedMore => decided = Some(verdict),
                    None => {}
                }
            }
        }
    }
}
