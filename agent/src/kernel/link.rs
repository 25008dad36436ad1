//! One attached program: it goes with this process, and before anything else of it.
//!
//! Before it: `attach` and `inbound` have a loaded program and know where it belongs. After it: nothing.
//!
//! When a process is killed, the kernel closes its descriptors from the highest to the lowest (exit queues the files in
//! ascending order and takes the newest first). What is accepted while the agent runs has high numbers: were the links
//! below, clients would see their connections end, connect again, still be redirected to a listening socket that is about
//! to go, and be reset. So links get the highest numbers: no hook redirects any more when the first listening socket or
//! connection is closed. Closing a link detaches its program before the next descriptor's turn.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
};

use rustix::{
    io::fcntl_dupfd_cloexec,
    process::{Resource, getrlimit},
};
use waylay_common::bpf::{self, CgroupHook, Order};

/// Links lie below this number. The kernel's table of a process reaches to the highest descriptor, with 8 bytes for each:
/// half a mebibyte here. An agent with more files open than this loses some connections more when it is killed.
const BELOW: u64 = 65_536;
/// The share of the numbers that is kept for links: room for those of 4,096 namespaces.
const SHARE: u64 = 16;

/// Dropping it detaches.
pub(super) struct Link(OwnedFd);

impl Link {
    pub(super) fn to_cgroup(
        program: BorrowedFd<'_>,
        cgroup: BorrowedFd<'_>,
        hook: CgroupHook,
        order: Order,
    ) -> io::Result<Self> {
        bpf::attach_cgroup(program, cgroup, hook, order).map(Self::new)
    }

    /// Goes with the namespace as well.
    pub(super) fn to_netns(program: BorrowedFd<'_>, netns: BorrowedFd<'_>) -> io::Result<Self> {
        bpf::attach_netns(program, netns).map(Self::new)
    }

    /// Of links, the newest goes first.
    fn new(link: OwnedFd) -> Self {
        let lowest = lowest(getrlimit(Resource::Nofile).current);
        // Without a free number up there it works as well; only its end is less orderly.
        Self(fcntl_dupfd_cloexec(&link, lowest).unwrap_or(link))
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The lowest number for a link when the process may have `limit` descriptors; `None`: any number of them.
fn lowest(limit: Option<u64>) -> RawFd {
    let end = limit.map_or(BELOW, |limit| limit.min(BELOW));
    RawFd::try_from(end - end / SHARE).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::lowest;

    #[test]
    fn links_lie_at_the_end_of_what_the_process_may_open() {
        for (limit, expected) in
            [(None, 61_440), (Some(1 << 20), 61_440), (Some(65_536), 61_440), (Some(1024), 960), (Some(0), 0)]
        {
            assert_eq!(lowest(limit), expected, "{limit:?}");
        }
    }
}
