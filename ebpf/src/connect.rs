//! connect4 and connect6: is it ours? Remember the original destination on the socket, rewrite to the agent, or to an endpoint.
//!
//! Before it: connect(2) of a process in the cgroup (also the subflow of a multipath socket, and TCP Fast Open's
//! sendto). After it: `sockops`, which finds what is remembered here. What is intercepted is not this file's business
//! but [`waylay_common::policy`]'s.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::{
        bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie, bpf_get_retval, bpf_get_socket_cookie, bpf_set_retval,
    },
    programs::SockAddrContext,
};
use waylay_common::{
    addr::{Endpoint, Ip},
    cells::Origin,
    counter::Counter,
    dispatch::Dispatched,
    event::{HookSide, RawEvent},
    flow::{Role, SocketState},
    policy::{Facts, Verdict, decide_with, is_agents_own},
    settings::{ExemptKey, Placement, Settings, Switch, port_place},
};

use crate::{
    clients,
    dispatch::{self, Way},
    hook::{self, read},
    log,
    maps::{WAYLAY_EXEMPT, WAYLAY_PORTS, WAYLAY_PROCS, WAYLAY_SETTINGS},
    sockets::{self, DENY, PROCEED, Sockets, write},
};

const ECONNREFUSED: i32 = 111;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// The whole hook: facts, verdict, deed, count.
#[inline(always)]
pub fn run(ctx: &SockAddrContext, family: Family) -> i32 {
    let Some(settings) = WAYLAY_SETTINGS.get(0) else {
        hook::count(Counter::PassedUnconfigured);
        return PROCEED;
    };
    if !concerns(settings) {
        return PROCEED;
    }
    let addr = ctx.sock_addr;
    // SAFETY: the helper takes this hook's context.
    let netns_cookie = unsafe { bpf_get_netns_cookie(addr.cast()) };
    let pid = sockets::caller_pid();
    if is_agents(addr, pid, settings) {
        tell(addr, family, (netns_cookie, pid), Counter::PassedBypass);
        return PROCEED;
    }
    // Before any other question: the verifier walks the rows once for each state in which it comes to them.
    let chosen = chosen(netns_cookie);
    let sk = read!(addr, __bindgen_anon_1.sk);
    let destination = destination(addr, sk, family);
    let sockets = Sockets::of(sk);

    let found = sockets.found();
    let role = found.and_then(|state| state.role());
    let (verdict, now_ns) = verdict(addr, sk, family, destination, (netns_cookie, chosen), role, settings);
    let counter =
        carry_out(verdict, addr, sockets, family, destination, (netns_cookie, pid, found.is_some(), now_ns), settings);
    hook::count(counter);
    hook::trace(|| event((netns_cookie, pid), destination, counter));
    if matches!(verdict, Verdict::Refuse(_)) { DENY } else { PROCEED }
}

/// Does the agent's own process connect?
#[inline(always)]
fn is_agents(addr: *mut bpf_sock_addr, pid: u32, settings: &Settings) -> bool {
    is_agents_own((read!(addr, protocol), pid), hook::switch(Switch::Agent), settings, || {
        hook::now_ns().saturating_sub(hook::switch(Switch::Heartbeat))
    })
}

/// Counts a decision for which the destination is not asked, and tells whoever traces.
#[inline(always)]
fn tell(addr: *mut bpf_sock_addr, family: Family, caller: (u64, u32), counter: Counter) {
    hook::count(counter);
    hook::trace(|| event(caller, destination(addr, read!(addr, __bindgen_anon_1.sk), family), counter));
}

#[inline(always)]
fn event((netns_cookie, pid): (u64, u32), destination: Endpoint, counter: Counter) -> RawEvent {
    RawEvent {
        process: sockets::caller(pid, netns_cookie, hook::now_ns()),
        source: Endpoint::NONE,
        destination,
        counter: counter as u32,
        side: HookSide::Connect as u32,
    }
}

/// Hooks that sit above their own cgroup also run for callers that are not in it.
#[inline(always)]
pub fn concerns(settings: &Settings) -> bool {
    match settings.placement() {
        Placement::Above(level) => ancestor(level) == settings.cgroup_id,
        Placement::Last | Placement::First => true,
    }
}

/// The address that the hook is told, as it stands.
#[inline(always)]
pub fn ip(addr: *mut bpf_sock_addr, family: Family) -> Ip {
    match family {
        Family::V4 => Ip::from_v4_word(read!(addr, user_ip4)),
        Family::V6 => Ip::from_words([
            read!(addr, user_ip6[0]),
            read!(addr, user_ip6[1]),
            read!(addr, user_ip6[2]),
            read!(addr, user_ip6[3]),
        ]),
    }
}

/// Where the application wants to go; an unspecified address is spelled out as what the kernel makes of it.
#[inline(always)]
pub fn destination(addr: *mut bpf_sock_addr, sk: *mut bpf_sock, family: Family) -> Endpoint {
    let port = u16::from_be(read!(addr, user_port) as u16);
    let ip = ip(addr, family);
    if !ip.is_unspecified() {
        return Endpoint::new(ip, port);
    }
    // Linux connects 0.0.0.0 and :: to the socket's own address, else to the loopback.
    let bound = read!(sk, src_ip4);
    let ip = if ip.is_v4() && bound != 0 { Ip::from_v4_word(bound) } else { ip.loopback() };
    Endpoint::new(ip, port)
}

/// With the time, when the verdict is to redirect.
#[inline(always)]
fn verdict(
    addr: *mut bpf_sock_addr,
    sk: *mut bpf_sock,
    family: Family,
    destination: Endpoint,
    (netns_cookie, chosen): (u64, bool),
    role: Option<Role>,
    settings: &Settings,
) -> (Verdict, u64) {
    let policy = hook::netns_entry(netns_cookie).outbound;
    let mut facts = Facts {
        protocol: read!(addr, protocol),
        role,
        destination,
        socket_is_v6: family == Family::V6,
        // SAFETY: no arguments; allowed in connect hooks since Linux 6.1.
        refused_by_other: unsafe { bpf_get_retval() } != 0,
        bound_to_device: read!(sk, bound_dev_if) != 0,
        redirecting: hook::switch(Switch::Redirecting) != 0,
        netns_enrolled: policy != 0,
        chosen,
        rules: hook::rules(destination.ip(), policy, netns_cookie, |entry| entry.outbound),
        settings,
        // What most connections that pass never need to know.
        exempt: false,
        wildcard_exempt: false,
        heartbeat_age_ns: 0,
    };
    let mut now_ns = 0;
    let verdict = decide_with(&mut facts, |facts| {
        let exempt = exempt(netns_cookie, &destination);
        (facts.exempt, facts.wildcard_exempt) = (exempt == EXACT, exempt == WILDCARD);
        now_ns = hook::now_ns();
        facts.heartbeat_age_ns = now_ns.saturating_sub(hook::switch(Switch::Heartbeat));
    });
    (verdict, now_ns)
}

/// False: no exempt listener has this port.
#[inline(always)]
fn may_be_exempt(port: u16) -> bool {
    WAYLAY_PORTS
        .get_ptr(port_place(port))
        // SAFETY: an array slot, valid while the program runs; volatile because others write it meanwhile.
        .is_none_or(|mark| unsafe { core::ptr::read_volatile(mark) } != 0)
}

const EXACT: u32 = 1;
const WILDCARD: u32 = 2;

/// Which entry of the exempt map speaks of a destination; 0: none. Behind the wildcard address stand loopback addresses. A
/// function of its own, so that the verifier does not go on by itself for each way through it.
#[inline(never)]
fn exempt(netns_cookie: u64, destination: &Endpoint) -> u32 {
    if !may_be_exempt(destination.port()) {
        return 0;
    }
    if is_exempt(netns_cookie, *destination) {
        return EXACT;
    }
    let wildcard = Endpoint::new(destination.ip().wildcard(), destination.port());
    if destination.ip().is_loopback() && is_exempt(netns_cookie, wildcard) { WILDCARD } else { 0 }
}

#[inline(always)]
fn is_exempt(netns_cookie: u64, listener: Endpoint) -> bool {
    WAYLAY_EXEMPT.get_ptr(ExemptKey::new(netns_cookie, listener)).is_some()
}

/// Is the caller one of the processes whose connections are taken? Who it is, is asked only where it matters.
#[inline(always)]
pub fn chosen(netns_cookie: u64) -> bool {
    if hook::switch(Switch::Choosing) == 0 {
        return true;
    }
    WAYLAY_PROCS.get(hook::switch(Switch::Processes) as u32).is_none_or(|table| {
        !table.asks_in(netns_cookie)
            || table.chooses(&sockets::caller(sockets::caller_pid(), netns_cookie, 0), ancestor)
    })
}

/// The caller's cgroup at a level of the hierarchy, whose root is level 0; 0 where it lies higher.
#[inline(always)]
fn ancestor(level: u32) -> u64 {
    // SAFETY: takes a number; allowed in connect hooks since Linux 5.7, which run in the caller's context.
    unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) }
}

/// Does what the verdict says and names the exit.
#[inline(always)]
fn carry_out(
    verdict: Verdict,
    addr: *mut bpf_sock_addr,
    sockets: Sockets,
    family: Family,
    destination: Endpoint,
    (netns_cookie, pid, remembered, now_ns): (u64, u32, bool, u64),
    settings: &Settings,
) -> Counter {
    match verdict {
        Verdict::Redirect { to, counter } => {
            let Way { to, dispatched, counter } =
                dispatch::way(&destination, (sockets, netns_cookie), family, (to, counter));
            let origin = Origin::new(sockets::caller(pid, netns_cookie, now_ns), destination);
            let fits = dispatched.target == 0 && !remembered && settings.has_cells();
            if !remember(addr, sockets, &origin, dispatched, fits) {
                log::failure(Counter::PassedNoStorage, &destination);
                return Counter::PassedNoStorage;
            }
            rewrite(addr, family, to);
            counter
        }
        Verdict::Pass(counter) => {
            // The same fd may have been redirected before: it must not keep the other connection's destination.
            if remembered && counter != Counter::PassedBypass {
                sockets.forget();
            }
            // Only there does `sockops` look for a slot, which a connect that failed before its SYN may have left.
            if destination == settings.redirect_v4 || destination == settings.redirect_v6 {
                clients::forget(socket_cookie(addr));
            }
            if matches!(counter, Counter::PassedUnconfigured | Counter::PassedNoListener) {
                log::failure(counter, &destination);
            }
            counter
        }
        Verdict::Refuse(counter) => {
            // SAFETY: sets this hook's own return value; allowed in connect hooks since Linux 6.1.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            counter
        }
    }
}

/// In a slot, if all there is to remember `fits` there and the socket is no subflow; else in socket storage. False: the
/// kernel had no memory.
#[inline(always)]
fn remember(addr: *mut bpf_sock_addr, sockets: Sockets, origin: &Origin, dispatched: Dispatched, fits: bool) -> bool {
    // LLVM would combine these questions with the pointer that one of them is about, which the verifier forbids.
    let fits = core::hint::black_box(fits) && !sockets.is_multipath();
    if core::hint::black_box(fits) && clients::remember(socket_cookie(addr), origin) {
        return true;
    }
    sockets.remember(&SocketState::client(origin.original_dst, origin.process, dispatched))
}

#[inline(always)]
pub fn socket_cookie(addr: *mut bpf_sock_addr) -> u64 {
    // SAFETY: the helper takes this hook's context.
    unsafe { bpf_get_socket_cookie(addr.cast()) }
}

#[inline(always)]
pub fn rewrite(addr: *mut bpf_sock_addr, family: Family, to: Endpoint) {
    match family {
        Family::V4 => write!((addr, user_ip4) = to.ip().v4_word()),
        Family::V6 => {
            let words = to.ip().words();
            write!((addr, user_ip6[0]) = words[0]);
            write!((addr, user_ip6[1]) = words[1]);
            write!((addr, user_ip6[2]) = words[2]);
            write!((addr, user_ip6[3]) = words[3]);
        }
    }
    write!((addr, user_port) = u32::from(to.port().to_be()));
}
