//! The rows of `--local` and `--inbound`.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// What local programs send to `from` goes to `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalRow {
    from: Taken,
    to: SocketAddr,
}

/// A destination of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// This port, of any address.
    Port(u16),
    /// This address and port.
    Address(SocketAddr),
}

/// What arrives at `port` of this machine goes to `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundRow {
    port: u16,
    to: SocketAddr,
}

/// A row that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// No arrow.
    #[error("expected 'PORT => IP:PORT' in quotes, as in '8080 => 127.0.0.1:9001'")]
    Arrow,
    /// The right side.
    #[error("'{0}' is no IP:PORT that can be connected to, such as 127.0.0.1:9001")]
    To(String),
    /// The left side of a local row.
    #[error("'{0}' is neither a port from 1 to 65535 nor IP:PORT")]
    From(String),
    /// The left side of an inbound row.
    #[error("'{0}' is no port from 1 to 65535")]
    Port(String),
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => port.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl FromStr for Taken {
    type Err = RowError;

    fn from_str(text: &str) -> Result<Self, RowError> {
        let error = || RowError::From(text.to_owned());
        if let Some(port) = port(text) {
            return Ok(Self::Port(port));
        }
        let address: SocketAddr = text.parse().map_err(|_| error())?;
        let address = crate::addr::canonical(address);
        match (address.port(), address.ip().is_unspecified()) {
            (0, _) => Err(error()),
            (port, true) => Ok(Self::Port(port)),
            (_, false) => Ok(Self::Address(address)),
        }
    }
}

impl FromStr for LocalRow {
    type Err = RowError;

    fn from_str(text: &str) -> Result<Self, RowError> {
        let (from, to) = sides(text)?;
        Ok(Self { from: from.parse()?, to })
    }
}

impl FromStr for InboundRow {
    type Err = RowError;

    fn from_str(text: &str) -> Result<Self, RowError> {
        let (from, to) = sides(text)?;
        Ok(Self { port: port(from).ok_or_else(|| RowError::Port(from.to_owned()))?, to })
    }
}

fn sides(text: &str) -> Result<(&str, SocketAddr), RowError> {
    let (from, to) = text.split_once("=>").ok_or(RowError::Arrow)?;
    let to = to.trim();
    let address = to.parse().ok().filter(|address: &SocketAddr| address.port() != 0 && !address.ip().is_unspecified());
    Ok((from.trim(), address.ok_or_else(|| RowError::To(to.to_owned()))?))
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

impl LocalRow {
    /// What is taken.
    pub fn from(&self) -> Taken {
        self.from
    }

    /// Where it goes.
    pub fn to(&self) -> SocketAddr {
        self.to
    }
}

impl InboundRow {
    /// What is taken.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it goes.
    pub fn to(&self) -> SocketAddr {
        self.to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_in_every_form() {
        for (text, from, to) in [
            ("8080 => 127.0.0.1:9001", "8080", "127.0.0.1:9001"),
            ("8080=>[::1]:9001", "8080", "[::1]:9001"),
            (" 10.0.0.1:80 =>127.0.0.1:9001 ", "10.0.0.1:80", "127.0.0.1:9001"),
            ("[::ffff:10.0.0.1]:80 => 127.0.0.1:1", "10.0.0.1:80", "127.0.0.1:1"),
            ("0.0.0.0:80 => 127.0.0.1:1", "80", "127.0.0.1:1"),
        ] {
            let row: LocalRow = text.parse().expect(text);
            assert_eq!((row.from.to_string(), row.to.to_string()), (from.into(), to.into()), "{text}");
        }
        let row: InboundRow = "80 => 127.0.0.1:9001".parse().expect("a row");
        assert_eq!((row.port(), row.to().to_string()), (80, "127.0.0.1:9001".to_owned()));
    }

    #[test]
    fn what_is_no_row_is_explained() {
        for (text, message) in [
            ("8080", "expected 'PORT => IP:PORT' in quotes"),
            ("8080 => 9001", "'9001' is no IP:PORT"),
            ("8080 => localhost:9001", "'localhost:9001' is no IP:PORT"),
            ("8080 => 0.0.0.0:9001", "'0.0.0.0:9001' is no IP:PORT"),
            ("0 => 127.0.0.1:1", "'0' is neither a port"),
            ("http => 127.0.0.1:1", "'http' is neither a port"),
            ("65536 => 127.0.0.1:1", "'65536' is neither a port"),
        ] {
            let error = text.parse::<LocalRow>().expect_err(text).to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
        let error = "127.0.0.1:80 => 127.0.0.1:1".parse::<InboundRow>().expect_err("no port").to_string();
        assert!(error.contains("is no port"), "{error}");
    }
}
