//! The bounds of every kernel map and the times of the heartbeat, each with its derivation.

/// Handshakes in flight at once: an entry lives from `TCP_CONNECT_CB` to `PASSIVE_ESTABLISHED`, microseconds on
/// loopback, up to the SYN retry limit (about two minutes) when the agent's accept queue is full. 65,536 entries are
/// more than one source address has ports towards the agent's listener.
pub const HANDOVER_ENTRIES: u32 = 65_536;

/// Trie nodes of one policy: one per distinct CIDR, and one root per address family.
pub const POLICY_NODES: u32 = 4_096;

/// Trie nodes of all policies together: those in force in any network namespace, and, until the next change, those that
/// were replaced and that a hook may still be reading. Sixteen of the largest, or ten thousand of the usual half a dozen
/// nodes. The trie takes memory by the node, about 200 bytes each.
pub const POLICY_ENTRIES: u32 = 16 * POLICY_NODES;

/// Port ranges that one trie node can carry, per direction, after merging. The hook compares all of them, without a
/// loop the verifier would have to bound: 16 ranges are 32 comparisons.
pub const PORT_RANGES: usize = 16;

/// Listener addresses that are never redirected: the agent's own, and those of other instances on the machine.
/// A wildcard listener takes one entry for each address of the machine; every enrolled namespace takes a few, twice on a
/// machine with two instances. The map takes memory by the entry.
pub const EXEMPT_ENTRIES: u32 = 16 * NETNS_ENTRIES;

/// Places of ports in the table that tells whether a port may be one of an exempt listener, 8 bytes each. Ports share one with
/// fifteen others: to be taken for one of those costs a lookup.
pub const EXEMPT_PORTS: u32 = 4_096;

/// Enrolled network namespaces: the agent's own, and one for each pod of a node.
pub const NETNS_ENTRIES: u32 = 4_096;

/// Listening sockets that inbound connections are given to: one of each address family for each network namespace.
pub const LISTENER_ENTRIES: u32 = 2 * NETNS_ENTRIES;

/// Connections of the agent to applications on the inbound side: half of 2^20, the most descriptors that a process may
/// have unless the machine's `fs.nr_open` was raised, as each passes on a client's connection. The map takes memory by the
/// entry, about 130 bytes each, but 8 MiB for its buckets at once.
pub const FLOW_ENTRIES: u32 = 1 << 19;

/// DNS resolvers that are asked, each in its network namespace: some three for each of 250 pods, and room for a few that
/// ask many. Beyond that questions go to their resolver directly.
pub const RESOLVER_ENTRIES: u32 = 4_096;

/// Destinations whose listeners are dispatched in the kernel, with those of the listeners beside them that are not.
pub const DISPATCH_ENTRIES: u32 = 4_096;

/// Slots of all slices together, 24 bytes each: eight for each of the most destinations, or a few that have many.
pub const DISPATCH_SLOTS: u32 = 32_768;

/// Bytes of the ring of dispatched connections: some 57,000 connections a second at a look each [`DISPATCH_LOOK_MS`], and
/// more once the reader looks each [`DISPATCH_LOOK_SOON_MS`] because there is so much.
pub const DISPATCH_RING_BYTES: u32 = 1024 * 1024;

/// Events that it has room for, of 176 bytes and a header of 8; a connection has two.
pub const DISPATCH_RING_EVENTS: u32 = DISPATCH_RING_BYTES / (176 + 8);

/// How often the agent looks into that ring.
pub const DISPATCH_LOOK_MS: u64 = 50;

/// The same, when much was in it at the last look.
pub const DISPATCH_LOOK_SOON_MS: u64 = 5;

/// Connections whose end found no room in the ring, until the agent asks for them.
pub const DISPATCH_UNTOLD: u32 = 16_384;

/// Bytes of the decision ring: a power of two and a multiple of the page size. About 3,000 decisions.
pub const EVENT_RING_BYTES: u32 = 256 * 1024;

/// How often the agent renews its heartbeat.
pub const HEARTBEAT_INTERVAL_MS: u64 = 250;

/// The age at which the hooks take the agent for lost.
pub const HEARTBEAT_LOSS_MS: u64 = 2_000;

const _: () = assert!(HEARTBEAT_LOSS_MS >= 4 * HEARTBEAT_INTERVAL_MS, "one late beat is no loss");
const _: () = assert!(EXEMPT_PORTS.is_power_of_two());
const _: () = assert!(DISPATCH_RING_BYTES.is_power_of_two() && DISPATCH_RING_BYTES.is_multiple_of(4096));
const _: () = assert!(EVENT_RING_BYTES.is_power_of_two() && EVENT_RING_BYTES.is_multiple_of(4096));
