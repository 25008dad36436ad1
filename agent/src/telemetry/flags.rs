//! Response flags: why a connection or request ended the way it did, in Envoy's short codes.
//!
//! Source of the codes and their order: Envoy, configuration/observability/access_log/usage, `%RESPONSE_FLAGS%`.

use std::fmt;

use serde::{Serialize, Serializer};

macro_rules! flags {
    ($($name:ident = $bit:literal, $code:literal, $doc:literal;)*) => {
        /// A set of response flags; empty prints as `-`, several are joined with a comma.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub struct ResponseFlags(u32);

        impl ResponseFlags {
            $(#[doc = $doc] pub const $name: Self = Self(1 << $bit);)*

            const ALL: &'static [(Self, &'static str)] = &[$((Self::$name, $code),)*];
        }
    };
}

flags! {
    NO_HEALTHY_UPSTREAM = 1, "UH", "No healthy endpoint in the cluster.";
    UPSTREAM_REQUEST_TIMEOUT = 2, "UT", "The route's timeout passed.";
    LOCAL_RESET = 3, "LR", "The agent reset the connection.";
    UPSTREAM_REMOTE_RESET = 4, "UR", "The endpoint reset the request.";
    UPSTREAM_CONNECTION_FAILURE = 5, "UF", "The connection to the endpoint could not be opened.";
    UPSTREAM_CONNECTION_TERMINATION = 6, "UC", "The endpoint closed the connection before its response was complete.";
    UPSTREAM_OVERFLOW = 7, "UO", "A circuit breaker refused.";
    NO_ROUTE = 8, "NR", "No route, or no filter chain, matched.";
    NO_CLUSTER = 9, "NC", "The route names no known cluster.";
    UPSTREAM_RETRY_LIMIT = 10, "URX", "All tries were used up.";
    DOWNSTREAM_TERMINATION = 11, "DC", "The client closed the connection.";
    STREAM_IDLE_TIMEOUT = 12, "SI", "Nothing moved for the idle timeout.";
    DOWNSTREAM_PROTOCOL_ERROR = 13, "DPE", "The client broke the protocol.";
    UPSTREAM_PROTOCOL_ERROR = 14, "UPE", "The endpoint broke the protocol.";
    DURATION_TIMEOUT = 15, "DT", "The connection reached its longest duration.";
    UPSTREAM_MAX_STREAM_DURATION = 16, "UMSDR", "The request reached its longest duration.";
    OVERLOAD = 17, "OM", "The agent was overloaded.";
}

impl ResponseFlags {
    /// No flag at all.
    pub const NONE: Self = Self(0);

    /// Adds the flags of `other`.
    pub fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Whether all flags of `other` are set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether no flag is set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        let mut separator = "";
        for (flag, code) in Self::ALL {
            if self.contains(*flag) {
                write!(f, "{separator}{code}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}

impl Serialize for ResponseFlags {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_print_as_envoy_prints_them() {
        let mut flags = ResponseFlags::NONE;
        assert_eq!(flags.to_string(), "-");
        flags.insert(ResponseFlags::UPSTREAM_RETRY_LIMIT);
        flags.insert(ResponseFlags::UPSTREAM_CONNECTION_FAILURE);
        assert_eq!(flags.to_string(), "UF,URX");
    }
}
