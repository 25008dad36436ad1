//! `intercept`: what the kernel redirects, and whether there is a listener to redirect it to.

use std::path::{Component, PathBuf};

use super::Resolver;
use crate::config::diagnostic::Path;
use crate::config::raw::Config;
use crate::config::raw::intercept::{Intercept as RawIntercept, Rule as RawRule};
use crate::config::value::Value as _;
use crate::kernel::{Policy, Rule};
use crate::snapshot::Intercept;

/// Handshakes that may be under way at once, at most: 2^20 entries of the kernel's map take about 150 MiB.
const MAX_HANDOVER_ENTRIES: u32 = 1 << 20;

/// Resolves `intercept`; it is implied by a listener to which the kernel can redirect.
pub fn intercept(resolver: &mut Resolver<'_>, config: &Config) -> Option<Option<Intercept>> {
    let path = Path::ROOT.field("intercept");
    let target = config.listeners.iter().any(|listener| listener.bind_to_port && listener.use_original_dst);
    match (&config.intercept, target) {
        (None, false) => Some(None),
        (None, true) => intercepted(resolver, &RawIntercept::placeholder(), &path).map(Some),
        (Some(raw), true) => intercepted(resolver, raw, &path).map(Some),
        (Some(raw), false) => {
            let message = "nothing to redirect to: give one listener `use_original_dst: true` and an address of its own, such as 127.0.0.1:15001";
            if !resolver.report.is_undecoded("listeners") {
                resolver.error(&path, message);
            }
            intercepted(resolver, raw, &path);
            None
        }
    }
}

fn intercepted(resolver: &mut Resolver<'_>, raw: &RawIntercept, path: &Path<'_>) -> Option<Intercept> {
    let cgroup = cgroup(resolver, &raw.cgroup, &path.field("cgroup"));
    let outbound = path.field("outbound");
    let include = resolver.each(&raw.outbound.include, &outbound.field("include"), rule);
    let exclude = resolver.each(&raw.outbound.exclude, &outbound.field("exclude"), rule);
    let entries = &path.field("handover_entries");
    let handover_entries = resolver.within(entries, raw.handover_entries, 1..=MAX_HANDOVER_ENTRIES);
    Some(Intercept {
        cgroup: cgroup?,
        policy: Policy { include: include?, exclude: exclude? },
        on_agent_loss: raw.on_agent_loss,
        handover_entries: handover_entries?,
    })
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
