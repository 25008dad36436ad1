//! The body of an HTTP/1.1 message, taken out of its framing as the bytes arrive.
//!
//! Before: whoever read bytes from a socket into a buffer. After: frames of a body. Knows nothing of sockets; copies
//! nothing: data is cut off the buffer. Both sides of the agent use it.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::SizeHint;

use crate::http::chunk::{ChunkScanner, Framed, Scanned};

/// Bytes of all trailer fields together: hyper's limit.
const MAX_TRAILER_BYTES: usize = 16 * 1024;
/// Trailer fields: hyper's limit.
const MAX_TRAILERS: usize = 100;

/// Where in a body the next byte stands.
#[derive(Debug)]
pub struct Decoder(Kind);

#[derive(Debug)]
enum Kind {
    /// So many bytes are to come.
    Length(u64),
    Chunked(Chunked),
    UntilClose,
    /// All was handed out but the trailers.
    Trailers(Box<HeaderMap>),
    Complete,
    Broken,
}

#[derive(Debug, Default)]
struct Chunked {
    scanner: ChunkScanner,
    /// The last chunk is through.
    at_trailers: bool,
    /// Bytes of the buffer that the scanner has seen: the trailers stay there until they are complete.
    scanned: usize,
}

/// What the buffer held.
#[derive(Debug, PartialEq)]
pub enum Decoded {
    /// Data, never empty.
    Data(Bytes),
    /// The last of the body, after its data.
    Trailers(HeaderMap),
    /// Nothing, or not all of it: more has to be read.
    More,
    /// The body is complete. What the buffer still holds is behind it.
    End,
}

/// Why a body has no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The chunks' framing, or the trailers.
    #[error("the framing of a chunked body is broken")]
    Broken,
    /// The connection ended first.
    #[error("the connection ended within a body")]
    Truncated,
}

impl Decoder {
    /// Of so many bytes.
    pub fn length(bytes: u64) -> Self {
        Self(if bytes == 0 { Kind::Complete } else { Kind::Length(bytes) })
    }

    /// Of chunks, until the last one and its trailers.
    pub fn chunked() -> Self {
        Self(Kind::Chunked(Chunked::default()))
    }

    /// As long as the connection: responses only.
    pub fn until_close() -> Self {
        Self(Kind::UntilClose)
    }

    /// Whether [`Self::decode`] has nothing more to give.
    pub fn is_complete(&self) -> bool {
        matches!(self.0, Kind::Complete)
    }

    /// Takes the next piece out of `buffer`. With the last data the end is seen too, if it is there already.
    ///
    /// # Errors
    /// [`DecodeError::Broken`], from then on always.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, DecodeError> {
        loop {
            match &mut self.0 {
                Kind::Complete => return Ok(Decoded::End),
                Kind::Broken => return Err(DecodeError::Broken),
                Kind::Length(left) => {
                    let data = cut(buffer, *left);
                    *left -= data.len() as u64;
                    if *left == 0 {
                        self.0 = Kind::Complete;
                    }
                    return Ok(if data.is_empty() { Decoded::More } else { Decoded::Data(data) });
                }
                Kind::UntilClose if buffer.is_empty() => return Ok(Decoded::More),
                Kind::UntilClose => return Ok(Decoded::Data(std::mem::take(buffer).freeze())),
                Kind::Trailers(trailers) => {
                    let trailers = std::mem::take(&mut **trailers);
                    self.0 = Kind::Complete;
                    return Ok(Decoded::Trailers(trailers));
                }
                Kind::Chunked(chunked) => {
                    let ahead = chunked.scanner.data_ahead();
                    if ahead > 0 {
                        let data = cut(buffer, ahead);
                        chunked.scanner.take(data.len());
                        if data.is_empty() {
                            return Ok(Decoded::More);
                        }
                        self.pass_framing(buffer);
                        return Ok(Decoded::Data(data));
                    }
                    if !self.pass_framing(buffer) {
                        return Ok(Decoded::More);
                    }
                }
            }
        }
    }

    /// The connection has ended, and the buffer with it.
    ///
    /// # Errors
    /// The body has not.
    pub fn end_of_input(&mut self) -> Result<(), DecodeError> {
        match self.0 {
            Kind::Complete | Kind::Trailers(_) => Ok(()),
            Kind::UntilClose => {
                self.0 = Kind::Complete;
                Ok(())
            }
            Kind::Broken => Err(DecodeError::Broken),
            Kind::Length(_) | Kind::Chunked(_) => Err(DecodeError::Truncated),
        }
    }

    /// How many bytes of data stand in a row from here on; `None` when nobody knows. 0 between two chunks.
    pub fn data_ahead(&self) -> Option<u64> {
        match &self.0 {
            Kind::Length(left) => Some(*left),
            Kind::Chunked(chunked) => Some(chunked.scanner.data_ahead()),
            Kind::UntilClose => None,
            Kind::Trailers(_) | Kind::Complete | Kind::Broken => Some(0),
        }
    }

    /// How much is to come.
    pub fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Length(left) => SizeHint::with_exact(*left),
            Kind::Complete => SizeHint::with_exact(0),
            _ => SizeHint::default(),
        }
    }

    /// Passes what stands before the next data; whether there is anything to hand out now.
    fn pass_framing(&mut self, buffer: &mut BytesMut) -> bool {
        let Kind::Chunked(chunked) = &mut self.0 else { return false };
        match chunked.pass_framing(buffer) {
            Ok(Passed::More) => false,
            Ok(Passed::Data) => true,
            Ok(Passed::End(trailers)) if trailers.is_empty() => {
                self.0 = Kind::Complete;
                true
            }
            Ok(Passed::End(trailers)) => {
                self.0 = Kind::Trailers(Box::new(trailers));
                true
            }
            Err(Broken) => {
                self.0 = Kind::Broken;
                true
            }
        }
    }
}

/// Cuts data off the front, at most `limit` bytes of it.
fn cut(buffer: &mut BytesMut, limit: u64) -> Bytes {
    match usize::try_from(limit) {
        Ok(limit) if limit < buffer.len() => buffer.split_to(limit).freeze(),
        // The whole allocation goes with the data: nothing stays behind.
        _ => std::mem::take(buffer).freeze(),
    }
}

enum Passed {
    More,
    Data,
    End(HeaderMap),
}

struct Broken;

impl Chunked {
    fn pass_framing(&mut self, buffer: &mut BytesMut) -> Result<Passed, Broken> {
        if self.scanner.data_ahead() > 0 {
            return Ok(Passed::Data);
        }
        if !self.at_trailers {
            match self.scanner.framing(buffer).map_err(|_| Broken)? {
                Framed::More => {
                    buffer.clear();
                    return Ok(Passed::More);
                }
                Framed::Data(framing) => {
                    buffer.advance(framing);
                    return Ok(Passed::Data);
                }
                Framed::Trailers(framing) => {
                    buffer.advance(framing);
                    self.at_trailers = true;
                }
            }
        }
        let (section_bytes, at_end) = match self.scanner.scan(&buffer[self.scanned..]) {
            Scanned::Broken(_) => return Err(Broken),
            Scanned::More => (buffer.len(), false),
            Scanned::End(rest) => (self.scanned + rest, true),
        };
        if section_bytes > MAX_TRAILER_BYTES {
            return Err(Broken);
        }
        if at_end {
            return trailers(&buffer.split_to(section_bytes).freeze()).map(Passed::End);
        }
        self.scanned = section_bytes;
        Ok(Passed::More)
    }
}

/// The fields of a trailer section, which ends with an empty line.
fn trailers(section: &Bytes) -> Result<HeaderMap, Broken> {
    if section.len() <= 2 {
        return Ok(HeaderMap::new());
    }
    let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILERS];
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(section, &mut fields) else {
        return Err(Broken);
    };
    let mut trailers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Broken)?;
        let value = HeaderValue::from_maybe_shared(section.slice_ref(field.value)).map_err(|_| Broken)?;
        trailers.append(name, value);
    }
    Ok(trailers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The data, the trailers, and what is left when `body` arrives in pieces of `step` bytes.
    fn decode(mut decoder: Decoder, body: &[u8], step: usize) -> Result<(Vec<u8>, HeaderMap, Vec<u8>), DecodeError> {
        let (mut data, mut trailers, mut buffer) = (Vec::new(), HeaderMap::new(), BytesMut::new());
        let mut pieces = body.chunks(step);
        loop {
            match decoder.decode(&mut buffer)? {
                Decoded::Data(piece) => {
                    assert!(!piece.is_empty());
                    data.extend_from_slice(&piece);
                }
                Decoded::Trailers(all) => trailers = all,
                Decoded::End => break,
                Decoded::More => match pieces.next() {
                    Some(piece) => buffer.extend_from_slice(piece),
                    None => {
                        decoder.end_of_input()?;
                        break;
                    }
                },
            }
        }
        buffer.extend(pieces.flatten());
        Ok((data, trailers, buffer.to_vec()))
    }

    #[test]
    fn a_body_of_known_length_ends_there() {
        for step in [1, 2, 100] {
            let (data, _, rest) = decode(Decoder::length(5), b"helloHTTP", step).expect("a body");
            assert_eq!((&data[..], &rest[..]), (&b"hello"[..], &b"HTTP"[..]));
            assert_eq!(decode(Decoder::length(5), b"hell", step), Err(DecodeError::Truncated));
        }
        assert!(Decoder::length(0).is_complete());
    }

    #[test]
    fn a_body_without_framing_ends_with_the_connection() {
        assert_eq!(decode(Decoder::until_close(), b"all of it", 4).expect("a body").0, b"all of it");
    }

    #[test]
    fn the_end_is_seen_with_the_last_data() {
        let mut buffer = BytesMut::from(&b"5\r\nhello\r\n0\r\n\r\n"[..]);
        let mut decoder = Decoder::chunked();
        assert_eq!(decoder.decode(&mut buffer), Ok(Decoded::Data(Bytes::from_static(b"hello"))));
        assert!(decoder.is_complete() && buffer.is_empty());
    }

    #[test]
    fn trailers_come_after_the_data() {
        for step in [1, 3, 100] {
            let body = b"5;x=y\r\nhello\r\n0\r\nx-sum: 1\r\nX-Sum: 2\r\n\r\nHTTP";
            let (data, trailers, rest) = decode(Decoder::chunked(), body, step).expect("a body");
            assert_eq!((&data[..], &rest[..]), (&b"hello"[..], &b"HTTP"[..]));
            assert_eq!(trailers.get_all("x-sum").iter().collect::<Vec<_>>(), ["1", "2"]);
        }
    }

    #[test]
    fn broken_framing_is_no_end() {
        let long = [&b"0\r\n"[..], &b"x: y\r\n".repeat(MAX_TRAILER_BYTES / 6 + 1), b"\r\n"].concat();
        let many = [&b"0\r\n"[..], &b"x: y\r\n".repeat(MAX_TRAILERS + 1), b"\r\n"].concat();
        let idle = [&b"1;"[..], &b"x".repeat(MAX_TRAILER_BYTES + 1), b"\r\na\r\n0\r\n\r\n"].concat();
        let cases: [&[u8]; 9] =
            [b"\r\n", b"5 \r\nhello", b"5\nhello", b"5\r\nhelloX", b"0\r\nx\r\n\r\n", b"-1\r\n", &long, &many, &idle];
        for body in cases {
            for step in [1, 7, 100_000] {
                assert_eq!(decode(Decoder::chunked(), body, step), Err(DecodeError::Broken), "{:?}", body.get(..20));
            }
        }
        for body in [&b""[..], b"5", b"5\r\nhel", b"5\r\nhello\r\n", b"5\r\nhello\r\n0\r\n", b"0\r\nx: y\r\n"] {
            assert_eq!(decode(Decoder::chunked(), body, 2), Err(DecodeError::Truncated), "{body:?}");
        }
    }

    proptest! {
        #[test]
        fn data_is_what_was_framed_however_it_arrives(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 0..8),
            trailers in prop::collection::vec("[a-z]{1,8}", 0..4),
            behind in prop::collection::vec(any::<u8>(), 0..20),
            step in 1..300_usize,
        ) {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                body.extend(chunk);
                body.extend(b"\r\n");
            }
            body.extend(b"0\r\n");
            for name in &trailers {
                body.extend(format!("{name}: v\r\n").into_bytes());
            }
            body.extend(b"\r\n");
            body.extend(&behind);
            let (data, found, rest) = decode(Decoder::chunked(), &body, step).expect("a body");
            prop_assert_eq!(data, chunks.concat());
            prop_assert_eq!(found.len(), trailers.len());
            prop_assert_eq!(rest, behind);
        }

        #[test]
        fn any_bytes_are_read_alike_in_one_piece_and_in_many(
            body in prop::collection::vec(prop::sample::select(b"0123aF;\r\n: x".to_vec()), 0..60),
            step in 1..10_usize,
        ) {
            let whole = decode(Decoder::chunked(), &body, body.len().max(1));
            prop_assert_eq!(decode(Decoder::chunked(), &body, step), whole);
        }
    }
}
