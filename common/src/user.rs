//! The agent's side of the shared types: permission to read them out of maps as bytes, and the two socket options
//! that no safe wrapper offers.

use std::{io, os::fd::AsRawFd};

use crate::{
    addr::{Endpoint, Ip},
    cells::{ClientSlot, HandoverCell},
    dispatch::{ConnectionEvent, Slot},
    dns::{DnsPlace, SlotKey},
    event::RawEvent,
    flow::{FlowKey, HandoverEntry, SocketState},
    netns::{ListenerKey, NetnsEntry},
    policy::{PolicyKey, PortRules},
    processes::ProcessTable,
    settings::{ExemptKey, Settings},
};

macro_rules! pod {
    ($($ty:ty),+ $(,)?) => {$(
        // SAFETY: repr(C), Copy, made of integers and arrays of them only, and without padding (sizes are asserted
        // where the types are defined): every bit pattern is a value and no byte is uninitialised.
        unsafe impl aya::Pod for $ty {}
    )+};
}

pod!(
    Ip,
    Endpoint,
    FlowKey,
    HandoverEntry,
    SocketState,
    Settings,
    ExemptKey,
    NetnsEntry,
    ListenerKey,
    PolicyKey,
    PortRules,
    ProcessTable,
    RawEvent,
    SlotKey,
    DnsPlace,
    Slot,
    ClientSlot,
    HandoverCell
);

macro_rules! from_bytes {
    ($($ty:ty),+ $(,)?) => {$(
        impl $ty {
            /// Decodes one value; `None` when the length is that of another layout.
            #[must_use]
            pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
                if bytes.len() != size_of::<Self>() {
                    return None;
                }
                // SAFETY: the length is checked, every bit pattern is a value (see `pod!`), and the read is unaligned.
                Some(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
            }
        }
    )+};
}

from_bytes!(RawEvent, SocketState, ConnectionEvent);

/// From how many bytes on `socket` is ready to be read from: `SO_RCVLOWAT`, Linux 4.18 for TCP. An end, an error, and a
/// receive window that is nearly full make it ready before.
///
/// # Errors
/// That of `setsockopt(2)`.
pub fn set_receive_low_water(socket: &impl AsRawFd, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel reads the size of `bytes`, which outlives the call.
    let status = unsafe {
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, (&raw const bytes).cast(), len)
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The cookie of the network namespace a socket lives in: `SO_NETNS_COOKIE`, Linux 5.14.
///
/// # Errors
/// That of `getsockopt(2)`; `ENOPROTOOPT` on an older kernel.
pub fn netns_cookie(socket: &impl AsRawFd) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, which is the size of `cookie`; both outlive the call.
    let status = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut len)
    };
    if status == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
