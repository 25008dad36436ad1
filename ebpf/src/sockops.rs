//! sock_ops: carries the original destination from the client's socket to the accepted one, and makes the agent's own
//! connections to applications known to the inbound hooks.
//!
//! Before it: `connect` has remembered a destination. `TCP_CONNECT_CB` runs when the source port is chosen and before
//! the SYN leaves, so the entry is there before the agent's side can ask for it; `PASSIVE_ESTABLISHED` runs before
//! accept(2) can return the socket. After it: the agent takes the connection out of its cell, or reads the accepted socket's
//! storage by fd, and `inbound` finds the tuple of the SYN in the map of flows.
//!
//! The kernel comes here nine times for a connection on the loopback, whoever makes it, and five of these times for the
//! connecting side: whatever is none of ours has to leave at once.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
        BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock_ops,
    },
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_setsockopt, bpf_sock_ops_cb_flags_set},
    programs::SockOpsContext,
};
use waylay_common::{
    addr::{Endpoint, Ip},
    cells::Origin,
    counter::Counter,
    dispatch::state,
    flow::{FlowKey, HandoverEntry, ProcessStamp, Role, SocketState},
};

use crate::{
    cells, clients, dispatched,
    hook::{self, read},
    log,
    maps::{WAYLAY_FLOWS, WAYLAY_HANDOVER, WAYLAY_SETTINGS},
    sockets::{self, PROCEED, Sockets},
};

const AF_INET: u32 = 2;
const SOL_SOCKET: i32 = 1;
const SO_BINDTOIFINDEX: i32 = 62;

#[inline(always)]
pub fn run(ctx: &SockOpsContext) -> u32 {
    match read!(ctx.ops, op) {
        BPF_SOCK_OPS_TCP_CONNECT_CB => publish(ctx.ops),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => take(ctx.ops),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => answered(ctx.ops),
        BPF_SOCK_OPS_STATE_CB => match read!(ctx.ops, __bindgen_anon_1.args[1]) {
            state::CLOSE => closed(ctx.ops),
            to if dispatched::tells(to) => changed(ctx.ops, to),
            _ => {}
        },
        _ => {}
    }
    PROCEED as u32
}

/// The connecting side, before the SYN.
#[inline(always)]
fn publish(ops: *mut bpf_sock_ops) {
    let sk = read!(ops, __bindgen_anon_2.sk);
    if sk.is_null() {
        return;
    }
    if depart(ops) {
        watch(ops);
        return;
    }
    let Some(state) = sockets::socket_state_mut(sk) else {
        return;
    };
    let published = match state.role() {
        Some(Role::Client) => {
            insert_handover(&key(ops, false), &state.process, &state.original_dst, socket_cookie(ops))
        }
        Some(Role::Inbound) => publish_flow(ops),
        Some(Role::Dispatched) => {
            dispatched::opened(ops, state);
            true
        }
        _ => return,
    };
    if published {
        watch(ops);
    }
}

/// Asks the kernel to call at every change of this socket's state.
#[inline(always)]
fn watch(ops: *mut bpf_sock_ops) {
    let flags = read!(ops, bpf_sock_ops_cb_flags) | BPF_SOCK_OPS_STATE_CB_FLAG;
    // SAFETY: the helper takes this hook's context; it fails only on flags unknown to the kernel.
    unsafe { bpf_sock_ops_cb_flags_set(ops, flags as i32) };
}

/// An application's connection to the agent, of a client that has a slot: where it was going. False: it has none.
#[inline(always)]
fn depart(ops: *mut bpf_sock_ops) -> bool {
    let Some(settings) = WAYLAY_SETTINGS.get(0) else { return false };
    let port = remote_port(ops);
    if port != settings.redirect_v4.port() && port != settings.redirect_v6.port() {
        return false;
    }
    let ends = Ends::of(ops);
    if ends.remote != settings.redirect_v4 && ends.remote != settings.redirect_v6 {
        return false;
    }
    let cookie = socket_cookie(ops);
    let Some(origin) = clients::depart(cookie) else { return false };
    let key = FlowKey::new(netns_cookie(ops), ends.local, ends.remote);
    if cells::publish(&key, origin) {
        hook::count(Counter::HandoverPublished);
    } else {
        clients::is_hashed(cookie);
        insert_handover(&key, &origin.process, &origin.original_dst, cookie);
    }
    true
}

/// Where a connection to the agent was going, for one that has no cell. A function of its own, for the stack.
#[inline(never)]
fn insert_handover(key: &FlowKey, process: &ProcessStamp, original_dst: &Endpoint, client_cookie: u64) -> bool {
    let entry = HandoverEntry { origin: Origin::new(*process, *original_dst), client_cookie };
    if WAYLAY_HANDOVER.insert(key, entry, 0).is_err() {
        hook::count(Counter::HandoverFull);
        log::failure(Counter::HandoverFull, original_dst);
        return false;
    }
    hook::count(Counter::HandoverPublished);
    true
}

/// The agent's connection to an application, which the inbound hook of this network namespace must not give back to the
/// agent. Should there be no room to tell it, the connection must not leave.
#[inline(always)]
fn publish_flow(ops: *mut bpf_sock_ops) -> bool {
    let ends = Ends::of(ops);
    let key = FlowKey::new(netns_cookie(ops), ends.local, ends.remote);
    if WAYLAY_FLOWS.insert(key, socket_cookie(ops), 0).is_err() {
        hook::count(Counter::FlowsFull);
        log::failure(Counter::FlowsFull, &ends.remote);
        make_unreachable(ops);
        return false;
    }
    hook::count(Counter::FlowsPublished);
    true
}

/// Lets the connect fail with `EHOSTUNREACH`. What this hook returns is not asked for at this place, but the kernel looks
/// the route up once more before it sends the SYN, and there is none through a device that does not exist.
#[inline(always)]
fn make_unreachable(ops: *mut bpf_sock_ops) {
    let mut device = i32::MAX;
    // SAFETY: the helper takes this hook's context and reads four bytes.
    unsafe { bpf_setsockopt(ops.cast(), SOL_SOCKET, SO_BINDTOIFINDEX, (&raw mut device).cast(), 4) };
}

/// The agent's side, when the handshake is done and before accept(2) returns.
#[inline(always)]
fn take(ops: *mut bpf_sock_ops) {
    if !sockets::is_agents_port(read!(ops, local_port) as u16) {
        return;
    }
    let ends = Ends::of(ops);
    let key = FlowKey::new(netns_cookie(ops), ends.remote, ends.local);
    if cells::establish(&key) {
        hook::count(Counter::HandoverTaken);
        watch(ops);
        return;
    }
    // SAFETY: copied at once; only the two ends of this one connection ever touch the entry.
    let Some(entry) = (unsafe { WAYLAY_HANDOVER.get(key) }) else {
        return;
    };
    let state = entry.origin.state(Role::Accepted);
    let sk = read!(ops, __bindgen_anon_2.sk);
    if sk.is_null() {
        return;
    }
    if Sockets::of(sk).remember(&state) {
        hook::count(Counter::HandoverTaken);
    } else {
        hook::count(Counter::HandoverNoStorage);
        log::failure(Counter::HandoverNoStorage, &state.original_dst);
    }
    // Fails only when the client's side has just taken the entry back.
    let _ = WAYLAY_HANDOVER.remove(key);
}

/// The connecting side, when the handshake is done. Most sockets are none of ours, which the flags tell at once.
#[inline(always)]
fn answered(ops: *mut bpf_sock_ops) {
    if let Some(state) = dispatched_state(ops) {
        dispatched::established(state);
    }
}

/// The connecting side again, at a change of its state that tells something of a dispatched connection.
#[inline(always)]
fn changed(ops: *mut bpf_sock_ops, to: u32) {
    if let Some(state) = dispatched_state(ops) {
        dispatched::changed(ops, state, to);
    }
}

/// A socket that is watched is closed. What is in its storage tells which it is; one that has none is that of an application
/// with a slot, or an accepted one.
#[inline(always)]
fn closed(ops: *mut bpf_sock_ops) {
    let sk = read!(ops, __bindgen_anon_2.sk);
    if sk.is_null() {
        return;
    }
    let role = match sockets::socket_state_mut(sk) {
        Some(state) if state.role() == Some(Role::Dispatched) => return dispatched::closed(ops, state),
        Some(state) => state.role(),
        None => None,
    };
    let cookie = socket_cookie(ops);
    let client = if role.is_none() { clients::published(cookie) } else { None };
    let accepted = role.is_none() && client.is_none();
    if accepted && !sockets::is_agents_port(read!(ops, local_port) as u16) {
        return;
    }
    let key = key(ops, accepted);
    match (role, client) {
        (None, None) => settle(&SockOpsContext::new(ops), &key),
        (None, Some((origin, hashed))) => {
            if hashed {
                abandon(&key, cookie);
            } else if cells::take_back(&key, origin) {
                hook::count(Counter::HandoverAbandoned);
                log::failure(Counter::HandoverAbandoned, &origin.original_dst);
            }
            clients::forget(cookie);
        }
        (Some(Role::Client), _) => abandon(&key, cookie),
        (Some(Role::Inbound), _) => forget_flow(&key, cookie),
        _ => {}
    }
}

/// The connection of a socket, from the side that has connected.
#[inline(always)]
fn key(ops: *mut bpf_sock_ops, accepted: bool) -> FlowKey {
    let ends = Ends::of(ops);
    let (client, agent) = if accepted { (ends.remote, ends.local) } else { (ends.local, ends.remote) };
    FlowKey::new(netns_cookie(ops), client, agent)
}

/// The accepted socket is closed, perhaps before it was accepted: the connection stays with it, and the cell becomes free
/// before its tuple can be another connection's. A function of its own, for the stack; whose connection is lost when there
/// is no memory for it is told by the counter alone, for the same reason.
#[inline(never)]
fn settle(ctx: &SockOpsContext, key: &FlowKey) {
    let sk = read!(ctx.ops, __bindgen_anon_2.sk);
    if sk.is_null() {
        return;
    }
    let moved = cells::move_out(key, |origin| {
        if !sockets::put(sk, &origin.state(Role::Accepted)) {
            hook::count(Counter::HandoverNoStorage);
        }
    });
    if moved == Some(false) {
        sockets::remove(sk);
    }
}

/// What is remembered of a socket whose connection was dispatched.
#[inline(always)]
fn dispatched_state<'a>(ops: *mut bpf_sock_ops) -> Option<&'a mut SocketState> {
    if read!(ops, bpf_sock_ops_cb_flags) & BPF_SOCK_OPS_STATE_CB_FLAG == 0 {
        return None;
    }
    let sk = read!(ops, __bindgen_anon_2.sk);
    if sk.is_null() {
        return None;
    }
    sockets::socket_state_mut(sk).filter(|state| state.role() == Some(Role::Dispatched))
}

/// The agent's connection to an application is closed: its tuple may soon be another's.
#[inline(always)]
fn forget_flow(key: &FlowKey, cookie: u64) {
    // SAFETY: copied at once.
    if unsafe { WAYLAY_FLOWS.get(key) }.copied() == Some(cookie) {
        let _ = WAYLAY_FLOWS.remove(key);
    }
}

/// The client is closed, and its connection went through the hash: what the agent has not taken by now, nobody will. A
/// function of its own, for the stack.
#[inline(never)]
fn abandon(key: &FlowKey, cookie: u64) {
    // SAFETY: one field is read at once, as in `take`.
    let Some(entry) = (unsafe { WAYLAY_HANDOVER.get(key) }) else {
        return;
    };
    let original_dst = entry.origin.original_dst;
    // The tuple is free for the next socket soon; its entry is not ours to take.
    if entry.client_cookie == cookie && WAYLAY_HANDOVER.remove(key).is_ok() {
        hook::count(Counter::HandoverAbandoned);
        log::failure(Counter::HandoverAbandoned, &original_dst);
    }
}

pub struct Ends {
    pub local: Endpoint,
    pub remote: Endpoint,
}

impl Ends {
    /// Both ends as seen from this socket. An IPv6 socket that speaks to an IPv4-mapped address has its true addresses
    /// in the IPv4 fields; so written, the key is the same whatever family either side's socket has.
    #[inline(always)]
    pub fn of(ops: *mut bpf_sock_ops) -> Self {
        let remote_port = remote_port(ops);
        let local_port = read!(ops, local_port) as u16;
        let (local, remote) = Self::addresses(ops);
        Self { local: Endpoint::new(local, local_port), remote: Endpoint::new(remote, remote_port) }
    }

    #[inline(always)]
    fn addresses(ops: *mut bpf_sock_ops) -> (Ip, Ip) {
        if read!(ops, family) != AF_INET {
            let remote = Ip::from_words([
                read!(ops, remote_ip6[0]),
                read!(ops, remote_ip6[1]),
                read!(ops, remote_ip6[2]),
                read!(ops, remote_ip6[3]),
            ]);
            if !remote.is_v4() {
                let local = Ip::from_words([
                    read!(ops, local_ip6[0]),
                    read!(ops, local_ip6[1]),
                    read!(ops, local_ip6[2]),
                    read!(ops, local_ip6[3]),
                ]);
                return (local, remote);
            }
        }
        (Ip::from_v4_word(read!(ops, local_ip4)), Ip::from_v4_word(read!(ops, remote_ip4)))
    }
}

#[inline(always)]
fn remote_port(ops: *mut bpf_sock_ops) -> u16 {
    u16::from_be((read!(ops, remote_port) >> REMOTE_PORT_SHIFT) as u16)
}

/// `remote_port` is a 16-bit field in network order, in the upper half of a word on little-endian machines.
const REMOTE_PORT_SHIFT: u32 = if cfg!(target_endian = "little") { 16 } else { 0 };

#[inline(always)]
fn netns_cookie(ops: *mut bpf_sock_ops) -> u64 {
    // SAFETY: the helper takes this hook's context.
    unsafe { bpf_get_netns_cookie(ops.cast()) }
}

#[inline(always)]
pub fn socket_cookie(ops: *mut bpf_sock_ops) -> u64 {
    // SAFETY: the helper takes this hook's context.
    unsafe { bpf_get_socket_cookie(ops.cast()) }
}
