//! What the maps of an instance say, row by row, as `waylay maps` prints it.
//!
//! Before it: `inspect` reads them.

use std::{net::SocketAddr, ops::RangeInclusive};

use serde::Serialize;
use waylay_common::{
    netns::NetnsEntry,
    policy::{PortRange, PortRules},
    processes::{ProcessRow, ProcessTable},
};

use super::{Process, policy::Node};

/// What an instance was started with, and how it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Kernel id of the settings map.
    pub instance: u32,
    pub layout: u32,
    pub agent_pid: u32,
    pub cgroup_id: u64,
    pub redirect_v4: Option<SocketAddr>,
    pub redirect_v6: Option<SocketAddr>,
    pub on_agent_loss: &'static str,
    pub heartbeat_age_ms: u64,
    /// The hooks take the agent for lost.
    pub agent_lost: bool,
    pub redirecting: bool,
    pub tracing: bool,
    /// Names of the programs that are loaded.
    pub programs: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CounterRow {
    pub counter: &'static str,
    pub value: u64,
    pub help: &'static str,
}

/// An enrolled network namespace, and the numbers of the policies that hold in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NetnsRow {
    pub netns_cookie: u64,
    /// For what its processes connect to; `None`: that is left alone.
    pub outbound: Option<u32>,
    /// For what arrives in it.
    pub inbound: Option<u32>,
}

/// A listening socket of the agent that receives what arrives in a network namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ListenerRow {
    pub netns_cookie: u64,
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
}

/// A connection of the agent to an application on the inbound side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlowRow {
    pub netns_cookie: u64,
    pub agent: SocketAddr,
    pub application: SocketAddr,
}

/// Whose connections are taken in the agent's own network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChosenRow {
    /// Only those of `rows`, which may be none; else everybody's.
    pub restricted: bool,
    /// `None`: everybody's.
    pub netns_cookie: Option<u64>,
    pub rows: Vec<ChosenProcess>,
}

/// Processes for which all holds that is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChosenProcess {
    pub uid: Option<u32>,
    pub pid: Option<u32>,
    pub comm: Option<String>,
    /// In this cgroup or below it.
    pub cgroup_id: Option<u64>,
}

/// One trie node: what holds for addresses within `prefix` and within no longer one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyRow {
    /// The number of the policy: see [`NetnsRow`].
    pub policy: u32,
    pub prefix: String,
    pub include: Vec<String>,
    pub exclude: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExemptRow {
    pub listener: SocketAddr,
    pub netns_cookie: u64,
    /// The instance whose listener it is.
    pub instance: u32,
}

/// A handshake in flight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HandoverRow {
    pub client: SocketAddr,
    pub agent: SocketAddr,
    pub original_dst: SocketAddr,
    pub age_ms: u64,
    pub process: Process,
}

impl PolicyRow {
    pub(super) fn new(policy: u32, node: &Node) -> Self {
        Self {
            policy,
            prefix: node.prefix.to_string(),
            include: ports(&node.rules, |rules| &rules.include),
            exclude: ports(&node.rules, |rules| &rules.exclude),
        }
    }
}

impl ChosenRow {
    pub(super) fn new(table: &ProcessTable) -> Self {
        let Some((cookie, rows)) = table.rows() else {
            return Self { restricted: false, netns_cookie: None, rows: Vec::new() };
        };
        Self { restricted: true, netns_cookie: Some(cookie), rows: rows.iter().map(ChosenProcess::new).collect() }
    }
}

impl ChosenProcess {
    fn new(row: &ProcessRow) -> Self {
        let text = |comm: &[u8; 16]| String::from_utf8_lossy(comm).trim_end_matches('\0').to_owned();
        Self { uid: row.uid(), pid: row.pid(), comm: row.comm().map(text), cgroup_id: row.cgroup_id() }
    }
}

impl NetnsRow {
    pub(super) fn new(netns_cookie: u64, entry: NetnsEntry) -> Self {
        let taken = |policy| (policy != 0).then_some(policy);
        Self { netns_cookie, outbound: taken(entry.outbound), inbound: taken(entry.inbound) }
    }
}

/// The ranges of one direction as text: `all`, `80`, `8000-8999`.
fn ports(rules: &PortRules, direction: fn(&PortRules) -> &[PortRange]) -> Vec<String> {
    let used = direction(rules).iter().filter(|range| range.first <= range.last);
    used.map(|range| match RangeInclusive::new(range.first, range.last).into_inner() {
        (0, u16::MAX) => "all".to_owned(),
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    })
    .collect()
}
