//! Questions to DNS resolvers: to the agent, each resolver by an address of its own, and the answers back under the
//! resolver's address.
//!
//! Before it: connect(2) and sendto(2) of a UDP socket in the cgroup. After it: the agent, which sees at which address a
//! question arrives and answers from there; then recvfrom(2) and getpeername(2), where that address becomes the
//! resolver's again. Nothing is kept on sockets, so one socket may ask many resolvers. Which address is whose is not this
//! file's business but [`waylay_common::dns`]'s.
//!
//! These programs are attached only where the agent answers questions. The kernel sends what an IPv6 socket sends to an
//! IPv4-mapped address through the IPv4 hook, and what it receives from there through the IPv6 one.

use aya_ebpf::{
    bindings::{BPF_NOEXIST, bpf_sock_addr},
    btf_maps::HashMap,
    helpers::generated::bpf_get_netns_cookie,
    macros::btf_map,
    programs::SockAddrContext,
};
use waylay_common::{
    addr::{Endpoint, Ip},
    counter::Counter,
    dns::{self, DnsPlace, Facts, Slot, SlotKey},
    limits,
    settings::{Settings, Switch},
};

use crate::{
    connect::{self, Family},
    hook::{self, read},
    maps::WAYLAY_SETTINGS,
    sockets::{self, PROCEED},
};

/// Network namespaces whose questions the agent answers, and its sockets there; written by the agent.
#[btf_map]
pub static WAYLAY_DNS: HashMap<u64, DnsPlace, { limits::NETNS_ENTRIES as usize }> = HashMap::new();

/// Whose each slot is. Written here at the first question to a resolver, and never changed while the agent answers in that
/// namespace: somebody may wait for an answer. Full: the question goes to its resolver, and is counted.
#[btf_map]
pub static WAYLAY_RESOLVER: HashMap<SlotKey, Ip, { limits::RESOLVER_ENTRIES as usize }> = HashMap::new();

/// connect and sendmsg: whatever is no question passes uncounted, being none of this hook's business.
#[inline(always)]
pub fn ask(ctx: &SockAddrContext, family: Family) -> i32 {
    let addr = ctx.sock_addr;
    if dns::is_question(read!(addr, protocol), u16::from_be(read!(addr, user_port) as u16))
        && let Some(settings) = WAYLAY_SETTINGS.get(0).filter(|settings| connect::concerns(settings))
    {
        hook::count(redirect(addr, family, settings));
    }
    PROCEED
}

#[inline(always)]
fn redirect(addr: *mut bpf_sock_addr, family: Family, settings: &Settings) -> Counter {
    let sk = read!(addr, __bindgen_anon_1.sk);
    let resolver = connect::destination(addr, sk, family).ip();
    let netns_cookie = netns_cookie(addr);
    let place = place(netns_cookie);
    let policy = hook::netns_entry(netns_cookie).outbound;
    let facts = Facts {
        role: sockets::socket_state(sk).and_then(|state| state.role()),
        resolver,
        bound_to_device: read!(sk, bound_dev_if) != 0,
        redirecting: hook::switch(Switch::Redirecting) != 0,
        netns_enrolled: place.answers_for(resolver),
        chosen: connect::chosen(netns_cookie),
        excluded: hook::rules(resolver, policy, netns_cookie, |entry| entry.outbound)
            .is_some_and(|rules| rules.excludes(dns::PORT)),
        heartbeat_age_ns: hook::now_ns().saturating_sub(hook::switch(Switch::Heartbeat)),
        heartbeat_loss_ns: settings.heartbeat_loss_ns,
    };
    if let Some(reason) = dns::reason_to_pass(&facts) {
        return reason;
    }
    let Some(slot) = slot(netns_cookie, resolver) else {
        return Counter::DnsPassedFull;
    };
    connect::rewrite(addr, family, slot.address(place.port()));
    if resolver.is_v4() { Counter::DnsRedirectedV4 } else { Counter::DnsRedirectedV6 }
}

/// The slot of `resolver`: the one that it has, else the first free one.
#[inline(always)]
fn slot(netns_cookie: u64, resolver: Ip) -> Option<Slot> {
    for step in 0..dns::PROBES {
        let slot = Slot::of_resolver(resolver, step);
        let key = SlotKey::new(netns_cookie, slot);
        // Two CPUs may want the slot at once: whoever comes second finds it taken, perhaps by the same resolver.
        if owner(key).is_none()
            && WAYLAY_RESOLVER.insert(key, resolver, u64::from(BPF_NOEXIST)).is_err()
            && owner(key).is_none()
        {
            return None;
        }
        if owner(key) == Some(resolver) {
            return Some(slot);
        }
    }
    None
}

#[inline(always)]
fn owner(key: SlotKey) -> Option<Ip> {
    // SAFETY: copied at once, and an entry does not change while it is there.
    unsafe { WAYLAY_RESOLVER.get(key) }.copied()
}

/// recvmsg and getpeername: the address of a slot becomes that of its resolver.
#[inline(always)]
pub fn answer(ctx: &SockAddrContext, family: Family) -> i32 {
    let addr = ctx.sock_addr;
    if let Some(resolver) = asked(addr, family) {
        connect::rewrite(addr, family, resolver);
        hook::count(Counter::DnsRestored);
    }
    PROCEED
}

#[inline(always)]
fn asked(addr: *mut bpf_sock_addr, family: Family) -> Option<Endpoint> {
    let ip = connect::ip(addr, family);
    // Nearly every datagram leaves here.
    if !Slot::is_possible(ip) || !dns::is_question(read!(addr, protocol), dns::PORT) {
        return None;
    }
    let netns_cookie = netns_cookie(addr);
    let from = Endpoint::new(ip, u16::from_be(read!(addr, user_port) as u16));
    let slot = Slot::at(from, place(netns_cookie).port())?;
    owner(SlotKey::new(netns_cookie, slot)).map(|resolver| Endpoint::new(resolver, dns::PORT))
}

/// Where the agent answers in this namespace. Not an `Option`: LLVM combines what is behind a `None` with other flags, which
/// the verifier does not allow for what is not initialised.
#[inline(always)]
fn place(netns_cookie: u64) -> DnsPlace {
    // SAFETY: copied at once.
    unsafe { WAYLAY_DNS.get(netns_cookie) }.copied().unwrap_or(DnsPlace::NONE)
}

#[inline(always)]
fn netns_cookie(addr: *mut bpf_sock_addr) -> u64 {
    // SAFETY: the helper takes this hook's context.
    unsafe { bpf_get_netns_cookie(addr.cast()) }
}
