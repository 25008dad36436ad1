//! getpeername4 and getpeername6: the application sees the address it dialled.
//!
//! The same hook runs for the address that accept(2) returns, so only a client's socket gets an answer: the agent must
//! see its true peer. One socket is asked for another reason: the agent learns by it which process it is itself.

use aya_ebpf::{bindings::bpf_sock_addr, programs::SockAddrContext};
use waylay_common::{addr::Endpoint, counter::Counter, flow::Role};

use crate::{
    clients, connect,
    hook::{self, read},
    sockets::{self, PROCEED, write},
};

#[inline(always)]
pub fn v4(ctx: &SockAddrContext) -> i32 {
    if let Some(original_dst) = dialled(ctx.sock_addr) {
        write!((ctx.sock_addr, user_ip4) = original_dst.ip().v4_word());
        answer_port(ctx.sock_addr, original_dst);
    }
    PROCEED
}

#[inline(always)]
pub fn v6(ctx: &SockAddrContext) -> i32 {
    if let Some(original_dst) = dialled(ctx.sock_addr) {
        let words = original_dst.ip().words();
        write!((ctx.sock_addr, user_ip6[0]) = words[0]);
        write!((ctx.sock_addr, user_ip6[1]) = words[1]);
        write!((ctx.sock_addr, user_ip6[2]) = words[2]);
        write!((ctx.sock_addr, user_ip6[3]) = words[3]);
        answer_port(ctx.sock_addr, original_dst);
    }
    PROCEED
}

#[inline(always)]
fn dialled(addr: *mut bpf_sock_addr) -> Option<Endpoint> {
    let sk = read!(addr, __bindgen_anon_1.sk);
    if let Some(state) = sockets::socket_state_mut(sk) {
        if state.role() == Some(Role::Agent) {
            state.process.pid = sockets::caller_pid();
        }
        return matches!(state.role(), Some(Role::Client | Role::Dispatched)).then_some(state.original_dst);
    }
    // Most peers are none of ours, which the port tells at once.
    if !sockets::is_agents_port(u16::from_be(read!(addr, user_port) as u16)) {
        return None;
    }
    clients::published(connect::socket_cookie(addr)).map(|(origin, _)| origin.original_dst)
}

#[inline(always)]
fn answer_port(addr: *mut bpf_sock_addr, original_dst: Endpoint) {
    write!((addr, user_port) = u32::from(original_dst.port().to_be()));
    hook::count(Counter::PeernameAnswered);
}
