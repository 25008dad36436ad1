//! The cells of handshakes ([`crate::cells`]) in the agent's own memory: what a connection brings is taken out of there
//! without a system call.
//!
//! Used by the agent's `kernel` module only. The other side is `ebpf/src/cells.rs`.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use crate::{
    cells::{HANDOVER_CELLS, HandoverCell, Origin, Stage, Word},
    flow::FlowKey,
};

const BYTES: usize = HANDOVER_CELLS as usize * size_of::<HandoverCell>();
/// A word changes under the reader only when the connection is moved elsewhere meanwhile.
const TRIES: usize = 3;

/// The mapping goes with it.
#[derive(Debug)]
pub struct MappedCells(ptr::NonNull<HandoverCell>);

// SAFETY: what it points to belongs to nobody in this process, stays mapped as long as it lives, and is only accessed
// by atomic operations and by reads that are thrown away when somebody has written meanwhile.
unsafe impl Send for MappedCells {}
// SAFETY: as above.
unsafe impl Sync for MappedCells {}

impl MappedCells {
    /// `map`: the array of cells of this layout, made with `BPF_F_MMAPABLE`.
    ///
    /// # Errors
    /// That of mmap(2): `EINVAL` for a map that is smaller or cannot be mapped.
    pub fn new(map: BorrowedFd<'_>) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place that the kernel chooses.
        let address = unsafe { libc::mmap(ptr::null_mut(), BYTES, access, libc::MAP_SHARED, map.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        ptr::NonNull::new(address.cast()).map(Self).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
    }

    /// What this connection, whose accepted socket is there, has brought; its cell is free after that. `None`: it is in no
    /// cell.
    #[must_use]
    pub fn take(&self, key: &FlowKey) -> Option<Origin> {
        self.read(key, |word, found| {
            word.compare_exchange(found.0, Word::FREE.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })
    }

    /// The same, but it stays there.
    #[must_use]
    pub fn look(&self, key: &FlowKey) -> Option<Origin> {
        self.read(key, |word, found| word.load(Ordering::Relaxed) == found.0)
    }

    /// `confirm` tells whether the word is still the one that was found.
    fn read(&self, key: &FlowKey, confirm: impl Fn(&AtomicU64, Word) -> bool) -> Option<Origin> {
        let index = HandoverCell::index(key) as usize % HANDOVER_CELLS as usize;
        // SAFETY: within the mapping, which has this many cells and is aligned to a page.
        let cell = unsafe { self.0.add(index) }.as_ptr();
        // SAFETY: an aligned word of the mapping, which everybody accesses atomically.
        let word = unsafe { AtomicU64::from_ptr(&raw mut (*cell).word) };
        for _ in 0..TRIES {
            let found = Word(word.load(Ordering::Acquire));
            if !found.is(Stage::Established) {
                return None;
            }
            // SAFETY: every bit pattern is a value; should somebody write meanwhile, the word is another one afterwards.
            let (theirs, origin) =
                unsafe { (ptr::read_volatile(&raw const (*cell).key), ptr::read_volatile(&raw const (*cell).origin)) };
            if theirs != *key {
                return None;
            }
            fence(Ordering::Acquire);
            if confirm(word, found) {
                return Some(origin);
            }
        }
        None
    }
}

impl Drop for MappedCells {
    fn drop(&mut self) {
        // SAFETY: the mapping that was made for it, which nobody else knows.
        unsafe { libc::munmap(self.0.as_ptr().cast(), BYTES) };
    }
}
