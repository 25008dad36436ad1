//! Cells of handshakes in flight, and of connections that the agent has not accepted yet.
//!
//! Before it: `sockops` has the tuple of a connection whose client has a slot. After it: the agent, which has the cells in
//! its own memory; or, for a proxy that knows nothing of waylay, `sockopt`. A connection that finds its cell taken goes
//! through the hash of handshakes instead, and into the storage of the accepted socket.
//!
//! | stage | who brings it there | who takes it away |
//! |---|---|---|
//! | claimed | the client, before its SYN | itself |
//! | published | the client, before its SYN | the client, when its socket is closed |
//! | established | the accepted socket | the agent; or the hooks, into socket storage: when somebody asks for the original destination, and when the accepted socket is closed first |

use core::ptr;

use aya_ebpf::{bindings::BPF_F_MMAPABLE, btf_maps::Array, macros::btf_map};
use waylay_common::{
    cells::{HANDOVER_CELLS, HandoverCell, Origin, STALE_NS, Stage, Word},
    flow::FlowKey,
};

/// Connections on their way to the agent, by their addresses. Written by `sockops`; emptied by the agent. Taken: the hash.
#[btf_map]
pub static WAYLAY_CELLS: Array<HandoverCell, { HANDOVER_CELLS as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();

/// What stands in a word now. What is read after it may be older: only [`swap`] says whether it was the word's.
///
/// # Safety
/// `word` points to an aligned word of a map.
#[inline(always)]
pub unsafe fn peek(word: *mut u64) -> Word {
    // SAFETY: as the caller promises; volatile because others write it meanwhile. (LLVM has no atomic load for BPF.)
    Word(unsafe { ptr::read_volatile(word) })
}

/// As [`peek`]; what is read after it is not older.
///
/// # Safety
/// As [`peek`].
#[inline(always)]
unsafe fn acquire(word: *mut u64) -> Word {
    // SAFETY: as the caller promises. To put nothing in the place of nothing changes nothing.
    Word(unsafe { compare_exchange(word, 0, 0) }.0)
}

/// Puts `to` in the place of `from`, with all that was written before it. False: another word is there.
///
/// # Safety
/// As [`peek`].
#[inline(always)]
pub unsafe fn swap(word: *mut u64, from: Word, to: Word) -> bool {
    // SAFETY: as the caller promises.
    unsafe { compare_exchange(word, from.0, to.0) }.1
}

/// The core library does not offer it for BPF, though every kernel since Linux 5.12 has it.
#[cfg(target_arch = "bpf")]
#[inline(always)]
unsafe fn compare_exchange(word: *mut u64, from: u64, to: u64) -> (u64, bool) {
    use core::intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg};
    // SAFETY: as the callers promise.
    unsafe { atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(word, from, to) }
}

/// On the host, where this crate is only checked.
#[cfg(not(target_arch = "bpf"))]
unsafe fn compare_exchange(word: *mut u64, from: u64, to: u64) -> (u64, bool) {
    use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
    // SAFETY: as the callers promise.
    match unsafe { AtomicU64::from_ptr(word) }.compare_exchange(from, to, SeqCst, SeqCst) {
        Ok(found) => (found, true),
        Err(found) => (found, false),
    }
}

/// The same pointer. LLVM would compute with it before it is known not to be null, which the verifier forbids.
#[inline(always)]
pub fn settled<T>(pointer: *mut T) -> *mut T {
    core::hint::black_box(pointer)
}

#[inline(always)]
fn cell(key: &FlowKey) -> Option<*mut HandoverCell> {
    WAYLAY_CELLS.get_ptr_mut(HandoverCell::index(key)).map(settled)
}

/// Puts a connection into its cell. False: another one is there.
#[inline(always)]
pub fn publish(key: &FlowKey, origin: &Origin) -> bool {
    let Some(cell) = cell(key) else { return false };
    let now = origin.process.connect_time_ns;
    let claimed = Word::new(now, Stage::Claimed);
    // SAFETY: an array slot, valid while the program runs; the word says who writes the rest.
    unsafe {
        let found = peek(&raw mut (*cell).word);
        if found != Word::FREE && now.saturating_sub(found.owner()) <= STALE_NS {
            return false;
        }
        if !swap(&raw mut (*cell).word, found, claimed) {
            return false;
        }
        (*cell).key = *key;
        (*cell).origin = *origin;
        swap(&raw mut (*cell).word, claimed, claimed.at(Stage::Published))
    }
}

/// The cell of this connection and its word, when it is at `stage`.
#[inline(always)]
fn find(key: &FlowKey, stage: Stage) -> Option<(*mut HandoverCell, Word)> {
    let cell = cell(key)?;
    // SAFETY: as above. The key may be one that is being written: then the word is another one when it is swapped.
    unsafe {
        let found = acquire(&raw mut (*cell).word);
        (found.is(stage) && (*cell).key == *key).then_some((cell, found))
    }
}

/// The accepted socket is there: from here on the connection is its own. False: it is in no cell.
#[inline(always)]
pub fn establish(key: &FlowKey) -> bool {
    let Some((cell, found)) = find(key, Stage::Published) else { return false };
    // SAFETY: as above.
    unsafe { swap(&raw mut (*cell).word, found, found.at(Stage::Established)) }
}

/// The client is closed: takes its connection back, unless the accepted socket has it by now.
#[inline(always)]
pub fn take_back(key: &FlowKey, origin: &Origin) -> bool {
    let Some(cell) = cell(key) else { return false };
    let published = Word::new(origin.process.connect_time_ns, Stage::Published);
    // SAFETY: as above. Two connects of one moment have two sockets, and so two keys, of which the cell holds one.
    unsafe { (*cell).key == *key && swap(&raw mut (*cell).word, published, Word::FREE) }
}

/// Moves a connection that is established elsewhere by `keep`, and empties its cell after that: whoever does not find it
/// here any more finds it there. `None`: it is in no cell. `Some(false)`: it was taken meanwhile, and what was kept may be
/// anything.
#[inline(always)]
pub fn move_out(key: &FlowKey, keep: impl FnOnce(&Origin)) -> Option<bool> {
    let (cell, found) = find(key, Stage::Established)?;
    // SAFETY: as above.
    unsafe {
        keep(&(*cell).origin);
        Some(swap(&raw mut (*cell).word, found, Word::FREE))
    }
}
