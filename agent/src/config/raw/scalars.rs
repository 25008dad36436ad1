//! Values with more than one notation: an address or `off`, `true` or `{}`, text or a record.

use std::net::SocketAddr;

use crate::config::diagnostic::{Path, Report};
use crate::config::record::{RecordInfo, choose};
use crate::config::value::{Scalar, Value, scalar, scalar_values};
use crate::config::yaml::{Kind, Node};
use crate::http::route::RetryOn;

/// An address, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressOrOff(pub Option<SocketAddr>);

/// Bytes, in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hex(pub Vec<u8>);

/// The status of a redirect: Envoy's word for it or the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedirectStatus(pub u16);

scalar_values!(AddressOrOff, Hex, RedirectStatus);

impl Scalar for AddressOrOff {
    const NAME: &'static str = "`IP:PORT` or `off`";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self(None)),
            _ => Scalar::parse(text).map(|address| Self(Some(address))).map_err(|error| format!("{error} (or `off`)")),
        }
    }

    fn write(&self) -> String {
        self.0.map_or_else(|| "off".to_owned(), |address| address.to_string())
    }

    fn placeholder() -> Self {
        Self(None)
    }

    #[cfg(test)]
    fn random(rng: &mut rand::rngs::SmallRng) -> Self {
        Self(crate::config::random::option(rng, Scalar::random))
    }
}

impl Scalar for Hex {
    const NAME: &'static str = "bytes in hexadecimal digits";

    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected bytes as pairs of hexadecimal digits such as 50494e47, found `{text}`");
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if !rest.is_empty() || pairs.is_empty() {
            return Err(wrong());
        }
        let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect::<Option<_>>();
        bytes.map(Self).ok_or_else(wrong)
    }

    fn write(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn placeholder() -> Self {
        Self(Vec::new())
    }

    #[cfg(test)]
    fn random(rng: &mut rand::rngs::SmallRng) -> Self {
        let mut bytes: Vec<u8> = crate::config::random::list(rng, Scalar::random);
        bytes.push(0);
        Self(bytes)
    }
}

/// Envoy's words for the statuses of redirects.
const REDIRECTS: [(&str, u16); 5] = [
    ("MOVED_PERMANENTLY", 301),
    ("FOUND", 302),
    ("SEE_OTHER", 303),
    ("TEMPORARY_REDIRECT", 307),
    ("PERMANENT_REDIRECT", 308),
];

impl Scalar for RedirectStatus {
    const NAME: &'static str = "`301`, `302`, `303`, `307`, `308` or Envoy's word for it";

    fn parse(text: &str) -> Result<Self, String> {
        let known =
            REDIRECTS.iter().find(|(word, status)| word.eq_ignore_ascii_case(text) || status.to_string() == text);
        known.map(|(_, status)| Self(*status)).ok_or_else(|| {
            let known = REDIRECTS.map(|(word, status)| format!("{status} ({word})")).join(", ");
            format!("expected the status of a redirect, one of {known}; found `{text}`")
        })
    }

    fn write(&self) -> String {
        self.0.to_string()
    }

    fn placeholder() -> Self {
        Self(301)
    }

    #[cfg(test)]
    fn random(rng: &mut rand::rngs::SmallRng) -> Self {
        Self(crate::config::random::one_of(rng, REDIRECTS).1)
    }
}

/// A condition that is switched on: `true`, or Envoy's empty message `{}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flag(pub bool);

impl Value for Flag {
    fn type_name() -> String {
        bool::type_name()
    }

    fn decode(node: &Node, path: &Path<'_>, report: &mut Report) -> Self {
        match &node.kind {
            Kind::Mapping(entries) if entries.is_empty() => Self(true),
            _ => Self(scalar(node, path, report)),
        }
    }

    fn encode(&self) -> Node {
        self.0.encode()
    }

    fn placeholder() -> Self {
        Self(false)
    }

    #[cfg(test)]
    fn random(rng: &mut rand::rngs::SmallRng) -> Self {
        Self(Scalar::random(rng))
    }
}

/// A record that can be written as one text.
pub trait FromText: Value {
    /// The record of which `text` is short for.
    fn from_text(text: &str) -> Self;
}

/// A record, or the text that is short for it.
#[derive(Clone, Debug, PartialEq)]
pub struct OrText<R>(pub R);

impl<R: FromText> Value for OrText<R> {
    fn type_name() -> String {
        format!("text or {}", R::type_name())
    }

    fn decode(node: &Node, path: &Path<'_>, report: &mut Report) -> Self {
        Self(match &node.kind {
            Kind::Scalar { text, .. } => R::from_text(text),
            _ => R::decode(node, path, report),
        })
    }

    fn encode(&self) -> Node {
        self.0.encode()
    }

    fn placeholder() -> Self {
        Self(R::placeholder())
    }

    fn record() -> Option<&'static RecordInfo> {
        R::record()
    }

    #[cfg(test)]
    fn random(rng: &mut rand::rngs::SmallRng) -> Self {
        Self(R::random(rng))
    }
}

/// `retry_on`: conditions as a list, or as Envoy writes them, in one text with commas.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryConditions(pub Vec<RetryOn>);

const RETRY_ON: [(&str, RetryOn); 13] = [
    ("5xx", RetryOn::FiveXx),
    ("gateway-error", RetryOn::GatewayError),
    ("reset", RetryOn::Reset),
    ("reset-before-request", RetryOn::ResetBeforeRequest),
    ("connect-failure", RetryOn::ConnectFailure),
    ("refused-stream", RetryOn::RefusedStream),
    ("retriable-4xx", RetryOn::Retriable4xx),
    ("retriable-status-codes", RetryOn::RetriableStatusCodes),
    ("cancelled", RetryOn::GrpcCancelled),
    ("deadline-exceeded", RetryOn::GrpcDeadlineExceeded),
    ("internal", RetryOn::GrpcInternal),
    ("resource-exhausted", RetryOn::GrpcResourceExhausted),
    ("unavailable", RetryOn::GrpcUnavailable),
];

impl Value for RetryConditions {
    fn type_name() -> String {
        format!("list, or text with commas, of {}", RETRY_ON.map(|(word, _)| format!("`{word}`")).join(", "))
    }

    fn decode(node: &Node, path: &Path<'_>, report: &mut Report) -> Self {
        let words = RETRY_ON.map(|(word, _)| word);
        let mut conditions = Vec::new();
        let mut add = |node: &Node, path: &Path<'_>, report: &mut Report| {
            let word = choose(node, path, report, &words);
            conditions
                .extend(RETRY_ON.iter().filter(|(known, _)| Some(*known) == word).map(|(_, condition)| *condition));
        };
        match &node.kind {
            Kind::Scalar { text, .. } => {
                for word in text.split(',') {
                    let word = Node { position: node.position, ..Node::plain(word.trim()) };
                    add(&word, path, report);
                }
            }
            Kind::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    add(item, &path.index(index), report);
                }
            }
            _ => {
                report.error(path, node.position, format!("expected {}, found {}", Self::type_name(), node.describe()))
            }
        }
        Self(conditions)
    }

    fn encode(&self) -> Node {
        let word =
            |condition| RETRY_ON.iter().find(|(_, known)| known == condition).map(|(word, _)| Node::plain(*word));
        Node::made(Kind::List(self.0.iter().filter_map(word).collect()))
    }

    fn placeholder() -> Self {
        Self(Vec::new())
    }

    #[cfg(test)]
    fn random(rng: &mut rand::rngs::SmallRng) -> Self {
        Self(crate::config::random::list(rng, |rng| crate::config::random::one_of(rng, RETRY_ON).1))
    }
}
