//! `intercept`: what the kernel takes, and whether there is somebody to hand it to.

use std::path::{Component, PathBuf};

use super::receivers::{proxy_receives_all, receiver, redirect, takes_inbound};
use super::{Resolver, pods, processes};
use crate::config::diagnostic::Path;
use crate::config::raw::Config;
use crate::config::raw::intercept::{
    Inbound as RawInbound, Intercept as RawIntercept, Policy as RawPolicy, Rule as RawRule,
};
use crate::config::raw::pods::PodPolicy as RawPodPolicy;
use crate::config::value::Value as _;
use crate::kernel::{Policy, Rule};
use crate::listener::TrafficDirection;
use crate::snapshot::{Inbound, Intercept, Redirect};

/// Handshakes that may be under way at once, at most: 2^20 entries of the kernel's map take about 150 MiB.
const MAX_HANDOVER_ENTRIES: u32 = 1 << 20;

/// Resolves `intercept`; it is implied by a listener to which the kernel can redirect.
pub fn intercept(resolver: &mut Resolver<'_>, config: &Config) -> Option<Option<Intercept>> {
    let path = Path::ROOT.field("intercept");
    let implied = RawIntercept::placeholder();
    let raw = match &config.intercept {
        Some(raw) => raw,
        None if receiver(config, TrafficDirection::Outbound).is_some() => &implied,
        None => return Some(None),
    };
    let outbound = outbound_goes_somewhere(resolver, config, raw, &path);
    let inbound = inbound_goes_somewhere(resolver, config, raw, &path);
    let intercept = intercepted(resolver, config, raw, &path);
    outbound.and(inbound).and(intercept).map(Some)
}

fn outbound_goes_somewhere(
    resolver: &mut Resolver<'_>,
    config: &Config,
    raw: &RawIntercept,
    path: &Path<'_>,
) -> Option<()> {
    let redirect_to = path.field("redirect_to");
    match (receiver(config, TrafficDirection::Outbound), !raw.redirect_to.is_empty()) {
        (Some(listener), true) => {
            let message = format!(
                "the kernel redirects to one place: take this away, or `use_original_dst` from listener `{}`",
                listener.name
            );
            resolver.error(&redirect_to, message);
            None
        }
        (None, true) if raw.pods.is_some() => {
            let message = "the proxy is in the agent's own network namespace, where connections of `pods` do not reach it: give a listener of this file `use_original_dst: true` instead";
            resolver.error(&redirect_to, message);
            None
        }
        (Some(_), false) | (None, true) => Some(()),
        (None, false) => nothing_outbound(resolver, config, raw, path),
    }
}

/// Nobody receives what goes out. That is fine where only what arrives is taken.
fn nothing_outbound(resolver: &mut Resolver<'_>, config: &Config, raw: &RawIntercept, path: &Path<'_>) -> Option<()> {
    let undecoded = ["listeners", "intercept.redirect_to"];
    if undecoded.iter().any(|field| resolver.report.is_undecoded(field)) {
        return None;
    }
    let message = "nothing to redirect to: give one listener `use_original_dst: true` and an address of its own, such as 127.0.0.1:15001";
    if !takes_inbound(config) {
        resolver.error(path, message);
        return None;
    }
    let mut ok = Some(());
    if raw.outbound != RawPolicy::placeholder() {
        resolver.error(&path.field("outbound"), message);
        ok = None;
    }
    if !raw.processes.is_empty() {
        resolver.error(&path.field("processes"), message);
        ok = None;
    }
    for_each_row(raw, path, |row, path| {
        if row.outbound.is_some() {
            resolver.error(&path.field("outbound"), message);
            ok = None;
        }
    });
    ok
}

fn inbound_goes_somewhere(
    resolver: &mut Resolver<'_>,
    config: &Config,
    raw: &RawIntercept,
    path: &Path<'_>,
) -> Option<()> {
    if receiver(config, TrafficDirection::Inbound).is_some() || resolver.report.is_undecoded("listeners") {
        return Some(());
    }
    let message = "nothing to hand to what arrives: give one listener `traffic_direction: inbound` and an address of its own, such as 127.0.0.1:15006";
    let mut ok = Some(());
    if raw.inbound.is_some() {
        resolver.error(&path.field("inbound"), message);
        ok = None;
    }
    for_each_row(raw, path, |row, path| {
        if row.inbound.is_some() {
            resolver.error(&path.field("inbound"), message);
            ok = None;
        }
    });
    ok
}

fn for_each_row(raw: &RawIntercept, path: &Path<'_>, mut look: impl FnMut(&RawPodPolicy, &Path<'_>)) {
    let pods = path.field("pods");
    let rows = pods.field("policies");
    for (index, row) in raw.pods.iter().flat_map(|pods| &pods.policies).enumerate() {
        look(row, &rows.index(index));
    }
}

fn intercepted(resolver: &mut Resolver<'_>, config: &Config, raw: &RawIntercept, path: &Path<'_>) -> Option<Intercept> {
    let cgroup = cgroup(resolver, &raw.cgroup, &path.field("cgroup"));
    let host = host(resolver, raw, path);
    let processes = processes::processes(resolver, &raw.processes, &path.field("processes"));
    let outbound = policy(resolver, &raw.outbound, &path.field("outbound"));
    let inbound = resolver
        .maybe(raw.inbound.as_ref(), &path.field("inbound"), |resolver, raw, path| inbound(resolver, raw, host, path));
    let pods = resolver.maybe(raw.pods.as_ref(), &path.field("pods"), pods::pods);
    let entries = &path.field("handover_entries");
    let handover_entries = resolver.within(entries, raw.handover_entries, 1..=MAX_HANDOVER_ENTRIES);
    let to = redirect(resolver, config, &raw.redirect_to, &path.field("redirect_to"));
    let (cgroup, mut outbound, redirect) = (cgroup?, outbound?, to?);
    if let Redirect::Proxy { v4, v6 } = redirect {
        proxy_receives_all(resolver, &outbound, (v4.is_some(), v6.is_some()), &path.field("redirect_to"))?;
        if raw.cgroup == "/" && outbound == Policy::default() && raw.processes.is_empty() {
            let message = "every process is intercepted, the proxy too: its own connections come back to it; name the cgroup of the programs to intercept";
            resolver.warn(&path.field("cgroup"), message);
        }
    } else if receiver(config, TrafficDirection::Outbound).is_none() {
        outbound = Policy::nothing();
    }
    Some(Intercept {
        cgroup,
        host,
        processes: processes?,
        outbound,
        inbound: inbound?,
        pods: pods?,
        redirect,
        on_agent_loss: raw.on_agent_loss,
        handover_entries: handover_entries?,
    })
}

/// Whether the agent's own network namespace takes part.
fn host(resolver: &mut Resolver<'_>, raw: &RawIntercept, path: &Path<'_>) -> bool {
    if raw.host == Some(false) && raw.pods.is_none() && !resolver.report.is_undecoded("intercept.pods") {
        let message =
            "nothing is intercepted: this leaves out the agent's own network namespace, and there is no `pods`";
        resolver.warn(&path.field("host"), message);
    }
    raw.host.unwrap_or(raw.pods.is_none())
}

/// Resolves a policy.
pub fn policy(resolver: &mut Resolver<'_>, raw: &RawPolicy, path: &Path<'_>) -> Option<Policy> {
    let include = resolver.each(&raw.include, &path.field("include"), rule);
    let exclude = resolver.each(&raw.exclude, &path.field("exclude"), rule);
    Some(Policy { include: include?, exclude: exclude? })
}

fn inbound(resolver: &mut Resolver<'_>, raw: &RawInbound, host: bool, path: &Path<'_>) -> Option<Inbound> {
    let raw_policy = RawPolicy { include: raw.include.clone(), exclude: raw.exclude.clone() };
    let policy = policy(resolver, &raw_policy, path);
    let mut ok = Some(());
    if host {
        let message = "takes what arrives at this machine itself on any port, its SSH too: name the ports, as in `include: [{ports: [8080]}]`";
        let include = path.field("include");
        if raw.include.is_empty() {
            resolver.error(path, message);
            ok = None;
        }
        for (index, _) in raw.include.iter().enumerate().filter(|(_, rule)| rule.ports.is_empty()) {
            resolver.error(&include.index(index), message);
            ok = None;
        }
    }
    ok?;
    Some(Inbound { policy: policy?, from_node: raw.from_node })
}

/// Resolves a path below the cgroup2 mount.
pub fn cgroup(resolver: &mut Resolver<'_>, text: &str, path: &Path<'_>) -> Option<PathBuf> {
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
