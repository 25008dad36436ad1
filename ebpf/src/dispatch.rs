//! Dispatch in the kernel, on the connecting side: which endpoint a connection goes to without meeting the agent.
//!
//! Before it: `connect` has decided that the connection is taken. After it: `connect` remembers the choice on the socket and
//! writes the endpoint into the connect; `dispatched` tells the agent of it. What is in the tables is the agent's business,
//! and how they are read is [`waylay_common::dispatch`]'s. Where there is nothing to choose, the agent serves the connection.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, PerCpuArray},
    helpers::generated::{bpf_get_prandom_u32, bpf_get_smp_processor_id},
    macros::btf_map,
};
use waylay_common::{
    addr::Endpoint,
    counter::Counter,
    dispatch::{Choice, Dispatched, Draw, Slot, client_hash},
    limits,
    settings::{Switch, dispatching},
};

use crate::{connect::Family, hook, sockets::Sockets};

/// Which choice each destination has: an address, or the wildcard address for all others with that port. A destination
/// whose listener is the agent's stands here only beside a wildcard that is not. Written by the agent, which never gives a
/// number to another destination while a hook may still have it. Full: the agent serves the listener.
#[btf_map]
pub static WAYLAY_DISPATCH: HashMap<
    Endpoint,
    u32,
    { limits::DISPATCH_ENTRIES as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

/// The choices, a [`Choice::word`] each; written by the agent in one store.
#[btf_map]
pub static WAYLAY_CHOICES: Array<u64, { limits::DISPATCH_ENTRIES as usize }> = Array::new();

/// The slots of all choices, in slices. Written by the agent, a slice before a choice names it.
#[btf_map]
pub static WAYLAY_SLOTS: Array<Slot, { limits::DISPATCH_SLOTS as usize }> = Array::new();

/// How many connections each choice had, per CPU; only this object knows it.
#[btf_map]
pub static WAYLAY_TURNS: PerCpuArray<u32, { limits::DISPATCH_ENTRIES as usize }> = PerCpuArray::new();

/// Where a connection goes that would be redirected to `agent`.
pub struct Way {
    pub to: Endpoint,
    pub dispatched: Dispatched,
    pub counter: Counter,
}

/// The way of a connection to `destination`; to `agent`, counted as `redirected`, unless the kernel dispatches it.
#[inline(always)]
pub fn way(
    destination: &Endpoint,
    (sockets, netns_cookie): (Sockets, u64),
    family: Family,
    (agent, redirected): (Endpoint, Counter),
) -> Way {
    let kinds = hook::switch(Switch::Dispatching);
    if kinds != 0
        && let Some(slot) = WAYLAY_SLOTS.get(slot(destination, kinds, client(kinds, sockets, netns_cookie, family)))
        && slot.target != 0
        && let Some((to, counter)) = endpoint(*slot, *destination, family)
    {
        if !sockets.is_multipath() {
            return Way { to, dispatched: Dispatched::to(slot.target), counter };
        }
        // Its other subflows would be connections of their own.
        hook::count(Counter::DispatchMultipath);
    }
    Way { to: agent, dispatched: Dispatched::NOT, counter: redirected }
}

/// A socket that dialled one family is left to it: whether it may speak the other is not to be seen here.
#[inline(always)]
fn endpoint(slot: Slot, destination: Endpoint, family: Family) -> Option<(Endpoint, Counter)> {
    if slot.endpoint.is_none() {
        return Some((destination, Counter::DispatchedOriginalDst));
    }
    if slot.endpoint.ip().is_v4() != destination.ip().is_v4() {
        hook::count(Counter::DispatchOtherFamily);
        return None;
    }
    let counter = match (destination.ip().is_v4(), family) {
        (false, _) => Counter::DispatchedV6,
        (true, Family::V4) => Counter::DispatchedV4,
        (true, Family::V6) => Counter::DispatchedV4Mapped,
    };
    Some((slot.endpoint, counter))
}

/// What a client is known by, where it is asked for.
#[inline(always)]
fn client(kinds: u64, sockets: Sockets, netns_cookie: u64, family: Family) -> u32 {
    if kinds & dispatching::HASHED == 0 {
        return 0;
    }
    client_hash(sockets.bound(family), netns_cookie)
}

/// The slot that is drawn for `destination` and `client`, with the kinds of rows that there are ([`dispatching`]); beyond the
/// last one when the agent serves it. A function of its own, so that the verifier does not walk it for each way to get here.
#[inline(never)]
fn slot(destination: &Endpoint, kinds: u64, client: u32) -> u32 {
    let mut entry = None;
    if kinds & dispatching::ADDRESSES != 0 {
        // SAFETY: copied at once.
        entry = unsafe { WAYLAY_DISPATCH.get(destination) }.copied();
    }
    if entry.is_none() && kinds & dispatching::WILDCARDS != 0 {
        let wildcard = Endpoint::new(destination.ip().wildcard(), destination.port());
        // SAFETY: as above.
        entry = unsafe { WAYLAY_DISPATCH.get(wildcard) }.copied();
    }
    let Some(entry) = entry else { return u32::MAX };
    // SAFETY: an array slot, valid while the program runs; volatile because the agent writes it meanwhile.
    let word = WAYLAY_CHOICES.get_ptr(entry).map_or(0, |word| unsafe { core::ptr::read_volatile(word) });
    let choice = Choice::from_word(word);
    let number = match choice.draw {
        Draw::Agent => return u32::MAX,
        Draw::InTurn => turn(entry),
        Draw::Hashed => client,
        // SAFETY: no arguments, no preconditions.
        Draw::Random => unsafe { bpf_get_prandom_u32() },
    };
    let slot = choice.slot(number).unwrap_or(u32::MAX);
    if WAYLAY_SLOTS.get(slot).is_none_or(|slot| slot.target == 0) {
        hook::count(Counter::DispatchNoEndpoint);
    }
    slot
}

/// The number of this connection among those of this CPU. The CPUs begin at different places.
#[inline(always)]
fn turn(entry: u32) -> u32 {
    let Some(turns) = WAYLAY_TURNS.get_ptr_mut(entry) else { return 0 };
    // SAFETY: the slot belongs to this CPU; a hook that is interrupted by another one may give a turn twice.
    unsafe {
        let turn = *turns;
        *turns = turn.wrapping_add(1);
        turn.wrapping_add(bpf_get_smp_processor_id())
    }
}
