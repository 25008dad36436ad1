//! Typed handles on the maps of one instance, whether it is this process's own or was found in the kernel.
//!
//! Before it: `load` has created the maps, or `inspect` has found their ids. After it: everything that reads or writes
//! them. Who writes what is told in `ebpf/src/maps.rs`.

use aya::{
    Pod,
    maps::{
        Array, HashMap, Map, MapData, MapError, PerCpuArray, SkStorage, SockHash,
        lpm_trie::{Key, LpmTrie},
    },
};
use waylay_common::{
    cells::{ClientSlot, HandoverCell},
    counter::Counter,
    flow::{FlowKey, HandoverEntry, SocketState},
    netns::{ListenerKey, NetnsEntry},
    policy::{PolicyKey, PortRules},
    processes::ProcessTable,
    settings::{ExemptKey, ExemptOwner, Settings, Switch},
};

use super::{
    KernelError,
    policy::{Node, Prefix},
};

/// Names of the maps, as the kernel shows them.
pub mod name {
    pub const SETTINGS: &str = "WAYLAY_SETTINGS";
    pub const SWITCHES: &str = "WAYLAY_SWITCHES";
    pub const SOCKETS: &str = "WAYLAY_SOCKETS";
    /// Connections on their way to the agent, each in a place of its own; those that find theirs taken are in the other one.
    pub const CELLS: &str = "WAYLAY_CELLS";
    pub const CLIENTS: &str = "WAYLAY_CLIENTS";
    pub const HANDOVER: &str = "WAYLAY_HANDOVER";
    pub const POLICY: &str = "WAYLAY_POLICY";
    pub const EXEMPT: &str = "WAYLAY_EXEMPT";
    /// Whether any entry of the former has a port.
    pub const PORTS: &str = "WAYLAY_PORTS";
    pub const NETNS: &str = "WAYLAY_NETNS";
    pub const FLOWS: &str = "WAYLAY_FLOWS";
    pub const LISTENERS: &str = "WAYLAY_LISTEN";
    /// Of one inbound hook only.
    pub const PLACE: &str = "WAYLAY_PLACE";
    pub const COUNTERS: &str = "WAYLAY_COUNTERS";
    pub const PROCESSES: &str = "WAYLAY_PROCS";
    pub const EVENTS: &str = "WAYLAY_EVENTS";
}

pub(super) type Settled = Array<MapData, Settings>;
pub(super) type Processes = Array<MapData, ProcessTable>;
pub(super) type Switches = Array<MapData, u64>;
pub(super) type Sockets = SkStorage<MapData, SocketState>;
pub(super) type Cells = Array<MapData, HandoverCell>;
pub(super) type Clients = Array<MapData, ClientSlot>;
pub(super) type Handovers = HashMap<MapData, FlowKey, HandoverEntry>;
pub(super) type Flows = HashMap<MapData, FlowKey, u64>;
pub(super) type Listeners = SockHash<MapData, ListenerKey>;
pub(super) type Trie = LpmTrie<MapData, PolicyKey, PortRules>;
pub(super) type Exempt = HashMap<MapData, ExemptKey, ExemptOwner>;
pub(super) type Ports = Array<MapData, u32>;
pub(super) type Netns = HashMap<MapData, u64, NetnsEntry>;
pub(super) type Counters = PerCpuArray<MapData, u64>;

/// A typed view of `data`.
pub(super) fn typed<T: TryFrom<Map, Error = MapError>>(name: &str, data: MapData) -> Result<T, KernelError> {
    let open = || T::try_from(Map::from_map_data(data)?);
    open().map_err(|source| KernelError::map(format!("opening the map {name}"), source))
}

/// A second handle on the same map.
pub(super) fn duplicate(name: &str, data: &MapData) -> Result<MapData, KernelError> {
    use std::os::fd::AsFd as _;
    let fd = data
        .fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|source| KernelError::io(format!("duplicating the handle of the map {name}"), source))?;
    MapData::from_fd(fd).map_err(|source| KernelError::map(format!("opening the map {name}"), source))
}

/// The value of a key; `None` when it is not there.
pub(super) fn optional<V>(result: Result<V, MapError>, doing: &str) -> Result<Option<V>, KernelError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(source) => Err(KernelError::map(doing, source)),
    }
}

/// All entries of a map that others may be changing meanwhile; entries that vanish are left out.
pub(super) fn entries<K: Pod, V: Pod>(
    name: &str,
    keys: impl Iterator<Item = Result<K, MapError>>,
    value: impl Fn(&K) -> Result<V, MapError>,
) -> Result<Vec<(K, V)>, KernelError> {
    let doing = format!("reading the map {name}");
    let mut entries = Vec::new();
    for key in keys {
        let key = key.map_err(|source| KernelError::map(&doing, source))?;
        if let Some(value) = optional(value(&key), &doing)? {
            entries.push((key, value));
        }
    }
    Ok(entries)
}

/// The values of these places of an array.
pub(super) fn places<V: Pod>(
    name: &str,
    array: &Array<MapData, V>,
    places: impl IntoIterator<Item = u32>,
) -> Result<Vec<V>, KernelError> {
    let read = |place| array.get(&place, 0);
    let failed = |source| KernelError::map(format!("reading the map {name}"), source);
    places.into_iter().map(read).collect::<Result<_, _>>().map_err(failed)
}

/// Removes a key; none is as good.
pub(super) fn ensure_removed(result: Result<(), MapError>, doing: &str) -> Result<(), KernelError> {
    match result {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(KernelError::map(doing, source)),
    }
}

pub(super) fn set_switch(switches: &mut Switches, switch: Switch, value: u64) -> Result<(), KernelError> {
    switches
        .set(switch as u32, value, 0)
        .map_err(|source| KernelError::map(format!("setting the switch {switch:?}"), source))
}

pub(super) fn read_switch(switches: &Switches, switch: Switch) -> Result<u64, KernelError> {
    switches
        .get(&(switch as u32), 0)
        .map_err(|source| KernelError::map(format!("reading the switch {switch:?}"), source))
}

/// The sum over all CPUs of every counter.
pub(super) fn read_counters(counters: &Counters) -> Result<Vec<(Counter, u64)>, KernelError> {
    Counter::ALL
        .iter()
        .map(|&counter| {
            let values = counters
                .get(&(counter as u32), 0)
                .map_err(|source| KernelError::map(format!("reading the counter {}", counter.name()), source))?;
            Ok((counter, values.iter().sum()))
        })
        .collect()
}

/// Puts a policy into the trie under the number `id`.
pub(super) fn write_policy(trie: &mut Trie, id: u32, nodes: &[Node]) -> Result<(), KernelError> {
    nodes.iter().try_for_each(|node| {
        trie.insert(&node_key(id, node.prefix), node.rules, 0)
            .map_err(|source| KernelError::map("writing the policy", source))
    })
}

/// Removes one node of the policy `id`; none is as good.
pub(super) fn remove_node(trie: &mut Trie, id: u32, prefix: Prefix) -> Result<(), KernelError> {
    ensure_removed(trie.remove(&node_key(id, prefix)), "removing a policy that is no longer in force")
}

fn node_key(policy: u32, prefix: Prefix) -> Key<PolicyKey> {
    Key::new(PolicyKey::POLICY_BITS + prefix.len(), PolicyKey { policy, ip: prefix.ip() })
}

/// The nodes of all policies, each with the number of its policy.
pub(super) fn read_policies(trie: &Trie) -> Result<Vec<(u32, Node)>, KernelError> {
    // A lookup by the node's own prefix finds the node itself: there is no longer one that contains it.
    let all = entries(name::POLICY, trie.keys(), |key| trie.get(key, 0))?;
    Ok(all
        .into_iter()
        .map(|(key, rules)| {
            let len = key.prefix_len() - PolicyKey::POLICY_BITS;
            (key.data().policy, Node { prefix: Prefix::from_parts(key.data().ip, len), rules })
        })
        .collect())
}
