//! Reads instances of waylay out of the kernel, decoded, without asking the agent: it works while the agent hangs.
//!
//! An instance is known by the kernel id of its settings map; its other maps are those its programs use.

use std::{collections::BTreeMap, time::Duration};

use aya::{
    maps::{MapData, MapInfo},
    programs::{ProgramError, ProgramInfo, loaded_programs},
};
use waylay_common::{
    LAYOUT,
    cells::{HANDOVER_CELLS, Stage, Word},
    netns::NetnsEntry,
    settings::{OnAgentLoss, Placement, Settings, Switch},
};

use super::{
    KernelError, ResolverRow, clock, dispatch,
    dispatch::DispatchRow,
    dns,
    exempt::{self, ExemptMaps},
    load, maps,
    policy::Node,
    sockets,
};
pub use super::{
    rows::{
        ChosenProcess, ChosenRow, CounterRow, ExemptRow, FlowRow, HandoverRow, ListenerRow, NetnsRow, PolicyRow, Status,
    },
    sockets::SocketRow,
};

/// One instance of waylay in the kernel: its programs and maps, whoever holds them.
#[derive(Debug)]
pub struct Instance {
    id: u32,
    /// Map ids by name.
    maps: BTreeMap<String, u32>,
    programs: Vec<String>,
    settings: Settings,
}

/// All instances in the kernel, the oldest first.
///
/// # Errors
/// Listing programs and maps takes CAP_SYS_ADMIN.
pub fn instances() -> Result<Vec<Instance>, KernelError> {
    let mut found: BTreeMap<u32, Instance> = BTreeMap::new();
    let mut inbound = Vec::new();
    for program in loaded_programs() {
        let program = match program {
            Ok(program) => program,
            Err(error) if vanished(&error) => continue,
            Err(source) => return Err(KernelError::program("list the loaded programs", source)),
        };
        if program.name_as_str() == Some(load::name::INBOUND) {
            inbound.push(program);
            continue;
        }
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
    for program in inbound {
        add_inbound(&mut found, &program);
    }
    let mut instances: Vec<_> = found.into_values().filter_map(Instance::complete).collect();
    instances.sort_by_key(|instance| instance.id);
    Ok(instances)
}

/// There is an inbound hook for each network namespace: they are told apart by the ids of their maps, and only the first
/// of an instance is asked for names.
fn add_inbound(found: &mut BTreeMap<u32, Instance>, program: &ProgramInfo) {
    let ids = program.map_ids().ok().flatten().unwrap_or_default();
    let netns_of = |instance: &Instance| instance.maps.get(maps::name::NETNS).copied();
    let Some(instance) = found.values_mut().find(|one| netns_of(one).is_some_and(|id| ids.contains(&id))) else {
        return;
    };
    if !instance.maps.contains_key(maps::name::LISTENERS) {
        instance.programs.push(load::name::INBOUND.to_owned());
        let mut maps = maps_of(program);
        maps.remove(maps::name::PLACE);
        instance.maps.extend(maps);
    }
}

pub(super) const OUR_PROGRAMS: [&str; 14] = [
    "waylay_dns_con4",
    "waylay_dns_con6",
    "waylay_dns_snd4",
    "waylay_dns_snd6",
    "waylay_dns_rcv4",
    "waylay_dns_rcv6",
    "waylay_dns_pee4",
    "waylay_dns_pee6",
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

    /// Has the agent yet to give its first sign of life? Then it may be about to redirect.
    pub(super) fn is_starting(&self) -> Result<bool, KernelError> {
        let switches: maps::Switches = self.open_checked(maps::name::SWITCHES)?;
        Ok(maps::read_switch(&switches, Switch::Heartbeat)? == 0)
    }

    /// All policies, in the order of their numbers and prefixes; also those that were replaced lately.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub fn policy(&self) -> Result<Vec<PolicyRow>, KernelError> {
        let trie: maps::Trie = self.open_checked(maps::name::POLICY)?;
        let mut nodes = maps::read_policies(&trie)?;
        nodes.sort_by_key(|(policy, node)| (*policy, node.prefix));
        Ok(nodes.iter().map(|(policy, node)| PolicyRow::new(*policy, node)).collect())
    }

    /// The policy by which it redirects connections of one direction in a network namespace; nothing, when it does not.
    pub(super) fn redirects_by(
        &self,
        netns_cookie: u64,
        direction: fn(NetnsEntry) -> u32,
    ) -> Result<Vec<Node>, KernelError> {
        let netns: maps::Netns = self.open_checked(maps::name::NETNS)?;
        let entry = maps::optional(netns.get(&netns_cookie, 0), "reading the entry of a network namespace")?;
        let switches: maps::Switches = self.open_checked(maps::name::SWITCHES)?;
        let wanted = direction(entry.unwrap_or(NetnsEntry::NONE));
        if wanted == 0 || maps::read_switch(&switches, Switch::Redirecting)? == 0 {
            return Ok(Vec::new());
        }
        let trie: maps::Trie = self.open_checked(maps::name::POLICY)?;
        let nodes = maps::read_policies(&trie)?.into_iter();
        Ok(nodes.filter(|(policy, _)| *policy == wanted).map(|(_, node)| node).collect())
    }

    /// # Errors
    /// As [`Self::status`].
    pub fn exempt(&self) -> Result<Vec<ExemptRow>, KernelError> {
        let rows = exempt::listed(&self.exempt_maps()?.listeners)?.into_iter();
        Ok(rows
            .map(|(key, instance)| ExemptRow {
                listener: key.listener().into(),
                netns_cookie: key.netns_cookie(),
                instance,
            })
            .collect())
    }

    /// The enrolled network namespaces.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub fn netns(&self) -> Result<Vec<NetnsRow>, KernelError> {
        let netns: maps::Netns = self.open_checked(maps::name::NETNS)?;
        let mut all = maps::entries(maps::name::NETNS, netns.keys(), |key| netns.get(key, 0))?;
        all.sort_unstable_by_key(|(cookie, _)| *cookie);
        Ok(all.into_iter().map(|(cookie, entry)| NetnsRow::new(cookie, entry)).collect())
    }

    /// Whose connections are taken.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub fn chosen(&self) -> Result<ChosenRow, KernelError> {
        let tables: maps::Processes = self.open_checked(maps::name::PROCESSES)?;
        let switches: maps::Switches = self.open_checked(maps::name::SWITCHES)?;
        let slot = u32::try_from(maps::read_switch(&switches, Switch::Processes)?).unwrap_or_default();
        let table = tables
            .get(&slot, 0)
            .map_err(|source| KernelError::map(format!("reading the map {}", maps::name::PROCESSES), source))?;
        Ok(ChosenRow::new(&table))
    }

    /// Who receives what arrives. The sockets themselves can only be asked for by hooks.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub fn listeners(&self) -> Result<Vec<ListenerRow>, KernelError> {
        // Only inbound hooks use this map, and there may be none.
        if !self.maps.contains_key(maps::name::LISTENERS) {
            return Ok(Vec::new());
        }
        let listeners: maps::Listeners = self.open_checked(maps::name::LISTENERS)?;
        let doing = format!("reading the map {}", maps::name::LISTENERS);
        let keys: Result<Vec<_>, _> = listeners.keys().collect();
        let keys = keys.map_err(|source| KernelError::map(doing, source))?.into_iter();
        let mut rows: Vec<_> = keys
            .map(|key| ListenerRow {
                netns_cookie: key.netns_cookie(),
                family: if key.is_v4() { "ipv4" } else { "ipv6" },
            })
            .collect();
        rows.sort_unstable();
        Ok(rows)
    }

    /// The agent's connections to applications on the inbound side.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub fn flows(&self) -> Result<Vec<FlowRow>, KernelError> {
        // As with the handovers: sock_ops may be gone.
        if !self.maps.contains_key(maps::name::FLOWS) {
            return Ok(Vec::new());
        }
        let flows: maps::Flows = self.open_checked(maps::name::FLOWS)?;
        let all = maps::entries(maps::name::FLOWS, flows.keys(), |key| flows.get(key, 0))?;
        Ok(all
            .into_iter()
            .map(|(key, _)| FlowRow {
                netns_cookie: key.netns_cookie(),
                agent: key.client().into(),
                application: key.agent().into(),
            })
            .collect())
    }

    /// # Errors
    /// As [`Self::status`].
    pub fn handover(&self) -> Result<Vec<HandoverRow>, KernelError> {
        // sock_ops may be gone while pinned connect hooks are not; then there are no handshakes in flight either.
        if !self.maps.contains_key(maps::name::HANDOVER) {
            return Ok(Vec::new());
        }
        let flows: maps::Handovers = self.open_checked(maps::name::HANDOVER)?;
        let now = clock::monotonic_ns();
        let all = maps::entries(maps::name::HANDOVER, flows.keys(), |key| flows.get(key, 0))?.into_iter();
        let cells: maps::Cells = self.open_checked(maps::name::CELLS)?;
        let cells = maps::places(maps::name::CELLS, &cells, 0..HANDOVER_CELLS)?.into_iter();
        let in_flight = cells.filter(|cell| Word(cell.word).is(Stage::Published)).map(|cell| (cell.key, cell.origin));
        Ok(all
            .map(|(key, entry)| (key, entry.origin))
            .chain(in_flight)
            .map(|(key, origin)| HandoverRow {
                client: key.client().into(),
                agent: key.agent().into(),
                original_dst: origin.original_dst.into(),
                age_ms: clock::millis(Duration::from_nanos(now.saturating_sub(origin.process.connect_time_ns))),
                process: origin.process.into(),
            })
            .collect())
    }

    /// Destinations that the kernel dispatches by itself, and those beside them that it leaves to the agent.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub fn dispatch(&self) -> Result<Vec<DispatchRow>, KernelError> {
        dispatch::rows(
            &self.open_checked(dispatch::name::DESTINATIONS)?,
            &self.open_checked(dispatch::name::CHOICES)?,
            &self.open_checked(dispatch::name::SLOTS)?,
        )
    }

    /// DNS resolvers that were asked through the agent.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub fn resolvers(&self) -> Result<Vec<ResolverRow>, KernelError> {
        // Only the programs for DNS use these maps.
        if !self.maps.contains_key(dns::name::RESOLVERS) {
            return Ok(Vec::new());
        }
        dns::rows(&self.open_checked(dns::name::PLACES)?, &self.open_checked(dns::name::RESOLVERS)?)
    }

    /// Sockets of this network namespace that carry a state.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub fn sockets(&self) -> Result<Vec<SocketRow>, KernelError> {
        sockets::list(&self.map_data(maps::name::SOCKETS)?, &self.open_checked(maps::name::CLIENTS)?)
    }

    pub(super) fn exempt_maps(&self) -> Result<ExemptMaps, KernelError> {
        Ok(ExemptMaps {
            listeners: self.open_checked(maps::name::EXEMPT)?,
            ports: self.open_checked(maps::name::PORTS)?,
        })
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
