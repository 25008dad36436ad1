//! Streams of requests give the same however they are cut into pieces.

use bytes::BytesMut;
use proptest::prelude::*;

use super::head::{self, Framing, HeadLimits, Parsed};
use crate::http::h1::decode::{Decoded, Decoder};

/// What a stream of requests was taken for.
#[derive(Debug, PartialEq)]
enum Seen {
    /// Method and target, fields, body with its trailers.
    Request(String, Vec<String>, String),
    /// Answered with this, and nothing read behind it.
    Refused(u16),
    /// A body without an end.
    Broken,
}

/// Where the stream is.
enum At {
    Head,
    Body(Decoder),
    End,
}

struct Reader {
    buffer: BytesMut,
    at: At,
    seen: Vec<Seen>,
}

impl Reader {
    fn look(&mut self) {
        const LIMITS: HeadLimits = HeadLimits { max_bytes: 64 * 1024, max_headers: 10 };
        loop {
            match &mut self.at {
                At::End => return,
                At::Head => match head::take(&mut self.buffer, LIMITS) {
                    Parsed::Partial => return,
                    Parsed::Refused(refusal) => {
                        self.seen.push(Seen::Refused(refusal.status.as_u16()));
                        self.at = At::End;
                    }
                    Parsed::Complete(head) => {
                        let parts = &head.parts;
                        let fields = parts.headers.iter().map(|(name, value)| format!("{name}: {value:?}"));
                        let line = format!("{} {}", parts.method, parts.uri);
                        self.seen.push(Seen::Request(line, fields.collect(), String::new()));
                        self.at = At::Body(match head.framing {
                            Framing::Length(bytes) => Decoder::length(bytes),
                            Framing::Chunked => Decoder::chunked(),
                        });
                    }
                },
                At::Body(decoder) => {
                    let decoded = decoder.decode(&mut self.buffer);
                    let Some(Seen::Request(_, _, body)) = self.seen.last_mut() else { return };
                    match decoded {
                        Ok(Decoded::More) => return,
                        Ok(Decoded::Data(data)) => body.push_str(&String::from_utf8_lossy(&data)),
                        Ok(Decoded::Trailers(trailers)) => body.push_str(&format!("{trailers:?}")),
                        Ok(Decoded::End) => self.at = At::Head,
                        Err(_) => {
                            self.seen.push(Seen::Broken);
                            self.at = At::End;
                        }
                    }
                }
            }
        }
    }
}

/// What `bytes` are taken for when they come in pieces of these lengths, again and again.
fn read(bytes: &[u8], lengths: &[usize]) -> Vec<Seen> {
    let mut reader = Reader { buffer: BytesMut::new(), at: At::Head, seen: Vec::new() };
    let mut rest = bytes;
    let mut lengths = lengths.iter().cycle();
    while !rest.is_empty() {
        let length = lengths.next().map_or(rest.len(), |length| (*length).min(rest.len()));
        reader.buffer.extend_from_slice(&rest[..length]);
        rest = &rest[length..];
        reader.look();
    }
    reader.seen
}

const SOUND: [&str; 6] = [
    "GET /a HTTP/1.1\r\nHost: h\r\n\r\n",
    "POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nGET / HTTP",
    "POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4;x\r\nGET \r\n0\r\na: b\r\n\r\n",
    "\r\nGET /d HTTP/1.1\nHost: h\n\n",
    "PUT /e HTTP/1.0\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
    "GET http://h/f?g HTTP/1.1\r\nHost: h\r\nConnection: close\r\nUpgrade: h2c\r\n\r\n",
];
const REFUSED: [(&str, u16); 4] = [
    ("POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: x\r\n\r\n", 501),
    ("NONSENSE\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\na:b\r\na:b\r\na:b\r\na:b\r\na:b\r\na:b\r\na:b\r\na:b\r\na:b\r\na:b\r\na:b\r\n\r\n", 431),
];

proptest! {
    #[test]
    fn sound_requests_pass_and_nothing_behind_a_refused_one(
        sound in prop::collection::vec(0..SOUND.len(), 0..6),
        refused in prop::option::of(0..REFUSED.len()),
        behind in prop::collection::vec(0..SOUND.len(), 0..3),
        lengths in prop::collection::vec(1_usize..40, 1..40),
    ) {
        let mut bytes: String = sound.iter().map(|index| SOUND[*index]).collect();
        let mut expected: Vec<Seen> = sound.iter().flat_map(|index| read(SOUND[*index].as_bytes(), &[])).collect();
        prop_assert_eq!(expected.len(), sound.len());
        if let Some((refused, status)) = refused.map(|index| REFUSED[index]) {
            bytes.push_str(refused);
            bytes.extend(behind.iter().map(|index| SOUND[*index]));
            expected.push(Seen::Refused(status));
        }
        prop_assert_eq!(read(bytes.as_bytes(), &lengths), expected);
    }

    #[test]
    fn whatever_comes_is_read_alike_in_one_piece_and_in_many(
        parts in prop::collection::vec(
            prop_oneof![
                (0..SOUND.len()).prop_map(|index| SOUND[index].to_owned()),
                prop::sample::select(vec![
                    "GET ", "/", " HTTP/1.1", "\r\n", "\n", "Host: h", "Content-Length: 3", "Transfer-Encoding: chunked",
                    "Transfer-Encoding", ":", " ", "\t", "\0", "3", "abc", "0", "Upgrade: x", "\u{e9}", "#", ";", "*",
                ]).prop_map(str::to_owned),
            ],
            0..24,
        ),
        lengths in prop::collection::vec(1_usize..30, 1..30),
    ) {
        let bytes = parts.concat();
        prop_assert_eq!(read(bytes.as_bytes(), &lengths), read(bytes.as_bytes(), &[]));
    }
}
