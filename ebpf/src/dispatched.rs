//! Dispatch in the kernel, in the life of a connection: tells the agent of its beginning and its end, with what TCP has
//! counted.
//!
//! Before it: `connect` has remembered on the socket that the connection was dispatched; `sockops` calls here for such
//! sockets. After it: the agent, which makes the record and the statistics of it. Nothing waits for the agent, and
//! nothing wakes it: it looks into the ring by itself.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_NO_PREALLOC, BPF_RB_NO_WAKEUP, bpf_sock_ops},
    btf_maps::{HashMap, RingBuf},
    macros::btf_map,
    programs::SockOpsContext,
};
use waylay_common::{
    counter::Counter,
    dispatch::{ConnectionEvent, Ending, Moment, TcpBytes, mark, state},
    flow::SocketState,
    limits,
};

use crate::{
    hook::{self, read},
    sockops::{Ends, socket_cookie},
};

/// Beginnings and ends of dispatched connections. Full: the event is dropped and counted; the end of a connection is then
/// known by [`WAYLAY_UNTOLD`].
#[btf_map]
pub static WAYLAY_CONNS: RingBuf<ConnectionEvent, { limits::DISPATCH_RING_BYTES as usize }> = RingBuf::new();

/// Connections whose end did not fit into the ring: the cookie of the socket, and the time. The agent takes them out.
/// Full: the agent holds the connection for open until it ends itself; counted as the others.
#[btf_map]
pub static WAYLAY_UNTOLD: HashMap<u64, u64, { limits::DISPATCH_UNTOLD as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// The SYN is about to leave.
#[inline(always)]
pub fn opened(ops: *mut bpf_sock_ops, state: &mut SocketState) {
    if tell(&SockOpsContext::new(ops), state, Moment::Opened as u32) {
        state.dispatched.marks |= mark::OPENED;
    }
}

/// The endpoint has answered.
#[inline(always)]
pub fn established(state: &mut SocketState) {
    state.dispatched.established_ns = hook::now_ns();
}

/// Whether anything is to be learned when a socket goes to this state of TCP, the last one aside.
#[inline(always)]
pub const fn tells(to: u32) -> bool {
    matches!(to, state::CLOSE_WAIT | state::CLOSING | state::FIN_WAIT2)
}

/// The socket goes to a state that [`tells`].
#[inline(always)]
pub fn changed(ops: *mut bpf_sock_ops, socket: &mut SocketState, to: u32) {
    let dispatched = &mut socket.dispatched;
    if to == state::FIN_WAIT2 {
        dispatched.marks |= mark::CLIENT_END_ACKNOWLEDGED;
        dispatched.received_at_half_close = read!(ops, bytes_received);
    } else {
        dispatched.marks |= mark::ENDPOINT_ENDED;
    }
}

/// The socket is closed.
#[inline(always)]
pub fn closed(ops: *mut bpf_sock_ops, socket: &mut SocketState) {
    let dispatched = &mut socket.dispatched;
    if dispatched.marks & mark::CLOSED != 0 {
        return;
    }
    let before = read!(ops, __bindgen_anon_1.args[0]);
    dispatched.marks |= mark::CLOSED | last_marks(ops, before, dispatched.received_at_half_close);
    let cookie = socket_cookie(ops);
    if !tell(&SockOpsContext::new(ops), socket, Moment::Closed as u32 | before << BEFORE_SHIFT) {
        let _ = WAYLAY_UNTOLD.insert(cookie, hook::now_ns(), 0);
    }
}

/// What the last change of state tells of the ends of both directions. A socket that waits for the endpoint's end alone is
/// closed when that arrives, or because nobody waits for it any more.
#[inline(always)]
fn last_marks(ops: *mut bpf_sock_ops, before: u32, received_at_half_close: u64) -> u32 {
    match before {
        state::FIN_WAIT2 if read!(ops, bytes_received) > received_at_half_close => mark::ENDPOINT_ENDED,
        state::LAST_ACK | state::CLOSING if all_acknowledged(ops) => mark::CLIENT_END_ACKNOWLEDGED,
        _ => 0,
    }
}

#[inline(always)]
fn all_acknowledged(ops: *mut bpf_sock_ops) -> bool {
    read!(ops, snd_una) == read!(ops, snd_nxt)
}

/// Where the state before the last stands beside the [`Moment`].
const BEFORE_SHIFT: u32 = 8;

/// False: no room. A function of its own: the event would not fit on the stack beside the handover's.
#[inline(never)]
fn tell(ctx: &SockOpsContext, state: &SocketState, moment: u32) -> bool {
    let ops: *mut bpf_sock_ops = ctx.as_ptr().cast();
    let (moment, before) = (moment & 0xff, moment >> BEFORE_SHIFT);
    let Some(mut entry) = WAYLAY_CONNS.reserve(0) else {
        let opened = moment == Moment::Opened as u32;
        hook::count(if opened { Counter::DispatchOpenLost } else { Counter::DispatchEndLost });
        return false;
    };
    let ends = Ends::of(ops);
    let tcp = TcpBytes { acked: read!(ops, bytes_acked), received: read!(ops, bytes_received) };
    let (bytes_from_client, bytes_to_client) = tcp.payload(&state.dispatched);
    entry.write(ConnectionEvent {
        process: state.process,
        original_dst: state.original_dst,
        client: ends.local,
        endpoint: ends.remote,
        target: state.dispatched.target,
        cookie: socket_cookie(ops),
        time_ns: hook::now_ns(),
        established_ns: state.dispatched.established_ns,
        bytes_from_client,
        bytes_to_client,
        rtt_us: read!(ops, srtt_us) >> SRTT_SHIFT,
        retransmits: read!(ops, total_retrans),
        moment,
        ending: Ending::from_state(before, all_acknowledged(ops)) as u32,
        marks: state.dispatched.marks,
        reserved: 0,
    });
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    true
}

/// The kernel keeps eighths of microseconds.
const SRTT_SHIFT: u32 = 3;
