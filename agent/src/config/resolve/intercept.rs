//! `intercept`: what the kernel redirects, and whether there is somebody to redirect it to.

use std::net::SocketAddr;
use std::path::{Component, PathBuf};

use super::Resolver;
use crate::config::diagnostic::Path;
use crate::config::raw::Config;
use crate::config::raw::intercept::{Intercept as RawIntercept, Rule as RawRule};
use crate::config::value::Value as _;
use crate::kernel::policy::Compiled;
use crate::kernel::{Policy, Rule};
use crate::snapshot::{Intercept, Redirect};

/// Handshakes that may be under way at once, at most: 2^20 entries of the kernel's map take about 150 MiB.
const MAX_HANDOVER_ENTRIES: u32 = 1 << 20;

/// Resolves `intercept`; it is implied by a listener to which the kernel can redirect.
pub fn intercept(resolver: &mut Resolver<'_>, config: &Config) -> Option<Option<Intercept>> {
    let path = Path::ROOT.field("intercept");
    let target = config.listeners.iter().find(|listener| listener.bind_to_port && listener.use_original_dst);
    match (&config.intercept, target) {
        (None, None) => Some(None),
        (None, Some(_)) => intercepted(resolver, config, &RawIntercept::placeholder(), &path).map(Some),
        (Some(raw), Some(listener)) if !raw.redirect_to.is_empty() => {
            let message = format!(
                "the kernel redirects to one place: take this away, or `use_original_dst` from listener `{}`",
                listener.name
            );
            resolver.error(&path.field("redirect_to"), message);
            intercepted(resolver, config, raw, &path);
            None
        }
        (Some(raw), _) if target.is_some() || !raw.redirect_to.is_empty() => {
            intercepted(resolver, config, raw, &path).map(Some)
        }
        (Some(raw), _) => {
            let message = "nothing to redirect to: give one listener `use_original_dst: true` and an address of its own, such as 127.0.0.1:15001";
            let undecoded = ["listeners", "intercept.redirect_to"];
            if !undecoded.iter().any(|field| resolver.report.is_undecoded(field)) {
                resolver.error(&path, message);
            }
            intercepted(resolver, config, raw, &path);
            None
        }
    }
}

fn intercepted(resolver: &mut Resolver<'_>, config: &Config, raw: &RawIntercept, path: &Path<'_>) -> Option<Intercept> {
    let cgroup = cgroup(resolver, &raw.cgroup, &path.field("cgroup"));
    let outbound = path.field("outbound");
    let include = resolver.each(&raw.outbound.include, &outbound.field("include"), rule);
    let exclude = resolver.each(&raw.outbound.exclude, &outbound.field("exclude"), rule);
    let entries = &path.field("handover_entries");
    let handover_entries = resolver.within(entries, raw.handover_entries, 1..=MAX_HANDOVER_ENTRIES);
    let to = redirect(resolver, config, &raw.redirect_to, &path.field("redirect_to"));
    let (cgroup, policy, redirect) = (cgroup?, Policy { include: include?, exclude: exclude? }, to?);
    if let Redirect::Proxy { v4, v6 } = redirect {
        proxy_receives_all(resolver, &policy, (v4.is_some(), v6.is_some()), &path.field("redirect_to"))?;
        if raw.cgroup == "/" && policy == Policy::default() {
            let message = "every process is intercepted, the proxy too: its own connections come back to it; name the cgroup of the programs to intercept";
            resolver.warn(&path.field("cgroup"), message);
        }
    }
    Some(Intercept {
        cgroup,
        host: true,
        processes: Vec::new(),
        outbound: policy,
        inbound: None,
        pods: None,
        redirect,
        on_agent_loss: raw.on_agent_loss,
        handover_entries: handover_entries?,
    })
}

/// At most one address of each family, each one that another program can accept on.
fn redirect(
    resolver: &mut Resolver<'_>,
    config: &Config,
    addresses: &[SocketAddr],
    path: &Path<'_>,
) -> Option<Redirect> {
    if addresses.is_empty() {
        return Some(Redirect::Listeners);
    }
    let (mut v4, mut v6, mut ok) = (None, None, Some(()));
    for (index, &address) in addresses.iter().enumerate() {
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        let listener = config.listeners.iter().find(|listener| listener.bind_to_port && listener.address == address);
        let message = if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
            format!("nobody can connect to {address}: give the address and port where the proxy listens")
        } else if address.ip().to_canonical() != address.ip() {
            format!("{address} is an IPv4 address: write it as one")
        } else if let Some(listener) = listener {
            format!(
                "{address} is the address of listener `{}`: give it `use_original_dst: true` instead",
                listener.name
            )
        } else {
            let taken = match address {
                SocketAddr::V4(address) => v4.replace(address).map(SocketAddr::V4),
                SocketAddr::V6(address) => v6.replace(address).map(SocketAddr::V6),
            };
            let Some(other) = taken else { continue };
            format!("all {family} connections go to one address, and that is {other}")
        };
        resolver.error(&path.index(index), message);
        ok = None;
    }
    ok.map(|()| Redirect::Proxy { v4, v6 })
}

/// A family that is taken and has no address to go to would pass by the proxy unseen.
fn proxy_receives_all(
    resolver: &mut Resolver<'_>,
    policy: &Policy,
    (v4, v6): (bool, bool),
    path: &Path<'_>,
) -> Option<()> {
    // A policy that does not fit is the kernel's to refuse: it knows its limits.
    let Ok(compiled) = Compiled::new(policy) else { return Some(()) };
    let mut ok = Some(());
    for (family, missing, everything) in
        [("IPv4", compiled.intercepts_v4() && !v4, "0.0.0.0/0"), ("IPv6", compiled.intercepts_v6() && !v6, "::/0")]
    {
        if missing {
            let message = format!(
                "{family} connections are taken and have nowhere to go: add an {family} address, or exclude {everything}"
            );
            resolver.error(path, message);
            ok = None;
        }
    }
    ok
}

fn cgroup(resolver: &mut Resolver<'_>, text: &str, path: &Path<'_>) -> Option<PathBuf> {
    let cgroup = PathBuf::from(text);
    let climbs = cgroup.components().any(|part| matches!(part, Component::ParentDir));
    if !text.starts_with('/') || climbs {
        let message = format!("must begin with `/` (the cgroup2 mount itself) and go downwards, found `{text}`");
        resolver.error(path, message);
        return None;
    }
    Some(cgroup)
}

fn rule(resolver: &mut Resolver<'_>, raw: &RawRule, path: &Path<'_>) -> Option<Rule> {
    if raw.cidr.is_none() && raw.ports.is_empty() {
        resolver.error(path, "a rule needs `cidr`, `ports` or both; for all addresses write 0.0.0.0/0 and ::/0");
        return None;
    }
    Some(Rule { cidr: raw.cidr, ports: raw.ports.clone() })
}
