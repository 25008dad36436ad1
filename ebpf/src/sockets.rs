//! What the cgroup hooks share: socket storage, the caller's process, what a hook returns.

use core::{ffi::c_void, mem::MaybeUninit, ptr};

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        generated::{
            bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_sk_storage_delete, bpf_sk_storage_get,
            bpf_skc_to_mptcp_sock,
        },
    },
};
use waylay_common::{
    addr::Ip,
    flow::{ProcessStamp, SocketState},
};

use crate::{
    connect::Family,
    hook::read,
    maps::{WAYLAY_SETTINGS, WAYLAY_SOCKETS},
};

/// What a cgroup hook returns for "go on". A hook that does not mean to deny returns this and nothing else.
pub const PROCEED: i32 = 1;
/// What a connect hook returns for "fail with the return value that was set".
pub const DENY: i32 = 0;

/// Writes one field of a hook's context; see [`crate::hook::read`].
macro_rules! write {
    (($ctx:expr, $($field:tt)+) = $value:expr) => {
        // SAFETY: as in `read`, and the verifier checks that the field is writable.
        unsafe { core::ptr::write_volatile(&raw mut (*$ctx).$($field)+, $value) }
    };
}

pub(crate) use write;

/// A socket, and the multipath socket it is a subflow of, if it is.
///
/// The kernel makes a subflow connect as a TCP socket of its own, so that is what the connect and handshake hooks see;
/// the application, and `getpeername`, only know the multipath socket. So states are written to both.
#[derive(Clone, Copy)]
pub struct Sockets {
    sk: *mut c_void,
    multipath: *mut c_void,
}

impl Sockets {
    /// `sk` must not be null.
    #[inline(always)]
    pub fn of(sk: *mut bpf_sock) -> Self {
        // SAFETY: a static of this object; volatile, because the loader writes it.
        let multipath = if unsafe { ptr::read_volatile(&raw const WAYLAY_MPTCP) } == 0 {
            ptr::null_mut()
        } else {
            // SAFETY: the helper takes a socket that the verifier has seen to be one.
            unsafe { bpf_skc_to_mptcp_sock(sk.cast()) }.cast()
        };
        Self { sk: sk.cast(), multipath }
    }

    /// What is remembered from before: of this socket, or else of the multipath socket, which may carry a stamp.
    #[inline(always)]
    pub fn found<'a>(&self) -> Option<&'a SocketState> {
        let state_of_sk = state(self.sk);
        if state_of_sk.is_some() || self.multipath.is_null() {
            return state_of_sk;
        }
        state(self.multipath)
    }

    /// Whether it is a subflow.
    #[inline(always)]
    pub fn is_multipath(&self) -> bool {
        !self.multipath.is_null()
    }

    /// The address that the socket, which is of `family`, is bound to; unspecified where it is to none.
    #[inline(always)]
    pub fn bound(&self, family: Family) -> Ip {
        let sk: *mut bpf_sock = self.sk.cast();
        match family {
            Family::V4 => Ip::from_v4_word(read!(sk, src_ip4)),
            // IPv4 ones in their mapped form; what stands in `src_ip4` then means nothing.
            Family::V6 => Ip::from_words([
                read!(sk, src_ip6[0]),
                read!(sk, src_ip6[1]),
                read!(sk, src_ip6[2]),
                read!(sk, src_ip6[3]),
            ]),
        }
    }

    /// Puts `state` on the socket, over whatever is there. False: the kernel had no memory.
    #[inline(always)]
    pub fn remember(&self, state: &SocketState) -> bool {
        (self.multipath.is_null() || store(self.multipath, state)) && store(self.sk, state)
    }

    /// Removes the state; none is as good.
    #[inline(always)]
    pub fn forget(&self) {
        // SAFETY: the map by its address, and sockets the verifier has seen to be such.
        unsafe {
            bpf_sk_storage_delete(sockets(), self.sk);
            if !self.multipath.is_null() {
                bpf_sk_storage_delete(sockets(), self.multipath);
            }
        }
    }
}

/// Set by the loader where the kernel has multipath TCP: elsewhere the verifier knows no such socket type, and drops
/// the branch unseen.
#[unsafe(no_mangle)]
static WAYLAY_MPTCP: u8 = 0;

/// The state on `sk`, which must not be null, if there is one.
#[inline(always)]
pub fn socket_state<'a>(sk: *mut bpf_sock) -> Option<&'a SocketState> {
    state(sk.cast())
}

#[inline(always)]
fn state<'a>(sk: *mut c_void) -> Option<&'a SocketState> {
    // SAFETY: the helper takes the map by its address, and a socket that the verifier has seen to be one; it returns
    // null or the socket's own value, which lives as long as the socket.
    unsafe { bpf_sk_storage_get(sockets(), sk, ptr::null_mut(), 0).cast::<SocketState>().as_ref() }
}

/// As [`socket_state`], to be changed. Only the hooks of one socket touch it, and those never at once.
#[inline(always)]
pub fn socket_state_mut<'a>(sk: *mut bpf_sock) -> Option<&'a mut SocketState> {
    // SAFETY: as in `state`.
    unsafe { bpf_sk_storage_get(sockets(), sk.cast(), ptr::null_mut(), 0).cast::<SocketState>().as_mut() }
}

/// Puts `state` on `sk` alone, over whatever is there. False: the kernel had no memory.
#[inline(always)]
pub fn put(sk: *mut bpf_sock, state: &SocketState) -> bool {
    store(sk.cast(), state)
}

/// Removes the state of `sk` alone; none is as good.
#[inline(always)]
pub fn remove(sk: *mut bpf_sock) {
    // SAFETY: the map by its address, and a socket the verifier has seen to be one.
    unsafe { bpf_sk_storage_delete(sockets(), sk.cast()) };
}

#[inline(always)]
fn store(sk: *mut c_void, state: &SocketState) -> bool {
    let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    let initial = ptr::from_ref(state).cast_mut().cast();
    // SAFETY: as in `state`; `initial` is a whole value of the map's type on this program's stack.
    let slot = unsafe { bpf_sk_storage_get(sockets(), sk, initial, flags).cast::<SocketState>().as_mut() };
    let Some(slot) = slot else { return false };
    *slot = *state;
    true
}

#[inline(always)]
fn sockets() -> *mut c_void {
    ptr::addr_of!(WAYLAY_SOCKETS).cast_mut().cast()
}

/// Whether connections are redirected to this port. Most that the hooks see are none of ours.
#[inline(always)]
pub fn is_agents_port(port: u16) -> bool {
    WAYLAY_SETTINGS
        .get(0)
        .is_some_and(|settings| settings.redirect_v4.port() == port || settings.redirect_v6.port() == port)
}

/// The task that called connect; its process is [`caller_pid`].
#[inline(always)]
pub fn caller(pid: u32, netns_cookie: u64, now_ns: u64) -> ProcessStamp {
    ProcessStamp {
        netns_cookie,
        // SAFETY: no arguments; the connect hooks run in the caller's context.
        cgroup_id: unsafe { bpf_get_current_cgroup_id() },
        connect_time_ns: now_ns,
        pid,
        uid: bpf_get_current_uid_gid() as u32,
        comm: comm(),
    }
}

/// The process of the calling task, in the first pid namespace.
#[inline(always)]
pub fn caller_pid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// Not by aya's function: that fills the bytes with zeros first, one by one.
#[inline(always)]
fn comm() -> [u8; 16] {
    let mut comm = MaybeUninit::<[u8; 16]>::uninit();
    // SAFETY: the helper writes all of the bytes, zeros when it fails.
    unsafe {
        bpf_get_current_comm(comm.as_mut_ptr().cast(), 16);
        comm.assume_init()
    }
}
