//! What a value of the configuration can be: decoding from the tree, writing back, and its name in the reference.
//!
//! Before: [`super::yaml`]. After: [`super::raw`], whose records are made of these values. A value that cannot be
//! decoded is reported and replaced by a placeholder, so that decoding goes on to the next problem.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;

use super::diagnostic::{Path, Report};
use super::record::RecordInfo;
use super::yaml::{Kind, Node};

/// A type of which configurations are made.
pub trait Value: Sized {
    /// What the reference and messages call it.
    fn type_name() -> String;

    /// Makes it from `node`; a placeholder when that is impossible, and then the report says why.
    fn decode(node: &Node, path: &Path<'_>, report: &mut Report) -> Self;

    /// The tree from which [`Value::decode`] makes an equal value.
    fn encode(&self) -> Node;

    /// Stands for a value that is missing or wrong. It never reaches a snapshot.
    fn placeholder() -> Self;

    /// The record that it is made of, if it is made of one.
    fn record() -> Option<&'static RecordInfo> {
        None
    }

    /// Any value, for tests.
    #[cfg(test)]
    fn random(rng: &mut rand::rngs::SmallRng) -> Self;
}

/// Values that are written as one scalar.
pub trait Scalar: Sized {
    /// What the reference and messages call it.
    const NAME: &'static str;

    /// Reads it.
    ///
    /// # Errors
    /// What was expected, when it was not that.
    fn parse(text: &str) -> Result<Self, String>;

    /// Writes it.
    fn write(&self) -> String;

    /// See [`Value::placeholder`].
    fn placeholder() -> Self;

    /// Any value, for tests.
    #[cfg(test)]
    fn random(rng: &mut rand::rngs::SmallRng) -> Self;
}

/// Makes a [`Value`] of each [`Scalar`].
macro_rules! scalar_values {
    ($($type:ty),+ $(,)?) => {$(
        impl Value for $type {
            fn type_name() -> String {
                <$type as Scalar>::NAME.to_owned()
            }

            fn decode(node: &Node, path: &Path<'_>, report: &mut Report) -> Self {
                scalar(node, path, report)
            }

            fn encode(&self) -> Node {
                Node::plain(Scalar::write(self))
            }

            fn placeholder() -> Self {
                Scalar::placeholder()
            }

            #[cfg(test)]
            fn random(rng: &mut rand::rngs::SmallRng) -> Self {
                Scalar::random(rng)
            }
        }
    )+};
}
pub(super) use scalar_values;

scalar_values!(bool, u8, u16, u32, i64, Duration, SocketAddr, IpNet, RangeInclusive<u16>);

/// Decodes a scalar.
pub(super) fn scalar<T: Scalar>(node: &Node, path: &Path<'_>, report: &mut Report) -> T {
    let parsed = match &node.kind {
        Kind::Scalar { text, .. } => T::parse(text),
        _ => Err(format!("expected {}, found {}", T::NAME, node.describe())),
    };
    parsed.unwrap_or_else(|message| {
        report.error(path, node.position, message);
        T::placeholder()
    })
}

impl Value for String {
    fn type_name() -> String {
        "text".to_owned()
    }

    fn decode(node: &Node, path: &Path<'_>, report: &mut Report) -> Self {
        match &node.kind {
            Kind::Scalar { text, .. } => text.clone(),
            _ => {
                report.error(path, node.position, format!("expected text, found {}", node.describe()));
                Self::new()
            }
        }
    }

    fn encode(&self) -> Node {
        Node::text(self)
    }

    fn placeholder() -> Self {
        Self::new()
    }

    #[cfg(test)]
    fn random(rng: &mut rand::rngs::SmallRng) -> Self {
        super::random::text(rng)
    }
}

impl<T: Value> Value for Vec<T> {
    fn type_name() -> String {
        format!("list of {}", T::type_name())
    }

    fn decode(node: &Node, path: &Path<'_>, report: &mut Report) -> Self {
        let Kind::List(items) = &node.kind else {
            let written = match &node.kind {
                Kind::Scalar { text, quoted: false } => format!(": write [{text}]"),
                Kind::Mapping(_) => ": write a `-` before each element".to_owned(),
                _ => String::new(),
            };
            report.error(path, node.position, format!("expected a list, found {}{written}", node.describe()));
            return Self::new();
        };
        items.iter().enumerate().map(|(index, item)| T::decode(item, &path.index(index), report)).collect()
    }

    fn encode(&self) -> Node {
        Node::made(Kind::List(self.iter().map(Value::encode).collect()))
    }

    fn placeholder() -> Self {
        Self::new()
    }

    fn record() -> Option<&'static RecordInfo> {
        T::record()
    }

    #[cfg(test)]
    fn random(rng: &mut rand::rngs::SmallRng) -> Self {
        super::random::list(rng, T::random)
    }
}

impl<T: Value> Value for Box<T> {
    fn type_name() -> String {
        T::type_name()
    }

    fn decode(node: &Node, path: &Path<'_>, report: &mut Report) -> Self {
        Self::new(T::decode(node, path, report))
    }

    fn encode(&self) -> Node {
        T::encode(self)
    }

    fn placeholder() -> Self {
        Self::new(T::placeholder())
    }

    fn record() -> Option<&'static RecordInfo> {
        T::record()
    }

    #[cfg(test)]
    fn random(rng: &mut rand::rngs::SmallRng) -> Self {
        Self::new(T::random(rng))
    }
}

impl Scalar for bool {
    const NAME: &'static str = "`true` or `false`";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(format!("expected true or false, found `{text}`")),
        }
    }

    fn write(&self) -> String {
        self.to_string()
    }

    fn placeholder() -> Self {
        false
    }

    #[cfg(test)]
    fn random(rng: &mut rand::rngs::SmallRng) -> Self {
        rand::RngExt::random(rng)
    }
}

macro_rules! integers {
    ($($type:ident $name:literal),+ $(,)?) => {$(
        impl Scalar for $type {
            const NAME: &'static str = $name;

            fn parse(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| {
                    format!("expected a whole number from {} to {}, found `{text}`", $type::MIN, $type::MAX)
                })
            }

            fn write(&self) -> String {
                self.to_string()
            }

            fn placeholder() -> Self {
                0
            }

            #[cfg(test)]
            fn random(rng: &mut rand::rngs::SmallRng) -> Self {
                rand::RngExt::random(rng)
            }
        }
    )+};
}

integers!(u8 "whole number", u16 "whole number", u32 "whole number", i64 "whole number, possibly negative");

/// The longest duration: one year. Adding it to a clock never overflows.
pub const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

/// Units of durations, in nanoseconds; the larger first, as they are tried for writing.
const UNITS: [(&str, u128); 6] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

impl Scalar for Duration {
    const NAME: &'static str = "duration";

    fn parse(text: &str) -> Result<Self, String> {
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let wrong = || format!("expected a duration such as 5s, 0.25s, 250ms, 1m or 1h, found `{text}`");
        if unit.is_empty() && !number.is_empty() {
            return Err(format!("{}: a unit is missing, write {number}s or {number}ms", wrong()));
        }
        let (_, unit_ns) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let duration = nanoseconds(number, *unit_ns).map(Self::from_nanos).ok_or_else(wrong)?;
        if duration > MAX_DURATION {
            return Err(format!("`{text}` is longer than a year, the longest duration there is"));
        }
        Ok(duration)
    }

    fn write(&self) -> String {
        let ns = self.as_nanos();
        let (unit, unit_ns) = match ns {
            0 => ("s", 1),
            _ => *UNITS.iter().find(|(_, unit)| ns.is_multiple_of(*unit)).unwrap_or(&("ns", 1)),
        };
        format!("{}{unit}", ns / unit_ns)
    }

    fn placeholder() -> Self {
        Self::ZERO
    }

    #[cfg(test)]
    fn random(rng: &mut rand::rngs::SmallRng) -> Self {
        super::random::duration(rng)
    }
}

/// `number` (digits, perhaps with a decimal point) times `unit_ns`; fractions of a nanosecond are cut off.
fn nanoseconds(number: &str, unit_ns: u128) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    // 15 digits of the largest unit, an hour, stay far below 2^128.
    if fraction.is_empty() || fraction.len() > 15 {
        return None;
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let whole: u64 = whole.parse().ok()?;
    let fraction: u128 = fraction.parse().ok()?;
    let ns = u128::from(whole) * unit_ns + fraction * unit_ns / scale;
    // Beyond the range of an u64 it is beyond a year as well: the caller says so.
    Some(u64::try_from(ns).unwrap_or(u64::MAX))
}

impl Scalar for SocketAddr {
    const NAME: &'static str = "`IP:PORT`";

    fn parse(text: &str) -> Result<Self, String> {
        let wrong = |hint: &str| format!("expected IP:PORT such as 127.0.0.1:8080 or [::1]:8080, found `{text}`{hint}");
        text.parse().map_err(|_| match (text.parse::<IpAddr>(), text.rsplit_once(':')) {
            (Ok(IpAddr::V4(_)), _) => wrong(": the port is missing"),
            (Ok(IpAddr::V6(_)), _) => wrong(": write an IPv6 address in brackets, and the port behind it"),
            (_, None) => wrong(""),
            (_, Some((host, port))) if port.parse::<u16>().is_err() => {
                wrong(&format!(": `{port}` is no port, and `{host}` stands before it"))
            }
            (_, Some((host, _))) => wrong(&format!(": `{host}` is no IP address")),
        })
    }

    fn write(&self) -> String {
        self.to_string()
    }

    fn placeholder() -> Self {
        Self::from(([0, 0, 0, 0], 0))
    }

    #[cfg(test)]
    fn random(rng: &mut rand::rngs::SmallRng) -> Self {
        super::random::address(rng)
    }
}

impl Scalar for IpNet {
    const NAME: &'static str = "CIDR";

    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected a CIDR such as 10.0.0.0/8 or fd00::/8, found `{text}`");
        let net = text.parse().or_else(|_| text.parse::<IpAddr>().map(Self::from)).map_err(|_| wrong())?;
        if net.trunc() != net {
            let (net, bits) = (net.trunc(), net.prefix_len());
            return Err(format!("`{text}` has bits beyond its {bits}: write {net}"));
        }
        Ok(net)
    }

    fn write(&self) -> String {
        self.to_string()
    }

    fn placeholder() -> Self {
        Self::from(IpAddr::from([0, 0, 0, 0]))
    }

    #[cfg(test)]
    fn random(rng: &mut rand::rngs::SmallRng) -> Self {
        super::random::net(rng)
    }
}

impl Scalar for RangeInclusive<u16> {
    const NAME: &'static str = "port or `FIRST-LAST`";

    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected a port such as 80 or a range such as 8000-8999, found `{text}`");
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (first.trim().parse().map_err(|_| wrong())?, last.trim().parse().map_err(|_| wrong())?);
        if first > last {
            return Err(format!("the range `{text}` is empty: write {last}-{first}"));
        }
        Ok(first..=last)
    }

    fn write(&self) -> String {
        if self.start() == self.end() { self.start().to_string() } else { format!("{}-{}", self.start(), self.end()) }
    }

    fn placeholder() -> Self {
        0..=0
    }

    #[cfg(test)]
    fn random(rng: &mut rand::rngs::SmallRng) -> Self {
        let (a, b): (u16, u16) = rand::RngExt::random(rng);
        a.min(b)..=a.max(b)
    }
}
