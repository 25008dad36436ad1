//! The inbound hook of one network namespace: an object of its own, because it is loaded once for each namespace.
//!
//! | program | runs | does |
//! |---|---|---|
//! | `waylay_inbound` | the kernel looks for the listening socket of what has arrived | decide, and give it to the agent's |
//!
//! An sk_lookup program is not told its namespace, so each load has a map of its own that names it; all other maps are
//! those of the main object.
#![no_std]
#![no_main]

#[path = "../hook.rs"]
mod hook;
mod lookup;
#[path = "../object.rs"]
mod object;
#[path = "../shared_maps.rs"]
mod shared_maps;

use aya_ebpf::{btf_maps::Array, macros::btf_map, macros::sk_lookup, programs::SkLookupContext};

/// The cookie of the network namespace; written by the agent before the program is attached.
#[btf_map]
pub static WAYLAY_PLACE: Array<u64, 1> = Array::new();

#[sk_lookup]
pub fn waylay_inbound(ctx: SkLookupContext) -> u32 {
    lookup::run(&ctx)
}
