//! What a pod's own annotations change.

use std::ops::RangeInclusive;

use super::INJECT;
use crate::kernel::{Policy, Rule};
use crate::snapshot::Pods;
use crate::workload::Workload;

/// What all of them begin with.
const PREFIX: &str = "waylay.io/";
const INBOUND: &str = "waylay.io/inbound";
const INCLUDE_OUTBOUND: &str = "waylay.io/include-outbound-ports";
const EXCLUDE_OUTBOUND: &str = "waylay.io/exclude-outbound-ports";
const INCLUDE_INBOUND: &str = "waylay.io/include-inbound-ports";
const EXCLUDE_INBOUND: &str = "waylay.io/exclude-inbound-ports";
const KNOWN: [&str; 6] = [INJECT, INBOUND, INCLUDE_OUTBOUND, EXCLUDE_OUTBOUND, INCLUDE_INBOUND, EXCLUDE_INBOUND];

/// All of them, read.
#[derive(Debug)]
pub struct Annotations {
    pub outbound: Changes,
    pub inbound: Changes,
    pub inbound_off: bool,
}

/// What changes in one direction.
#[derive(Debug)]
pub struct Changes {
    include: Option<Vec<RangeInclusive<u16>>>,
    exclude: Option<Vec<RangeInclusive<u16>>>,
}

impl Annotations {
    /// Those of `workload`, or what is wrong with one of them. One that is not known, and that no selector asks for, is
    /// wrong too: a slip of the pen must not pass for a setting.
    pub fn of(workload: &Workload, pods: &Pods) -> Result<Self, String> {
        let value = |key| workload.annotations.get(key).map(String::as_str);
        for key in workload.annotations.keys().filter(|key| key.starts_with(PREFIX)) {
            let asked_for = || pods.select.iter().any(|selector| selector.annotations.contains_key(key));
            if !KNOWN.contains(&key.as_str()) && !asked_for() {
                return Err(format!("its annotation {key} is not known; there are {}", KNOWN.join(", ")));
            }
        }
        let inbound_off = match value(INBOUND) {
            None | Some("on") => false,
            Some("off") => true,
            Some(other) => return Err(format!("its annotation {INBOUND} is {other:?}: write \"on\" or \"off\"")),
        };
        let ports = |key| value(key).map(|text| ports(text).map_err(|reason| wrong(key, text, &reason))).transpose();
        Ok(Self {
            outbound: Changes { include: ports(INCLUDE_OUTBOUND)?, exclude: ports(EXCLUDE_OUTBOUND)? },
            inbound: Changes { include: ports(INCLUDE_INBOUND)?, exclude: ports(EXCLUDE_INBOUND)? },
            inbound_off,
        })
    }
}

fn wrong(key: &str, text: &str, reason: &str) -> String {
    format!("its annotation {key} is {text:?}: {reason}; write ports and ranges such as \"80,8000-8999\"")
}

impl Changes {
    /// Included ports replace what `policy` includes, excluded ones are added.
    pub fn apply(&self, mut policy: Policy) -> Policy {
        let rule = |ports: &Vec<_>| Rule { cidr: None, ports: ports.clone() };
        if let Some(ports) = &self.include {
            policy.include = vec![rule(ports)];
        }
        policy.exclude.extend(self.exclude.as_ref().map(rule));
        policy
    }
}

/// `80,8000-8999`; white space around the parts does not matter.
fn ports(text: &str) -> Result<Vec<RangeInclusive<u16>>, String> {
    text.split(',').map(|part| range(part.trim())).collect()
}

fn range(part: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = part.split_once('-').unwrap_or((part, part));
    let (first, last) = (port(first.trim())?, port(last.trim())?);
    if first > last {
        return Err(format!("the range {part} ends before it begins"));
    }
    Ok(first..=last)
}

fn port(text: &str) -> Result<u16, String> {
    // `parse` would take a sign.
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let port = if digits { text.parse().ok().filter(|port| *port != 0) } else { None };
    port.ok_or_else(|| format!("{text:?} is not a port from 1 to 65535"))
}
