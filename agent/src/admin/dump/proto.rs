//! The JSON forms of protobuf's and Envoy's small types.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

/// The type URL of one of Envoy's messages, named from below the package `envoy`.
pub fn any(message: &str) -> String {
    format!("type.googleapis.com/envoy.{message}")
}

/// `google.protobuf.Duration`: seconds with three, six or nine places.
pub fn duration(duration: Duration) -> String {
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
    match nanos {
        0 => format!("{seconds}s"),
        _ if nanos % 1_000_000 == 0 => format!("{seconds}.{:03}s", nanos / 1_000_000),
        _ if nanos % 1_000 == 0 => format!("{seconds}.{:06}s", nanos / 1_000),
        _ => format!("{seconds}.{nanos:09}s"),
    }
}

/// A timeout, for which Envoy writes "never" as zero.
pub fn timeout(timeout: Option<Duration>) -> String {
    duration(timeout.unwrap_or_default())
}

/// `envoy.config.core.v3.Address`.
pub fn socket_address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

/// `envoy.config.core.v3.CidrRange`s.
pub fn cidr_ranges(nets: &[IpNet]) -> Value {
    nets.iter().map(|net| json!({"address_prefix": net.addr().to_string(), "prefix_len": net.prefix_len()})).collect()
}

/// A JSON object that is put together step by step, leaving out what is at its default, as protobuf does.
#[derive(Default)]
pub struct Object(Map<String, Value>);

impl Object {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// With a field.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.insert(key.to_owned(), value.into());
        self
    }

    /// With a field if there is a value.
    pub fn maybe(self, key: &str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(key, value),
            None => self,
        }
    }

    /// With a field unless the list is empty.
    pub fn list(self, key: &str, values: Vec<impl Into<Value>>) -> Self {
        if values.is_empty() { self } else { self.with(key, values) }
    }

    /// With a field that is true, or without it.
    pub fn flag(self, key: &str, set: bool) -> Self {
        if set { self.with(key, true) } else { self }
    }

    /// The object.
    pub fn done(self) -> Value {
        Value::Object(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_the_places_they_need() {
        for (nanos, expected) in [
            (0, "0s"),
            (5_000_000_000, "5s"),
            (250_000_000, "0.250s"),
            (1_000_050_000, "1.000050s"),
            (1, "0.000000001s"),
        ] {
            assert_eq!(duration(Duration::from_nanos(nanos)), expected);
        }
    }
}
