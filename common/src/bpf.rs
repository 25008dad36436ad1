//! Commands of bpf(2) that aya does not offer, or not with these flags, or whose descriptors it does not give away:
//! attaching to a cgroup in a chosen place or to a network namespace, pinning such a link, and asking what is attached.
//!
//! Used by the agent's `kernel` module only.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    os::unix::ffi::OsStrExt,
    path::Path,
};

/// `enum bpf_attach_type` of the hooks that waylay asks about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum CgroupHook {
    SockOps = 3,
    Connect4 = 10,
    Connect6 = 11,
    UdpSendmsg4 = 14,
    UdpSendmsg6 = 15,
    UdpRecvmsg4 = 19,
    UdpRecvmsg6 = 20,
    Getsockopt = 21,
    Getpeername4 = 29,
    Getpeername6 = 30,
}

/// Where a program runs among those that are attached to the same hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// After those that are attached to this cgroup already, and after those below it.
    Last,
    /// Before those that are attached to this cgroup now, and before those below it (`BPF_F_PREORDER`, which links know
    /// since Linux 6.17).
    First,
}

impl Order {
    const fn flags(self) -> u32 {
        match self {
            Self::Last => 0,
            Self::First => BPF_F_PREORDER | BPF_F_BEFORE,
        }
    }
}

const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_LINK_CREATE: libc::c_int = 28;
/// `enum bpf_attach_type`: of network namespaces.
const BPF_SK_LOOKUP: u32 = 36;
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_F_PREORDER: u32 = 1 << 6;

/// Programs of one cgroup and hook that are told at most; the kernel itself attaches no more than 64.
const PROGRAMS_MAX: usize = 64;

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    reserved: u32,
    expected_revision: u64,
}

#[repr(C)]
struct ProgQuery {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    reserved: u32,
}

#[repr(C)]
struct ObjPin {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Attaches a loaded program to a cgroup by a link, which goes when its descriptor is closed.
///
/// # Errors
/// That of bpf(2): `EINVAL` when the kernel does not know [`Order::First`].
pub fn attach_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    hook: CgroupHook,
    order: Order,
) -> io::Result<OwnedFd> {
    let fd = link_create(program.as_raw_fd(), cgroup.as_raw_fd(), hook as u32, order.flags())?;
    // SAFETY: the kernel has just made this descriptor for us, close-on-exec, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a loaded sk_lookup program to a network namespace by a link, which goes when its descriptor is closed, or with
/// the namespace.
///
/// # Errors
/// That of bpf(2).
pub fn attach_netns(program: BorrowedFd<'_>, netns: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let fd = link_create(program.as_raw_fd(), netns.as_raw_fd(), BPF_SK_LOOKUP, 0)?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Does the kernel know [`Order::First`]? `program` is a loaded one for `hook`; nothing is attached.
#[must_use]
pub fn knows_order(program: BorrowedFd<'_>, hook: CgroupHook) -> bool {
    // Flags are looked at before the cgroup, and there is none with this descriptor.
    link_create(program.as_raw_fd(), -1, hook as u32, Order::First.flags())
        .is_err_and(|error| error.raw_os_error() == Some(libc::EBADF))
}

fn link_create(program: RawFd, target: RawFd, attach_type: u32, flags: u32) -> io::Result<RawFd> {
    let mut attributes = LinkCreate {
        prog_fd: program as u32,
        target_fd: target as u32,
        attach_type,
        flags,
        relative: 0,
        reserved: 0,
        expected_revision: 0,
    };
    bpf(BPF_LINK_CREATE, &mut attributes)
}

/// Kernel ids of the programs that are attached to this cgroup itself, in the order of the kernel's list.
///
/// # Errors
/// That of bpf(2): `EPERM` without CAP_NET_ADMIN.
pub fn attached_programs(cgroup: BorrowedFd<'_>, hook: CgroupHook) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; PROGRAMS_MAX];
    let mut attributes = ProgQuery {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_type: hook as u32,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: PROGRAMS_MAX as u32,
        reserved: 0,
    };
    bpf(BPF_PROG_QUERY, &mut attributes)?;
    ids.truncate(attributes.prog_cnt as usize);
    Ok(ids)
}

/// Gives a link a name in a bpffs: it stays when its descriptor is closed, until the name is removed.
///
/// # Errors
/// That of bpf(2): `EPERM` when the folder is on no bpffs, `EEXIST`.
pub fn pin(link: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = ObjPin { pathname: path.as_ptr() as u64, bpf_fd: link.as_raw_fd() as u32, file_flags: 0 };
    bpf(BPF_OBJ_PIN, &mut attributes).map(drop)
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    let size = size_of::<T>() as libc::c_uint;
    // SAFETY: `attributes` is a whole, initialised beginning of `union bpf_attr` of `size` bytes; the kernel takes what
    // follows for zero. Addresses inside it belong to values that outlive the call, with room for what is written there.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}
