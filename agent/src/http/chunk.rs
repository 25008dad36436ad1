//! Where a chunked body ends: follows the framing byte by byte, keeps nothing, changes nothing.
//!
//! [`super::gate`] asks it, to know where the next request's head begins. It accepts no more than the codec does
//! (RFC 9112 section 7.1 without whitespace around the size), so that both always agree on the end.

/// The state between two bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkScanner {
    at: At,
    size: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    FirstDigit,
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
}

/// What a run of bytes was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scanned {
    /// All of it belongs to the body, and the body goes on.
    More,
    /// The body ends after so many bytes.
    End(usize),
    /// The byte at this place breaks the framing.
    Broken(usize),
}

impl ChunkScanner {
    /// Follows `bytes`.
    pub fn scan(&mut self, bytes: &[u8]) -> Scanned {
        let mut position = 0;
        while let Some(byte) = bytes.get(position) {
            if self.at == At::Data {
                let rest = bytes.len() - position;
                let taken = usize::try_from(self.size).map_or(rest, |size| size.min(rest));
                self.size -= taken as u64;
                position += taken;
                if self.size == 0 {
                    self.at = At::DataCr;
                }
                continue;
            }
            match self.step(*byte) {
                Some(next) => self.at = next,
                None if self.at == At::EndLf && *byte == b'\n' => return Scanned::End(position + 1),
                None => return Scanned::Broken(position),
            }
            position += 1;
        }
        Scanned::More
    }

    /// The state after `byte`; `None` when it is not allowed here, or ends the body.
    fn step(&mut self, byte: u8) -> Option<At> {
        match (self.at, byte) {
            (At::FirstDigit | At::Size, byte) if byte.is_ascii_hexdigit() => {
                let digit = u64::from(char::from(byte).to_digit(16)?);
                self.size = self.size.checked_mul(16)?.checked_add(digit)?;
                Some(At::Size)
            }
            (At::Size, b';') => Some(At::Extension),
            (At::Size | At::Extension, b'\r') => Some(At::SizeLf),
            (At::Extension, byte) if byte != b'\n' && byte != 0 => Some(At::Extension),
            (At::SizeLf, b'\n') if self.size == 0 => Some(At::TrailerStart),
            (At::SizeLf, b'\n') => Some(At::Data),
            (At::DataCr, b'\r') => Some(At::DataLf),
            (At::DataLf, b'\n') => Some(At::FirstDigit),
            (At::TrailerStart, b'\r') => Some(At::EndLf),
            (At::TrailerStart | At::Trailer, byte) if byte != b'\n' && byte != b'\r' && byte != 0 => Some(At::Trailer),
            (At::Trailer, b'\r') => Some(At::TrailerLf),
            (At::TrailerLf, b'\n') => Some(At::TrailerStart),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(body: &[u8], step: usize) -> Scanned {
        let mut scanner = ChunkScanner::default();
        let mut before = 0;
        for piece in body.chunks(step) {
            match scanner.scan(piece) {
                Scanned::More => before += piece.len(),
                Scanned::End(at) => return Scanned::End(before + at),
                Scanned::Broken(at) => return Scanned::Broken(before + at),
            }
        }
        Scanned::More
    }

    #[test]
    fn the_end_is_found_however_the_bytes_arrive() {
        let cases: [(&[u8], Scanned); 10] = [
            (b"0\r\n\r\nGET", Scanned::End(5)),
            (b"5\r\nhello\r\n0\r\n\r\n", Scanned::End(15)),
            (b"5;a=b\r\nhello\r\n0\r\nx: y\r\n\r\nG", Scanned::End(25)),
            (b"a\r\n0\r\n\r\n01234\r\n0\r\n\r\n", Scanned::End(20)),
            (b"5\r\nhel", Scanned::More),
            (b"\r\n", Scanned::Broken(0)),
            (b"5 \r\nhello", Scanned::Broken(1)),
            (b"5\nhello", Scanned::Broken(1)),
            (b"5\r\nhelloX", Scanned::Broken(8)),
            (b"10000000000000000\r\n", Scanned::Broken(16)),
        ];
        for (body, expected) in cases {
            for step in [1, 2, 3, 100] {
                assert_eq!(scan(body, step), expected, "{:?} in steps of {step}", String::from_utf8_lossy(body));
            }
        }
    }
}
