//! Where a chunked body ends: follows the framing byte by byte, keeps nothing, changes nothing.
//!
//! Asked by [`super::h1::decode`], which takes the data out (RFC 9112 section 7.1 without whitespace around the size).

/// Bytes of all chunk extensions of one body together: hyper's limit. Nobody reads them; they are for those who would
/// keep a connection busy with nothing.
const MAX_EXTENSION_BYTES: u32 = 16 * 1024;

/// The state between two bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkScanner {
    at: At,
    size: u64,
    extension_bytes: u32,
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

/// What comes after a run of framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framed {
    /// More framing.
    More,
    /// A chunk's data, after so many bytes.
    Data(usize),
    /// The trailers or the last empty line, after so many bytes.
    Trailers(usize),
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
                self.take(taken);
                position += taken;
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

    /// Follows `bytes` no further than to the next chunk's data, or to the trailers. `Err` is the place of the byte that
    /// breaks the framing.
    pub fn framing(&mut self, bytes: &[u8]) -> Result<Framed, usize> {
        for (position, byte) in bytes.iter().enumerate() {
            match self.at {
                At::Data => return Ok(Framed::Data(position)),
                At::TrailerStart => return Ok(Framed::Trailers(position)),
                _ => self.at = self.step(*byte).ok_or(position)?,
            }
        }
        Ok(match self.at {
            At::Data => Framed::Data(bytes.len()),
            At::TrailerStart => Framed::Trailers(bytes.len()),
            _ => Framed::More,
        })
    }

    /// How much data of the present chunk comes next, in bytes; 0 when framing does.
    pub fn data_ahead(&self) -> u64 {
        if self.at == At::Data { self.size } else { 0 }
    }

    /// So many bytes of data were taken: no more than [`Self::data_ahead`].
    pub fn take(&mut self, bytes: usize) {
        self.size = self.size.saturating_sub(bytes as u64);
        if self.size == 0 {
            self.at = At::DataCr;
        }
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
            (At::Extension, byte) if byte != b'\n' && byte != 0 && self.extension_bytes < MAX_EXTENSION_BYTES => {
                self.extension_bytes += 1;
                Some(At::Extension)
            }
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
