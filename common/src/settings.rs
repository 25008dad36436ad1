//! The one-slot settings map, written before the hooks are attached, and the switches that change while they run.

use crate::{addr::Endpoint, limits::EXEMPT_PORTS};

/// What the hooks do when the agent's heartbeat is too old.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u32)]
pub enum OnAgentLoss {
    /// The connection goes where the application wanted it to go.
    #[default]
    Allow = 0,
    /// The connection is refused.
    Refuse = 1,
}

/// Written once, by the agent, before its hooks run.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// [`crate::LAYOUT`] of whoever wrote the maps.
    pub layout: u32,
    on_agent_loss: u32,
    /// Age of the heartbeat, in nanoseconds, from which on the agent counts as lost.
    pub heartbeat_loss_ns: u64,
    /// The cgroup v2 id the hooks are attached to.
    pub cgroup_id: u64,
    /// Where IPv4 connections are sent; none: IPv4 is not redirected.
    pub redirect_v4: Endpoint,
    /// Where IPv6 connections are sent; none: IPv6 is not redirected.
    pub redirect_v6: Endpoint,
    /// The agent's pid, in its own pid namespace.
    pub agent_pid: u32,
    placement: u32,
    cells: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<Settings>() == 80);

/// Where the connect hooks of an instance run among those of others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Placement {
    /// At their cgroup, after what is attached below it and after what was there before.
    #[default]
    Last,
    /// At their cgroup, before all that is attached there or below.
    First,
    /// At a cgroup above their own, before all that is attached there or below; they act only for callers of their own
    /// cgroup, which lies this far below the root of the hierarchy.
    Above(u32),
}

const FIRST: u32 = 1 << 31;

impl Settings {
    /// What stands for settings that cannot be read: of no layout at all.
    pub const UNKNOWN: Self = {
        let mut unknown = Self::new(OnAgentLoss::Allow, 0, 0, 0);
        unknown.layout = 0;
        unknown
    };

    #[must_use]
    pub const fn new(on_agent_loss: OnAgentLoss, heartbeat_loss_ns: u64, cgroup_id: u64, agent_pid: u32) -> Self {
        Self {
            layout: crate::LAYOUT,
            on_agent_loss: on_agent_loss as u32,
            heartbeat_loss_ns,
            cgroup_id,
            redirect_v4: Endpoint::NONE,
            redirect_v6: Endpoint::NONE,
            agent_pid,
            placement: 0,
            cells: 0,
            reserved: 0,
        }
    }

    /// Connections may go through the cells ([`crate::cells`]).
    #[must_use]
    pub const fn with_cells(mut self) -> Self {
        self.cells = 1;
        self
    }

    #[inline(always)]
    #[must_use]
    pub const fn has_cells(&self) -> bool {
        self.cells != 0
    }

    #[must_use]
    pub const fn with_placement(mut self, placement: Placement) -> Self {
        self.placement = match placement {
            Placement::Last => 0,
            Placement::First => FIRST,
            Placement::Above(level) => FIRST | level,
        };
        self
    }

    #[inline(always)]
    #[must_use]
    pub const fn placement(&self) -> Placement {
        match (self.placement & FIRST, self.placement & !FIRST) {
            (0, _) => Placement::Last,
            (_, 0) => Placement::First,
            (_, level) => Placement::Above(level),
        }
    }

    #[inline(always)]
    #[must_use]
    pub const fn on_agent_loss(&self) -> OnAgentLoss {
        if self.on_agent_loss == OnAgentLoss::Refuse as u32 { OnAgentLoss::Refuse } else { OnAgentLoss::Allow }
    }
}

/// Slots of the switches map: one `u64` each, so that every write is a single store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Switch {
    /// `CLOCK_MONOTONIC` of the agent's last sign of life, nanoseconds; 0: the agent is still starting.
    Heartbeat = 0,
    /// Nonzero: redirect. Zero: the agent drains.
    Redirecting = 1,
    /// Nonzero: somebody reads the decision ring.
    Tracing = 2,
    /// Which of the two process tables is in force.
    Processes = 3,
    /// Which kinds of destinations are dispatched in the kernel: bits of [`dispatching`].
    Dispatching = 4,
    /// Nonzero: the process table in force asks who the caller is.
    Choosing = 5,
    /// The network namespace that is asked for most, the agent's own: its entry stands in the next slot as well as in the map.
    Home = 6,
    /// [`crate::netns::NetnsEntry::bits`] of it.
    HomeEntry = 7,
    /// The agent's process, in the first pid namespace: its connections pass ([`crate::policy::is_agents_own`]). 0: nobody's
    /// do by that.
    Agent = 8,
}

impl Switch {
    pub const COUNT: u32 = 9;
}

/// Bits of [`Switch::Dispatching`]; none: nothing is dispatched, and nothing is looked up.
pub mod dispatching {
    /// Some addresses.
    pub const ADDRESSES: u64 = 1;
    /// Some wildcard addresses.
    pub const WILDCARDS: u64 = 1 << 1;
    /// Of some of them the client is asked for ([`crate::dispatch::Draw::Hashed`]).
    pub const HASHED: u64 = 1 << 2;
}

/// Key of the exempt map: an address that is never redirected, within one network namespace.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ExemptKey {
    netns_cookie: u64,
    listener: Endpoint,
    reserved: u32,
}

const _: () = assert!(size_of::<ExemptKey>() == 32);

impl ExemptKey {
    #[inline(always)]
    #[must_use]
    pub const fn new(netns_cookie: u64, listener: Endpoint) -> Self {
        Self { netns_cookie, listener, reserved: 0 }
    }

    #[must_use]
    pub const fn netns_cookie(&self) -> u64 {
        self.netns_cookie
    }

    #[must_use]
    pub const fn listener(&self) -> Endpoint {
        self.listener
    }
}

/// The place of a port in the table that says whether any listener in the exempt map has, or had, such a port.
#[inline(always)]
#[must_use]
pub const fn port_place(port: u16) -> u32 {
    port as u32 & (EXEMPT_PORTS - 1)
}

/// Value of the exempt map: the instance (kernel id of its settings map) whose listener it is. The entry is void
/// once no such map is loaded any more.
pub type ExemptOwner = u32;
