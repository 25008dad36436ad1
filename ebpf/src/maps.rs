//! The maps: who writes them, who reads them, how long an entry lives, and what happens when they are full.
//!
//! Names are kept within the kernel's 15 characters: `waylay maps` finds an instance by them.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf, SkStorage},
    macros::btf_map,
};
use waylay_common::{
    counter::Counter,
    event::RawEvent,
    flow::{FlowKey, HandoverEntry, SocketState},
    limits,
    policy::{PolicyKey, PortRules},
    processes::ProcessTable,
    settings::{ExemptKey, ExemptOwner, Settings, Switch},
};

/// Written by the agent before the hooks are attached; read by every hook.
#[btf_map]
pub static WAYLAY_SETTINGS: Array<Settings, 1> = Array::new();

/// Written by the agent at any time, one `u64` at a time ([`Switch`]); read by the connect hooks.
#[btf_map]
pub static WAYLAY_SWITCHES: Array<u64, { Switch::COUNT as usize }> = Array::new();

/// What is remembered of a socket. Written by the connect hooks (client), by sock_ops (accepted) and by the agent, by
/// fd (bypass); read by all hooks and by the agent. Freed with its socket; it is never full, only out of memory.
#[btf_map]
pub static WAYLAY_SOCKETS: SkStorage<SocketState> = SkStorage::new();

/// Handshakes in flight. Written at `TCP_CONNECT_CB`, taken at `PASSIVE_ESTABLISHED`, taken back when the client's
/// socket is closed first. Plain, never LRU: an entry that was evicted would be a connection that lost its destination.
/// Full: counted, and the agent refuses the connection.
#[btf_map]
pub static WAYLAY_HANDOVER: HashMap<FlowKey, HandoverEntry, { limits::HANDOVER_ENTRIES as usize }> = HashMap::new();

/// The policy, compiled by the agent so that a node speaks for all its ancestors; read by the connect hooks.
/// Full: the agent refuses the policy.
#[btf_map]
pub static WAYLAY_POLICY: LpmTrie<PolicyKey, PortRules, { limits::POLICY_ENTRIES as usize }> = LpmTrie::new();

/// Listener addresses that are never redirected; written by the agent and by other instances, read by the connect hooks.
#[btf_map]
pub static WAYLAY_EXEMPT: HashMap<ExemptKey, ExemptOwner, { limits::EXEMPT_ENTRIES as usize }> = HashMap::new();

/// Enrolled network namespaces by cookie; written by the agent, read by the connect hooks.
#[btf_map]
pub static WAYLAY_NETNS: HashMap<u64, u64, { limits::NETNS_ENTRIES as usize }> = HashMap::new();

/// One slot for each [`Counter`], per CPU; written by the hooks, summed by the agent.
#[btf_map]
pub static WAYLAY_COUNTERS: PerCpuArray<u64, { Counter::COUNT as usize }> = PerCpuArray::new();

/// When each failure was last told of ([`crate::log`]), by [`Counter`], per CPU; `CLOCK_MONOTONIC`, nanoseconds.
#[btf_map]
pub static WAYLAY_LOGGED: PerCpuArray<u64, { Counter::COUNT as usize }> = PerCpuArray::new();

/// Decisions, while somebody traces. Full: the event is dropped and counted.
#[btf_map]
pub static WAYLAY_EVENTS: RingBuf<RawEvent, { limits::EVENT_RING_BYTES as usize }> = RingBuf::new();

/// Whose connections are taken: two tables, of which [`Switch::Processes`] names the one in force. Written by the agent,
/// the other one before it changes over; read by the connect hooks.
#[btf_map]
pub static WAYLAY_PROCS: Array<ProcessTable, 2> = Array::new();
