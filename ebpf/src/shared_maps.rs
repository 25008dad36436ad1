//! The maps that the hooks of both objects use. The main object's are made first; each load of the inbound object is given
//! the same ones. For each: who writes it, who reads it, how long an entry lives, and what happens when it is full.
//!
//! Names are kept within the kernel's 15 characters: `waylay maps` finds an instance by them.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf, SockHash},
    macros::btf_map,
};
use waylay_common::{
    counter::Counter,
    event::RawEvent,
    flow::FlowKey,
    limits,
    netns::{ListenerKey, NetnsEntry},
    policy::{PolicyKey, PortRules},
    settings::{ExemptKey, ExemptOwner, Settings, Switch},
};

/// Memory is taken by the entry.
const BY_THE_ENTRY: usize = BPF_F_NO_PREALLOC as usize;

/// Written by the agent before the hooks are attached; read by every hook.
#[btf_map]
pub static WAYLAY_SETTINGS: Array<Settings, 1> = Array::new();

/// Written by the agent at any time, one `u64` at a time ([`Switch`]); read by the connect and inbound hooks.
#[btf_map]
pub static WAYLAY_SWITCHES: Array<u64, { Switch::COUNT as usize }> = Array::new();

/// All policies, compiled by the agent so that a node speaks for all its ancestors; read by the connect and inbound
/// hooks. Full: the agent refuses the policy.
#[btf_map]
pub static WAYLAY_POLICY: LpmTrie<PolicyKey, PortRules, { limits::POLICY_ENTRIES as usize }> = LpmTrie::new();

/// Listener addresses that are never redirected; written by the agent and by other instances, read by the connect and
/// inbound hooks. Full: the agent does not enrol the namespace.
#[btf_map]
pub static WAYLAY_EXEMPT: HashMap<ExemptKey, ExemptOwner, { limits::EXEMPT_ENTRIES as usize }, BY_THE_ENTRY> =
    HashMap::new();

/// Enrolled network namespaces by cookie, and which policies hold there; written by the agent, read by the connect and
/// inbound hooks. Full: the agent does not enrol the namespace.
#[btf_map]
pub static WAYLAY_NETNS: HashMap<u64, NetnsEntry, { limits::NETNS_ENTRIES as usize }> = HashMap::new();

/// Connections of the agent to applications on the inbound side, with the cookie of the agent's socket. Written at
/// `TCP_CONNECT_CB`, taken back when that socket is closed; read by the inbound hooks, which pass them. Full: counted, and
/// the connection is refused, for the inbound hook would give it back to the agent.
#[btf_map]
pub static WAYLAY_FLOWS: HashMap<FlowKey, u64, { limits::FLOW_ENTRIES as usize }, BY_THE_ENTRY> = HashMap::new();

/// The agent's inbound listening sockets; written by the agent, read by the inbound hooks. A socket that is closed leaves
/// the map by itself. Full: the agent does not enrol the namespace.
#[btf_map]
pub static WAYLAY_LISTEN: SockHash<ListenerKey, { limits::LISTENER_ENTRIES as usize }> = SockHash::new();

/// One slot for each [`Counter`], per CPU; written by the hooks, summed by the agent.
#[btf_map]
pub static WAYLAY_COUNTERS: PerCpuArray<u64, { Counter::COUNT as usize }> = PerCpuArray::new();

/// Decisions, while somebody traces. Full: the event is dropped and counted.
#[btf_map]
pub static WAYLAY_EVENTS: RingBuf<RawEvent, { limits::EVENT_RING_BYTES as usize }> = RingBuf::new();
