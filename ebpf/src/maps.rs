//! The maps of the main object: those that it shares with the inbound hooks, and its own.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, PerCpuArray, SkStorage},
    macros::btf_map,
};
use waylay_common::{
    counter::Counter,
    flow::{FlowKey, HandoverEntry, SocketState},
    limits,
    processes::ProcessTable,
};

pub use crate::shared_maps::*;

/// What is remembered of a socket. Written by the connect hooks (client), by sock_ops (accepted) and by the agent, by
/// fd (bypass, inbound); read by all hooks but the inbound ones, and by the agent. Freed with its socket; it is never full,
/// only out of memory.
#[btf_map]
pub static WAYLAY_SOCKETS: SkStorage<SocketState> = SkStorage::new();

/// Handshakes in flight that have no cell ([`crate::cells`]); memory is taken by the entry. Written at `TCP_CONNECT_CB`, taken at `PASSIVE_ESTABLISHED`, taken back when the client's
/// socket is closed first. Plain, never LRU: an entry that was evicted would be a connection that lost its destination.
/// Full: counted, and the agent refuses the connection.
#[btf_map]
pub static WAYLAY_HANDOVER: HashMap<
    FlowKey,
    HandoverEntry,
    { limits::HANDOVER_ENTRIES as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

/// When each failure was last told of ([`crate::log`]), by [`Counter`], per CPU; `CLOCK_MONOTONIC`, nanoseconds.
#[btf_map]
pub static WAYLAY_LOGGED: PerCpuArray<u64, { Counter::COUNT as usize }> = PerCpuArray::new();

/// Whether a port is one of an exempt listener, by [`waylay_common::settings::port_place`]: not 0 from before the first such
/// listener is entered in the exempt map, and for ever. Written by whoever enters it; read by the connect hooks, which need not
/// look an address up for most ports.
#[btf_map]
pub static WAYLAY_PORTS: Array<u32, { limits::EXEMPT_PORTS as usize }> = Array::new();

/// Whose connections are taken: two tables, of which [`Switch::Processes`] names the one in force. Written by the agent,
/// the other one before it changes over; read by the connect hooks.
#[btf_map]
pub static WAYLAY_PROCS: Array<ProcessTable, 2> = Array::new();
