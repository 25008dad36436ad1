//! What is remembered of a connection: on its socket, and for the moment of the handshake in the handover map.

use crate::{addr::Endpoint, cells::Origin, dispatch::Dispatched};

/// Which end of a connection a socket is. Decides what `getpeername` and `SO_ORIGINAL_DST` answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Role {
    /// The application's socket; its connect was redirected.
    Client = 1,
    /// The agent's accepted socket.
    Accepted = 2,
    /// The agent's own socket towards an endpoint; never redirected.
    Bypass = 3,
    /// The agent's own socket towards an application on the inbound side; never redirected, and its connection is known
    /// to the inbound hook of its network namespace, which passes it on to the application.
    Inbound = 4,
    /// The application's socket; its connect was sent to an endpoint by the kernel itself.
    Dispatched = 5,
    /// A socket of the agent on which getpeername(2) is asked once, so that the hook writes the number of the agent's process
    /// beside it, in the first pid namespace; no connection of it is ever decided on.
    Agent = 6,
}

impl Role {
    #[inline(always)]
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::Client),
            2 => Some(Self::Accepted),
            3 => Some(Self::Bypass),
            4 => Some(Self::Inbound),
            5 => Some(Self::Dispatched),
            6 => Some(Self::Agent),
            _ => None,
        }
    }
}

/// Who called connect, and when.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProcessStamp {
    /// The network namespace of the socket.
    pub netns_cookie: u64,
    /// The cgroup v2 id of the calling task.
    pub cgroup_id: u64,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub connect_time_ns: u64,
    pub pid: u32,
    pub uid: u32,
    /// The task's name, padded with zeros.
    pub comm: [u8; 16],
}

impl ProcessStamp {
    pub const NONE: Self = Self { netns_cookie: 0, cgroup_id: 0, connect_time_ns: 0, pid: 0, uid: 0, comm: [0; 16] };
}

/// The value in socket storage. Lives as long as the socket; overwritten at every connect.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketState {
    pub process: ProcessStamp,
    pub original_dst: Endpoint,
    role: u32,
    /// [`Dispatched::NOT`] unless the role is [`Role::Dispatched`].
    pub dispatched: Dispatched,
}

const _: () = assert!(size_of::<ProcessStamp>() == 48);
const _: () = assert!(size_of::<SocketState>() == 96);

impl SocketState {
    #[inline(always)]
    #[must_use]
    pub const fn new(role: Role, original_dst: Endpoint, process: ProcessStamp) -> Self {
        Self { process, original_dst, role: role as u32, dispatched: Dispatched::NOT }
    }

    /// Of an application's socket: redirected to the agent with [`Dispatched::NOT`], else dispatched.
    #[inline(always)]
    #[must_use]
    pub const fn client(original_dst: Endpoint, process: ProcessStamp, dispatched: Dispatched) -> Self {
        let role = if dispatched.target == 0 { Role::Client } else { Role::Dispatched };
        Self { process, original_dst, role: role as u32, dispatched }
    }

    /// The stamp of the agent's own sockets towards endpoints.
    #[must_use]
    pub const fn bypass() -> Self {
        Self::new(Role::Bypass, Endpoint::NONE, ProcessStamp::NONE)
    }

    /// The stamp of the agent's own sockets towards applications on the inbound side.
    #[must_use]
    pub const fn inbound() -> Self {
        Self::new(Role::Inbound, Endpoint::NONE, ProcessStamp::NONE)
    }

    /// The question of the agent who it is (see [`Role::Agent`]).
    #[must_use]
    pub const fn agent() -> Self {
        Self::new(Role::Agent, Endpoint::NONE, ProcessStamp::NONE)
    }

    /// `None`: written by something that speaks another layout.
    #[inline(always)]
    #[must_use]
    pub const fn role(&self) -> Option<Role> {
        Role::from_raw(self.role)
    }

    #[inline(always)]
    #[must_use]
    pub const fn with_role(mut self, role: Role) -> Self {
        self.role = role as u32;
        self
    }
}

/// One connection within a network namespace: the same key from either side. In the handover map `agent` is the agent's
/// listener; in the map of inbound flows the agent is `client`, and `agent` is the application.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    netns_cookie: u64,
    client: Endpoint,
    agent: Endpoint,
}

const _: () = assert!(size_of::<FlowKey>() == 48);

impl FlowKey {
    #[inline(always)]
    #[must_use]
    pub const fn new(netns_cookie: u64, client: Endpoint, agent: Endpoint) -> Self {
        Self { netns_cookie, client, agent }
    }

    #[must_use]
    pub const fn netns_cookie(&self) -> u64 {
        self.netns_cookie
    }

    #[must_use]
    pub const fn client(&self) -> Endpoint {
        self.client
    }

    #[must_use]
    pub const fn agent(&self) -> Endpoint {
        self.agent
    }
}

/// What a handshake in flight carries from the client's socket to the accepted one.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HandoverEntry {
    pub origin: Origin,
    /// The client's socket: only it may take the entry back when its connect fails.
    pub client_cookie: u64,
}

const _: () = assert!(size_of::<HandoverEntry>() == 80);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_written_roles_are_read_back() {
        for role in [Role::Client, Role::Accepted, Role::Bypass, Role::Inbound, Role::Dispatched, Role::Agent] {
            assert_eq!(SocketState::bypass().with_role(role).role(), Some(role));
        }
        assert_eq!(Role::from_raw(0), None);
        assert_eq!(Role::from_raw(7), None);
    }
}
