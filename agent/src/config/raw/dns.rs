//! `dns`: how questions to resolvers are answered.

use std::net::SocketAddr;
use std::time::Duration;

use crate::config::record::record;

record! {
    /// How DNS questions over UDP are answered. They are those to port 53 of whatever is intercepted, in all enrolled network
    /// namespaces; `exclude` rules hold for them, `include` rules do not. Without this record they pass untouched.
    pub struct Dns("dns", "extensions.filters.udp.dns_filter.v3.DnsFilterConfig") {
        /// Where the agent itself can be asked: an IPv4 loopback address. Its port and the seven behind it are taken in every enrolled network namespace, UDP only.
        address: SocketAddr, default(super::local(15053)), envoy("-");
        /// Resolvers that are asked in place of those that the clients ask, in this order, from the agent's own network namespace. Empty: the resolver that was asked, from the network namespace of whoever asked.
        upstreams: Vec<SocketAddr>, default(Vec::new()), envoy("client_config.dns_resolution_config.resolvers");
        /// How long one try may take. Most clients lose their patience after 5s.
        timeout: Duration, default(Duration::from_secs(2)), envoy("client_config.resolver_timeout");
        /// How often each resolver is tried, 1 to 10.
        attempts: u32, default(2), envoy("-");
        /// How many answers are kept, at most 1000000; `0` keeps none.
        cache_entries: u32, default(10_000), envoy("-");
        /// How much memory they may take, in bytes.
        cache_bytes: u32, default(16 * 1024 * 1024), envoy("-");
        /// How long an answer is kept at most, however long its records live; clients see no longer time either.
        max_ttl: Duration, default(Duration::from_secs(3600)), envoy("-");
        /// The same for the answer that there is no such name or record.
        max_negative_ttl: Duration, default(Duration::from_secs(300)), envoy("-");
        /// How many questions of one network namespace may wait for an answer, 1 to 65536. Those beyond are answered SERVFAIL.
        max_pending: u32, default(1000), envoy("client_config.max_pending_lookups");
    }
}
