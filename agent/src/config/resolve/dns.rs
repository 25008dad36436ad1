//! `dns`: whether the agent can be asked at its address, and its resolvers at theirs.

use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;

use waylay_common::dns::Slot;

use super::Resolver;
use crate::config::diagnostic::Path;
use crate::config::raw::Config;
use crate::config::raw::dns::Dns as RawDns;
use crate::dns::{CacheLimits, DnsOptions, KeepLimits, PORTS};

/// Resolves `dns`; absent is off.
pub fn dns(resolver: &mut Resolver<'_>, config: &Config) -> Option<Option<Arc<DnsOptions>>> {
    let path = Path::ROOT.field("dns");
    let Some(raw) = &config.dns else { return Some(None) };
    let taken =
        config.intercept.is_some() || config.listeners.iter().any(|one| one.bind_to_port && one.use_original_dst);
    if !taken && !resolver.report.is_undecoded("listeners") && !resolver.report.is_undecoded("intercept") {
        resolver.error(
            &path,
            "nothing is intercepted, so that no question comes here: give one listener `use_original_dst: true`",
        );
        return None;
    }
    let address = address(resolver, raw.address, &path.field("address"));
    let upstreams = resolver.each(&raw.upstreams, &path.field("upstreams"), |resolver, upstream, path| {
        upstream_address(resolver, *upstream, raw, path)
    });
    let timeout = resolver.positive(&path.field("timeout"), raw.timeout);
    let attempts = resolver.within(&path.field("attempts"), raw.attempts, 1..=10);
    let entries = resolver.within(&path.field("cache_entries"), raw.cache_entries, 0..=1_000_000);
    let max_pending = resolver.within(&path.field("max_pending"), raw.max_pending, 1..=65_536);
    let size = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    Some(Some(Arc::new(DnsOptions {
        address: address?,
        upstreams: upstreams?,
        timeout: timeout?,
        attempts: attempts?,
        cache: CacheLimits { entries: size(entries?), bytes: size(raw.cache_bytes) },
        keep: KeepLimits { max_ttl: raw.max_ttl, max_negative_ttl: raw.max_negative_ttl },
        max_pending: size(max_pending?),
    })))
}

fn address(resolver: &mut Resolver<'_>, address: SocketAddr, path: &Path<'_>) -> Option<SocketAddrV4> {
    let last = u16::MAX - (PORTS - 1);
    match address {
        SocketAddr::V4(address) if address.ip().is_loopback() => {
            if address.port() == 0 || address.port() > last {
                let message = format!("the port must be 1 to {last}: the {} behind it are taken as well", PORTS - 1);
                resolver.error(path, message);
                return None;
            }
            if Slot::at(SocketAddr::V4(address).into(), address.port()).is_some() {
                resolver.error(
                    path,
                    "the addresses of 127.53.0.0/16 stand for resolvers: choose another, such as 127.0.0.1",
                );
                return None;
            }
            Some(address)
        }
        _ => {
            let message = format!(
                "questions come over the loopback interface: give an address of 127.0.0.0/8, such as 127.0.0.1:{}",
                address.port()
            );
            resolver.error(path, message);
            None
        }
    }
}

fn upstream_address(
    resolver: &mut Resolver<'_>,
    upstream: SocketAddr,
    raw: &RawDns,
    path: &Path<'_>,
) -> Option<SocketAddr> {
    let ip = upstream.ip();
    let message = if upstream.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
        format!("nobody can be asked at {upstream}: give the address and port of a resolver, such as 10.96.0.10:53")
    } else if ip.to_canonical() != ip {
        format!("{upstream} is an IPv4 address: write it as one")
    } else if upstream == raw.address {
        format!("{upstream} is the agent itself: it would ask itself for ever")
    } else {
        if ip.is_loopback() {
            let message = "a resolver on this host asks others, and where it is intercepted these questions come back to the agent: exclude whom it asks, or leave it out of the control group";
            resolver.warn(path, message);
        }
        return Some(upstream);
    };
    resolver.error(path, message);
    None
}
