//! What the kernel programs and the agent both see, defined once.
//!
//! Before it: nothing. After it: `ebpf` (writes these layouts into maps, asks [`policy::decide`]) and the agent's
//! `kernel` module (reads them). This crate does no I/O, knows no program type and no map handle.
//!
//! Every type that crosses the border is `repr(C)` without padding, and its size is asserted at compile time.
#![cfg_attr(not(any(test, feature = "user")), no_std)]

pub mod addr;
#[cfg(feature = "user")]
pub mod bpf;
pub mod cells;
pub mod counter;
pub mod dispatch;
pub mod dns;
pub mod event;
pub mod flow;
pub mod inbound;
pub mod limits;
#[cfg(feature = "user")]
pub mod mapped;
#[cfg(feature = "user")]
pub mod memory;
pub mod netns;
pub mod policy;
pub mod processes;
pub mod settings;
#[cfg(feature = "user")]
pub mod user;

/// The layout of everything in this crate. Readers compare it with [`settings::Settings::layout`] before they decode a
/// map; it changes whenever a shared type or the meaning of one of its fields changes.
pub const LAYOUT: u32 = 5;
