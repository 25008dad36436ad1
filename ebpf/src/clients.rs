//! Slots of clients: what is remembered of an application's socket whose connection goes to the agent.
//!
//! Before it: `connect` has decided that the connection is redirected. After it: `sockops` publishes the handover when the
//! SYN leaves, `peername` answers from here, and `sockops` empties the slot when the connection has ended. A socket that
//! finds its slot taken has its state in socket storage instead ([`crate::sockets`]), as those have that need more.

use core::ptr;

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use waylay_common::cells::{CLIENT_SLOTS, ClientSlot, Origin, STALE_NS, Stage, Word};

use crate::cells::{peek, settled, swap};

/// Clients by the cookie of their socket. Written by the connect hooks and `sockops`; read by the getpeername hooks. Emptied
/// when the connection has ended. A slot whose connect failed before its SYN stays until its own socket connects again,
/// or another one wants it after [`STALE_NS`]. Taken: socket storage.
#[btf_map]
pub static WAYLAY_CLIENTS: Array<ClientSlot, { CLIENT_SLOTS as usize }> = Array::new();

#[inline(always)]
fn slot(cookie: u64) -> Option<*mut ClientSlot> {
    WAYLAY_CLIENTS.get_ptr_mut(ClientSlot::index(cookie)).map(settled)
}

#[inline(always)]
fn word(slot: *mut ClientSlot) -> Word {
    // SAFETY: an array slot, valid while the program runs.
    unsafe { peek(&raw mut (*slot).word) }
}

/// Keeps `origin` for the socket with this cookie. False: another one has the slot.
#[inline(always)]
pub fn remember(cookie: u64, origin: &Origin) -> bool {
    let Some(slot) = slot(cookie) else { return false };
    let found = word(slot);
    if found != Word::FREE && found.owner() != cookie && !is_stale(slot, found, origin) {
        return false;
    }
    // SAFETY: an array slot, valid while the program runs; written by whoever has claimed it.
    unsafe {
        if !swap(&raw mut (*slot).word, found, Word::new(cookie, Stage::Claimed)) {
            return false;
        }
        (*slot).origin = *origin;
    }
    true
}

/// A connect that has not come as far as its SYN for so long has failed.
#[inline(always)]
fn is_stale(slot: *mut ClientSlot, found: Word, new: &Origin) -> bool {
    // SAFETY: as above; should somebody write it meanwhile, the word is another one by then.
    let since = unsafe { ptr::read_volatile(&raw const (*slot).origin.process.connect_time_ns) };
    found.is(Stage::Claimed) && new.process.connect_time_ns.saturating_sub(since) > STALE_NS
}

/// The SYN of this socket is about to leave. `None`: it has no slot.
#[inline(always)]
pub fn depart<'a>(cookie: u64) -> Option<&'a Origin> {
    let slot = slot(cookie)?;
    let claimed = Word::new(cookie, Stage::Claimed);
    // SAFETY: as above; the origin is this socket's from its claim to its end.
    unsafe { swap(&raw mut (*slot).word, claimed, claimed.at(Stage::Published)).then(|| &(*slot).origin) }
}

/// The connection of this socket, which has departed, is in no cell but in the hash of handshakes.
#[inline(always)]
pub fn is_hashed(cookie: u64) {
    let Some(slot) = slot(cookie) else { return };
    let published = Word::new(cookie, Stage::Published);
    // SAFETY: as above.
    unsafe { swap(&raw mut (*slot).word, published, published.at(Stage::Established)) };
}

/// What the socket with this cookie remembers, when its SYN has left, and whether its connection is in the hash.
#[inline(always)]
pub fn published<'a>(cookie: u64) -> Option<(&'a Origin, bool)> {
    let slot = slot(cookie)?;
    let found = word(slot);
    // SAFETY: as above.
    found.has_departed(cookie).then(|| (unsafe { &(*slot).origin }, found.is(Stage::Established)))
}

/// The socket with this cookie is closed, or goes elsewhere: its slot is free.
#[inline(always)]
pub fn forget(cookie: u64) {
    let Some(slot) = slot(cookie) else { return };
    let found = word(slot);
    if found.owner() == cookie {
        // SAFETY: as above. It fails when another socket has waited for too long.
        unsafe { swap(&raw mut (*slot).word, found, Word::FREE) };
    }
}
