//! What the kernel hands over with an accepted connection, and which process it came from.

use std::net::SocketAddr;

use serde::Serialize;
use waylay_common::{
    cells::Origin,
    flow::{ProcessStamp, Role, SocketState},
};

/// An intercepted connection, as read from the agent's accepted socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Handover {
    /// Where the application wanted to go; an IPv4-mapped address is the IPv4 address.
    pub original_dst: SocketAddr,
    pub process: Process,
}

/// The process that called connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Process {
    /// In the initial pid namespace of the hook, that is the host's.
    pub pid: u32,
    pub uid: u32,
    /// The task's name, at most 15 bytes.
    pub comm: String,
    /// The cgroup v2 id of the task.
    pub cgroup_id: u64,
    /// The network namespace of the socket.
    pub netns_cookie: u64,
}

impl Handover {
    /// `None`: the socket is not an accepted one.
    pub(super) fn from_state(state: &SocketState) -> Option<Self> {
        (state.role() == Some(Role::Accepted))
            .then(|| Self { original_dst: state.original_dst.into(), process: state.process.into() })
    }
}

impl From<Origin> for Handover {
    fn from(origin: Origin) -> Self {
        Self { original_dst: origin.original_dst.into(), process: origin.process.into() }
    }
}

impl From<ProcessStamp> for Process {
    fn from(stamp: ProcessStamp) -> Self {
        let end = stamp.comm.iter().position(|&byte| byte == 0).unwrap_or(stamp.comm.len());
        Self {
            pid: stamp.pid,
            uid: stamp.uid,
            comm: String::from_utf8_lossy(&stamp.comm[..end]).into_owned(),
            cgroup_id: stamp.cgroup_id,
            netns_cookie: stamp.netns_cookie,
        }
    }
}
