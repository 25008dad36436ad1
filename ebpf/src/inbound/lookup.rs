//! sk_lookup: is what arrives ours? Then the agent's listening socket is the one that was meant.
//!
//! Before it: a SYN, or any other packet that belongs to no connection the kernel knows. After it: the agent accepts; the
//! socket's own address is the one that was dialled, its peer is the client. What is taken is not this file's business but
//! [`waylay_common::inbound`]'s. Whatever goes wrong, the kernel's own lookup takes over.

use aya_ebpf::{
    bindings::{bpf_sk_lookup, sk_action::SK_PASS},
    programs::SkLookupContext,
};
use waylay_common::{
    addr::{Endpoint, Ip},
    counter::Counter,
    event::{HookSide, RawEvent},
    flow::{FlowKey, ProcessStamp},
    inbound::{InboundFacts, InboundVerdict, decide_inbound},
    netns::ListenerKey,
    policy::PortRules,
    settings::{ExemptKey, Switch},
};

use crate::{
    WAYLAY_PLACE,
    hook::{self, read},
    shared_maps::{WAYLAY_EXEMPT, WAYLAY_FLOWS, WAYLAY_LISTEN, WAYLAY_SETTINGS},
};

const IPPROTO_TCP: u32 = 6;
const AF_INET: u32 = 2;
const EEXIST: i32 = 17;

/// The whole hook: facts, verdict, deed, count. Datagrams are not even counted: each of them comes here.
#[inline(always)]
pub fn run(ctx: &SkLookupContext) -> u32 {
    if read!(ctx.lookup, protocol) == IPPROTO_TCP {
        let cookie = WAYLAY_PLACE.get(0).copied().unwrap_or(0);
        let ends = Ends::of(ctx.lookup);
        let counter = match verdict(cookie, &ends) {
            InboundVerdict::Take => give_to_agent(ctx, cookie, &ends),
            InboundVerdict::Pass(counter) => counter,
        };
        hook::count(counter);
        hook::trace(|| RawEvent {
            process: ProcessStamp { netns_cookie: cookie, connect_time_ns: hook::now_ns(), ..ProcessStamp::NONE },
            source: ends.client,
            destination: ends.local,
            counter: counter as u32,
            side: HookSide::Inbound as u32,
        });
    }
    SK_PASS
}

/// What has arrived, and what the maps say of it.
struct Arrival<'a> {
    cookie: u64,
    ends: &'a Ends,
    policy: u32,
    heartbeat_loss_ns: u64,
}

#[inline(always)]
fn verdict(cookie: u64, ends: &Ends) -> InboundVerdict {
    let Some(settings) = WAYLAY_SETTINGS.get(0) else {
        return InboundVerdict::Pass(Counter::InboundPassedUnconfigured);
    };
    let policy = hook::netns_entry(cookie).inbound;
    decide_inbound(&Arrival { cookie, ends, policy, heartbeat_loss_ns: settings.heartbeat_loss_ns })
}

impl InboundFacts for Arrival<'_> {
    #[inline(always)]
    fn is_enrolled(&self) -> bool {
        self.policy != 0
    }

    #[inline(always)]
    fn is_own_flow(&self) -> bool {
        WAYLAY_FLOWS.get_ptr(FlowKey::new(self.cookie, self.ends.client, self.ends.local)).is_some()
    }

    #[inline(always)]
    fn is_redirecting(&self) -> bool {
        hook::switch(Switch::Redirecting) != 0
    }

    #[inline(always)]
    fn local(&self) -> Endpoint {
        self.ends.local
    }

    #[inline(always)]
    fn is_exempt(&self) -> bool {
        let local = self.ends.local;
        let wildcard = Endpoint::new(local.ip().wildcard(), local.port());
        [local, wildcard].iter().any(|&address| WAYLAY_EXEMPT.get_ptr(ExemptKey::new(self.cookie, address)).is_some())
    }

    #[inline(always)]
    fn is_agent_lost(&self) -> bool {
        hook::now_ns().saturating_sub(hook::switch(Switch::Heartbeat)) > self.heartbeat_loss_ns
    }

    #[inline(always)]
    fn rules(&self) -> Option<&PortRules> {
        hook::rules(self.ends.client.ip(), self.policy, self.cookie, |entry| entry.inbound)
    }
}

/// Names the exit. The kernel spreads connections over all sockets of the listener's `SO_REUSEPORT` group.
#[inline(always)]
fn give_to_agent(ctx: &SkLookupContext, cookie: u64, ends: &Ends) -> Counter {
    let is_v4 = ends.local.ip().is_v4();
    match WAYLAY_LISTEN.redirect_sk_lookup(ctx, ListenerKey::new(cookie, is_v4), 0) {
        Ok(()) if is_v4 => Counter::InboundRedirectedV4,
        Ok(()) => Counter::InboundRedirectedV6,
        // A program that ran before has chosen a socket.
        Err(error) if error == -EEXIST => Counter::InboundPassedTakenByOther,
        Err(_) => Counter::InboundPassedNoListener,
    }
}

/// Who comes, and where to.
struct Ends {
    client: Endpoint,
    local: Endpoint,
}

impl Ends {
    /// Reads the addresses of both families and then chooses: LLVM would merge reads of two branches into one of a pointer
    /// that the branches have set, and the verifier knows only fixed places of the context.
    #[inline(always)]
    fn of(lookup: *mut bpf_sk_lookup) -> Self {
        let v4 = (Ip::from_v4_word(read!(lookup, remote_ip4)), Ip::from_v4_word(read!(lookup, local_ip4)));
        let client = Ip::from_words([
            read!(lookup, remote_ip6[0]),
            read!(lookup, remote_ip6[1]),
            read!(lookup, remote_ip6[2]),
            read!(lookup, remote_ip6[3]),
        ]);
        let local = Ip::from_words([
            read!(lookup, local_ip6[0]),
            read!(lookup, local_ip6[1]),
            read!(lookup, local_ip6[2]),
            read!(lookup, local_ip6[3]),
        ]);
        let client_port = u16::from_be(read!(lookup, remote_port));
        let local_port = read!(lookup, local_port) as u16;
        let (client, local) = if read!(lookup, family) == AF_INET { v4 } else { (client, local) };
        Self { client: Endpoint::new(client, client_port), local: Endpoint::new(local, local_port) }
    }
}
