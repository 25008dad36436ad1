//! What the hooks of both objects share: context access, counting, switches, the policy, the trace.

use core::ptr;

use aya_ebpf::{btf_maps::lpm_trie::Key, helpers::generated::bpf_ktime_get_ns};
use waylay_common::{
    addr::Ip,
    counter::Counter,
    event::RawEvent,
    netns::NetnsEntry,
    policy::{PolicyKey, PortRules},
    settings::Switch,
};

use crate::shared_maps::{WAYLAY_COUNTERS, WAYLAY_EVENTS, WAYLAY_NETNS, WAYLAY_POLICY, WAYLAY_SWITCHES};

/// Reads one field of a hook's context.
///
/// LLVM merges neighbouring loads of the context, and the verifier knows only single fields: every access is volatile.
macro_rules! read {
    ($ctx:expr, $($field:tt)+) => {
        // SAFETY: the pointer is the context the kernel handed to this program, valid while it runs.
        unsafe { core::ptr::read_volatile(&raw const (*$ctx).$($field)+) }
    };
}

pub(crate) use read;

#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(slot) = WAYLAY_COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the slot belongs to this CPU and the program is not migrated; a hook interrupted by another hook on
        // the same CPU may lose one increment, which a counter can bear.
        unsafe { *slot += 1 };
    }
}

#[inline(always)]
pub fn switch(switch: Switch) -> u64 {
    WAYLAY_SWITCHES
        .get_ptr(switch as u32)
        // SAFETY: an array slot, valid while the program runs; volatile because the agent writes it meanwhile.
        .map_or(0, |slot| unsafe { ptr::read_volatile(slot) })
}

#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: no arguments, no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// Which policies hold in a network namespace.
#[inline(always)]
pub fn netns_entry(cookie: u64) -> NetnsEntry {
    let away = cookie ^ switch(Switch::Home);
    // One word that the verifier knows nothing of: it would go on with each of the two by itself.
    let bits = if away == 0 { switch(Switch::HomeEntry) } else { listed_entry(cookie).bits() };
    NetnsEntry::from_bits(core::hint::black_box(bits))
}

/// The same from the map, where every enrolled namespace is.
#[inline(always)]
fn listed_entry(cookie: u64) -> NetnsEntry {
    // SAFETY: copied at once.
    unsafe { WAYLAY_NETNS.get(cookie) }.copied().unwrap_or(NetnsEntry::NONE)
}

/// The node of `policy` for `ip`. The agent may swap the policy between the reads, so a miss is tried once more with the
/// policy that is in force by then; `direction` picks it out of the namespace's entry. Where there is none, nobody asks for
/// rules: most connections of a node with few enrolled pods are of that kind.
#[inline(always)]
pub fn rules<'a>(ip: Ip, policy: u32, cookie: u64, direction: fn(NetnsEntry) -> u32) -> Option<&'a PortRules> {
    if policy == 0 {
        return None;
    }
    rules_of(ip, policy).or_else(|| rules_of(ip, direction(listed_entry(cookie))))
}

#[inline(always)]
fn rules_of<'a>(ip: Ip, policy: u32) -> Option<&'a PortRules> {
    WAYLAY_POLICY.get(&Key::new(PolicyKey::LOOKUP_BITS, PolicyKey { policy, ip }))
}

/// Tells whoever traces; costs nothing while nobody does.
#[inline(always)]
pub fn trace(event: impl FnOnce() -> RawEvent) {
    if switch(Switch::Tracing) != 0 && WAYLAY_EVENTS.output(event(), 0).is_err() {
        count(Counter::EventsLost);
    }
}
