//! The kernel programs of waylay that are attached to cgroups: entry points only. Those of network namespaces are in
//! `inbound`.
//!
//! | program | runs | does |
//! |---|---|---|
//! | `waylay_connect4`, `waylay_connect6` | connect(2), before the kernel looks at the address | decide, remember, rewrite |
//! | `waylay_sockops` | the handshake, on both ends | carry the original destination to the accepted socket; tell the inbound hooks of the agent's own connections |
//! | `waylay_peer4`, `waylay_peer6` | getpeername(2), accept(2) | the address the application dialled |
//! | `waylay_sockopt` | getsockopt(2) | `SO_ORIGINAL_DST` for proxies that know nothing of waylay |
//! | `waylay_dns_con*`, `waylay_dns_snd*` | connect(2), sendto(2) of UDP sockets | questions to resolvers go to the agent |
//! | `waylay_dns_rcv*`, `waylay_dns_pee*` | recvfrom(2), getpeername(2) | the resolver that was asked |
//!
//! The kernel cuts program names at 15 characters, and a program must not have the name of its section.
#![no_std]
// Comparing and swapping a word, which the core library does not offer for BPF otherwise (see `cells`).
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics), allow(internal_features, reason = "see above"))]
#![no_main]

mod cells;
mod clients;
mod connect;
mod dispatch;
mod dispatched;
mod dns;
mod hook;
mod log;
mod maps;
mod object;
mod peername;
mod shared_maps;
mod sockets;
mod sockops;
mod sockopt;

use aya_ebpf::{
    macros::{cgroup_sock_addr, cgroup_sockopt, sock_ops},
    programs::{SockAddrContext, SockOpsContext, SockoptContext},
};

#[cgroup_sock_addr(connect4)]
pub fn waylay_connect4(ctx: SockAddrContext) -> i32 {
    connect::run(&ctx, connect::Family::V4)
}

#[cgroup_sock_addr(connect6)]
pub fn waylay_connect6(ctx: SockAddrContext) -> i32 {
    connect::run(&ctx, connect::Family::V6)
}

#[sock_ops]
pub fn waylay_sockops(ctx: SockOpsContext) -> u32 {
    sockops::run(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
pub fn waylay_peer4(ctx: SockAddrContext) -> i32 {
    peername::v4(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
pub fn waylay_peer6(ctx: SockAddrContext) -> i32 {
    peername::v6(&ctx)
}

#[cgroup_sockopt(getsockopt)]
pub fn waylay_sockopt(ctx: SockoptContext) -> i32 {
    sockopt::run(&ctx)
}

#[cgroup_sock_addr(connect4)]
pub fn waylay_dns_con4(ctx: SockAddrContext) -> i32 {
    dns::ask(&ctx, connect::Family::V4)
}

#[cgroup_sock_addr(connect6)]
pub fn waylay_dns_con6(ctx: SockAddrContext) -> i32 {
    dns::ask(&ctx, connect::Family::V6)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn waylay_dns_snd4(ctx: SockAddrContext) -> i32 {
    dns::ask(&ctx, connect::Family::V4)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn waylay_dns_snd6(ctx: SockAddrContext) -> i32 {
    dns::ask(&ctx, connect::Family::V6)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn waylay_dns_rcv4(ctx: SockAddrContext) -> i32 {
    dns::answer(&ctx, connect::Family::V4)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn waylay_dns_rcv6(ctx: SockAddrContext) -> i32 {
    dns::answer(&ctx, connect::Family::V6)
}

#[cgroup_sock_addr(getpeername4)]
pub fn waylay_dns_pee4(ctx: SockAddrContext) -> i32 {
    dns::answer(&ctx, connect::Family::V4)
}

#[cgroup_sock_addr(getpeername6)]
pub fn waylay_dns_pee6(ctx: SockAddrContext) -> i32 {
    dns::answer(&ctx, connect::Family::V6)
}
