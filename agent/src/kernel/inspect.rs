//! Reads instances of waylay out of the kernel, decoded, without asking the agent: it works while the agent hangs.
//!
//! An instance is known by the kernel id of its settings map; its other maps are those its programs use.

use std::{collections::BTreeMap, net::SocketAddr, ops::RangeInclusive, time::Duration};

use aya::{
    maps::{MapData, MapInfo},
    programs::{ProgramError, ProgramInfo, loaded_programs},
};
use serde::Serialize;
use waylay_common::{
    LAYOUT,
    policy::{PortRange, PortRules},
    settings::{OnAgentLoss, Placement, Settings, Switch},
};

pub use super::sockets::SocketRow;
use super::{KernelError, Process, clock, exempt, load, maps, policy::Node, sockets};

/// One instance of waylay in the kernel: its programs and maps, whoever holds them.
#[derive(Debug)]
pub struct Instance {
    id: u32,
    /// Map ids by name.
    maps: BTreeMap<String, u32>,
    programs: Vec<String>,
    settings: Settings,
}

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
    pub policy_generation: u64,
    /// Names of the programs that are loaded.
    pub programs: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CounterRow {
    pub counter: &'static str,
    pub value: u64,
    pub help: &'static str,
}

/// One trie node: what holds for addresses within `prefix` and within no longer one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyRow {
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

/// All instances in the kernel, the oldest first.
///
/// # Errors
/// Listing programs and maps takes CAP_SYS_ADMIN.
pub fn instances() -> Result<Vec<Instance>, KernelError> {
    let mut found: BTreeMap<u32, Instance> = BTreeMap::new();
    for program in loaded_programs() {
        let program = match program {
            Ok(program) => program,
            Err(error) if vanished(&error) => continue,
            Err(source) => return Err(KernelError::program("list the loaded programs", source)),
        };
        let Some(name) = program.name_as_str().filter(|name| OUR_PROGRAMS.contains(name)) else {
            continue;
        };
        let name = name.to_owned();
        let maps = maps_of(&program);
        // getpeername, getsockopt and sock_ops do without the settings; the storage of sockets is common to all.
        let Some(&sockets) = maps.get(maps::name::SOCKETS) else {
            continue;
        };
        let instance = found.entry(sockets).or_insert_with(|| Instance {
            id: 0,
            maps: BTreeMap::new(),
            programs: Vec::new(),
            settings: Settings::UNKNOWN,
        });
        instance.maps.extend(maps);
        instance.programs.push(name);
    }
    let mut instances: Vec<_> = found.into_values().filter_map(Instance::complete).collect();
    instances.sort_by_key(|instance| instance.id);
    Ok(instances)
}

pub(super) const OUR_PROGRAMS: [&str; 6] = [
    load::name::CONNECT4,
    load::name::CONNECT6,
    load::name::SOCKOPS,
    load::name::PEER4,
    load::name::PEER6,
    load::name::SOCKOPT,
];

/// Programs come and go while they are listed.
pub(super) fn vanished(error: &ProgramError) -> bool {
    matches!(error, ProgramError::SyscallError(error) if error.io_error.kind() == std::io::ErrorKind::NotFound)
}

fn maps_of(program: &ProgramInfo) -> BTreeMap<String, u32> {
    let ids = program.map_ids().ok().flatten().unwrap_or_default();
    ids.into_iter().filter_map(|id| Some((MapInfo::from_id(id).ok()?.name_as_str()?.to_owned(), id))).collect()
}

impl Instance {
    /// `None`: its connect hooks are gone, so nothing is left that intercepts; or its agent has not written the settings
    /// yet, so nothing intercepts so far.
    fn complete(mut self) -> Option<Self> {
        self.id = *self.maps.get(maps::name::SETTINGS)?;
        let data = open(&self.maps, maps::name::SETTINGS).ok()?;
        // Settings of another size are those of another layout, and stay what they are: unknown.
        if let Ok(settings) = maps::typed::<maps::Settled>(maps::name::SETTINGS, data) {
            self.settings = settings.get(&0, 0).ok().filter(|settings| settings.layout != 0)?;
        }
        self.programs.sort_unstable();
        self.programs.dedup();
        Some(self)
    }

    /// Kernel id of the settings map.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    #[must_use]
    pub fn agent_pid(&self) -> u32 {
        self.settings.agent_pid
    }

    #[must_use]
    pub fn cgroup_id(&self) -> u64 {
        self.settings.cgroup_id
    }

    /// Where its connect hooks run among others.
    pub(super) fn placement(&self) -> Placement {
        if self.speaks_our_layout() { self.settings.placement() } else { Placement::Last }
    }

    /// Is there a process that holds it? Only the connect hooks are ever pinned, so sock_ops goes with the process.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.programs.iter().any(|name| name == load::name::SOCKOPS)
    }

    pub(super) fn speaks_our_layout(&self) -> bool {
        self.settings.layout == LAYOUT
    }

    /// # Errors
    /// Another layout, or the maps cannot be read.
    pub fn status(&self) -> Result<Status, KernelError> {
        let switches: maps::Switches = self.open_checked(maps::name::SWITCHES)?;
        let age = self.heartbeat_age()?;
        let optional = |endpoint: waylay_common::addr::Endpoint| (!endpoint.is_none()).then(|| endpoint.into());
        Ok(Status {
            instance: self.id,
            layout: self.settings.layout,
            agent_pid: self.settings.agent_pid,
            cgroup_id: self.settings.cgroup_id,
            redirect_v4: optional(self.settings.redirect_v4),
            redirect_v6: optional(self.settings.redirect_v6),
            on_agent_loss: match self.settings.on_agent_loss() {
                OnAgentLoss::Allow => "allow",
                OnAgentLoss::Refuse => "refuse",
            },
            heartbeat_age_ms: clock::millis(age),
            agent_lost: self.agent_lost()?,
            redirecting: maps::read_switch(&switches, Switch::Redirecting)? != 0,
            tracing: maps::read_switch(&switches, Switch::Tracing)? != 0,
            policy_generation: maps::read_switch(&switches, Switch::Generation)?,
            programs: self.programs.clone(),
        })
    }

    /// Do the hooks take the agent for lost?
    ///
    /// # Errors
    /// As [`Self::status`].
    pub fn agent_lost(&self) -> Result<bool, KernelError> {
        Ok(self.heartbeat_age()? > Duration::from_nanos(self.settings.heartbeat_loss_ns))
    }

    fn heartbeat_age(&self) -> Result<Duration, KernelError> {
        let switches: maps::Switches = self.open_checked(maps::name::SWITCHES)?;
        let beat = maps::read_switch(&switches, Switch::Heartbeat)?;
        Ok(Duration::from_nanos(clock::monotonic_ns().saturating_sub(beat)))
    }

    /// # Errors
    /// As [`Self::status`].
    pub fn counters(&self) -> Result<Vec<CounterRow>, KernelError> {
        let counters: maps::Counters = self.open_checked(maps::name::COUNTERS)?;
        let rows = maps::read_counters(&counters)?.into_iter();
        Ok(rows.map(|(counter, value)| CounterRow { counter: counter.name(), value, help: counter.help() }).collect())
    }

    /// The policy in force, in the order of the prefixes.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub fn policy(&self) -> Result<Vec<PolicyRow>, KernelError> {
        let mut nodes = self.policy_nodes()?;
        nodes.sort_by_key(|node| node.prefix);
        Ok(nodes
            .into_iter()
            .map(|node| PolicyRow {
                prefix: node.prefix.to_string(),
                include: ports(&node.rules, |rules| &rules.include),
                exclude: ports(&node.rules, |rules| &rules.exclude),
            })
            .collect())
    }

    /// The policy in force, as the hooks read it.
    pub(super) fn policy_nodes(&self) -> Result<Vec<Node>, KernelError> {
        let switches: maps::Switches = self.open_checked(maps::name::SWITCHES)?;
        let trie: maps::Trie = self.open_checked(maps::name::POLICY)?;
        maps::read_generation(&trie, maps::read_switch(&switches, Switch::Generation)? as u32)
    }

    /// # Errors
    /// As [`Self::status`].
    pub fn exempt(&self) -> Result<Vec<ExemptRow>, KernelError> {
        let rows = exempt::listed(&self.exempt_map()?)?.into_iter();
        Ok(rows
            .map(|(key, instance)| ExemptRow {
                listener: key.listener().into(),
                netns_cookie: key.netns_cookie(),
                instance,
            })
            .collect())
    }

    /// Cookies of the enrolled network namespaces.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub fn netns(&self) -> Result<Vec<u64>, KernelError> {
        let netns: maps::Netns = self.open_checked(maps::name::NETNS)?;
        let all = maps::entries(maps::name::NETNS, netns.keys(), |key| netns.get(key, 0))?;
        Ok(all.into_iter().map(|(cookie, _)| cookie).collect())
    }

    /// # Errors
    /// As [`Self::status`].
    pub fn handover(&self) -> Result<Vec<HandoverRow>, KernelError> {
        // sock_ops may be gone while pinned connect hooks are not; then there are no handshakes in flight either.
        if !self.maps.contains_key(maps::name::HANDOVER) {
            return Ok(Vec::new());
        }
        let flows: maps::Flows = self.open_checked(maps::name::HANDOVER)?;
        let now = clock::monotonic_ns();
        let all = maps::entries(maps::name::HANDOVER, flows.keys(), |key| flows.get(key, 0))?;
        Ok(all
            .into_iter()
            .map(|(key, entry)| HandoverRow {
                client: key.client().into(),
                agent: key.agent().into(),
                original_dst: entry.state.original_dst.into(),
                age_ms: clock::millis(Duration::from_nanos(now.saturating_sub(entry.state.process.connect_time_ns))),
                process: entry.state.process.into(),
            })
            .collect())
    }

    /// Sockets of this network namespace that carry a state.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub fn sockets(&self) -> Result<Vec<SocketRow>, KernelError> {
        sockets::list(&self.map_data(maps::name::SOCKETS)?)
    }

    pub(super) fn exempt_map(&self) -> Result<maps::Exempt, KernelError> {
        self.open_checked(maps::name::EXEMPT)
    }

    fn open_checked<T>(&self, name: &'static str) -> Result<T, KernelError>
    where
        T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
    {
        maps::typed(name, self.map_data(name)?)
    }

    /// # Errors
    /// The maps are of another layout.
    fn map_data(&self, name: &'static str) -> Result<MapData, KernelError> {
        if !self.speaks_our_layout() {
            return Err(KernelError::Layout { instance: self.id, found: self.settings.layout, expected: LAYOUT });
        }
        open(&self.maps, name)
    }
}

fn open(maps: &BTreeMap<String, u32>, name: &'static str) -> Result<MapData, KernelError> {
    let id = *maps.get(name).ok_or(KernelError::Incomplete(name))?;
    MapData::from_id(id).map_err(|source| KernelError::map(format!("opening the map {name}"), source))
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
