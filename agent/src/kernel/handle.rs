//! What workers and the admin side need of the kernel while it runs: a handle on the maps.
//!
//! Before it: `interception` has made the maps. It attaches nothing and changes no policy.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd},
    sync::{Arc, Mutex, atomic::AtomicBool},
};

use aya::maps::MapData;
use nix::sys::socket::{SockaddrStorage, getpeername, getsockname};
use waylay_common::{
    counter::Counter,
    dns::{DnsPlace, Slot},
    flow::{FlowKey, SocketState},
    mapped::MappedCells,
    settings::Switch,
    user::netns_cookie,
};

use crate::listener::TrafficDirection;

use super::{
    Handover, KernelError, Trace,
    dns::DnsMaps,
    events::{Tracing, lock},
    load::Loaded,
    maps,
    ring::Unmapped,
};

/// What workers need of the kernel; cheap to clone.
#[derive(Clone)]
pub struct Kernel {
    instance: u32,
    netns_cookie: u64,
    /// The connect hooks know this process.
    known: bool,
    /// Read by every accept: without a lock, as reading does not change the handle.
    sockets: Arc<maps::Sockets>,
    /// What most accepted connections bring.
    cells: Arc<MappedCells>,
    /// A second handle on the same map, for writing; the lock is held for one system call.
    stamps: Arc<Mutex<maps::Sockets>>,
    counters: Arc<maps::Counters>,
    tracing: Arc<Tracing>,
    dns: Arc<DnsMaps>,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("instance", &self.instance).finish_non_exhaustive()
    }
}

impl Kernel {
    pub(super) fn new(loaded: &Loaded, instance: u32, netns_cookie: u64) -> Result<Self, KernelError> {
        let sockets = || maps::typed(maps::name::SOCKETS, loaded.map(maps::name::SOCKETS)?);
        let switches = maps::typed(maps::name::SWITCHES, loaded.map(maps::name::SWITCHES)?)?;
        let ring = Unmapped::new(maps::name::EVENTS, loaded.map(maps::name::EVENTS)?);
        Ok(Self {
            instance,
            netns_cookie,
            known: false,
            sockets: Arc::new(sockets()?),
            cells: Arc::new(map_cells(&loaded.map(maps::name::CELLS)?)?),
            stamps: Arc::new(Mutex::new(sockets()?)),
            counters: Arc::new(maps::typed(maps::name::COUNTERS, loaded.map(maps::name::COUNTERS)?)?),
            dns: Arc::new(DnsMaps::new(loaded)?),
            tracing: Arc::new(Tracing {
                switches: Arc::new(Mutex::new(switches)),
                ring,
                is_read: AtomicBool::new(false),
            }),
        })
    }

    /// Takes over where an accepted connection was going, with no system call for most: to be asked once for each, with the
    /// addresses at both ends and the network namespace in which it was accepted. `None`: it did not come through the
    /// hooks (or the handover map was full), and must be refused.
    ///
    /// # Errors
    /// The socket's storage cannot be read.
    pub fn take_over(
        &self,
        socket: &impl AsRawFd,
        (client, local): (SocketAddr, SocketAddr),
        netns_cookie: u64,
    ) -> Result<Option<Handover>, KernelError> {
        match self.cells.take(&FlowKey::new(netns_cookie, client.into(), local.into())) {
            Some(origin) => Ok(Some(origin.into())),
            None => self.stored(socket),
        }
    }

    /// The same, to be asked as often as one likes, with some system calls; of a connection that was taken over it may know
    /// nothing.
    ///
    /// # Errors
    /// The socket's storage cannot be read.
    pub fn handover(&self, socket: &impl AsRawFd) -> Result<Option<Handover>, KernelError> {
        let fd = socket.as_raw_fd();
        let (client, local) = (getpeername::<SockaddrStorage>(fd), getsockname::<SockaddrStorage>(fd));
        // One that is gone has no addresses any more, and what it has brought is in its storage.
        let ends = client.ok().as_ref().and_then(address).zip(local.ok().as_ref().and_then(address));
        let look = |(client, local): (SocketAddr, SocketAddr)| {
            let netns_cookie = netns_cookie(socket).ok()?;
            self.cells.look(&FlowKey::new(netns_cookie, client.into(), local.into()))
        };
        match ends.and_then(look) {
            Some(origin) => Ok(Some(origin.into())),
            None => self.stored(socket),
        }
    }

    fn stored(&self, socket: &impl AsRawFd) -> Result<Option<Handover>, KernelError> {
        let doing = "reading the original destination of an accepted connection";
        let state = maps::optional(self.sockets.get(socket, 0), doing)?;
        Ok(state.as_ref().and_then(Handover::from_state))
    }

    /// Sees to it that the hooks leave a TCP socket alone which this process connects: by [`Self::stamp`], unless they know
    /// the process anyway ([`super::InterceptOptions::known_by_process`]) and that is enough.
    ///
    /// # Errors
    /// As [`Self::stamp`].
    pub fn let_pass(&self, socket: &impl AsRawFd, direction: TrafficDirection) -> Result<(), KernelError> {
        if self.known && direction == TrafficDirection::Outbound {
            return Ok(());
        }
        self.stamp(socket, direction)
    }

    /// From now on the connect hooks let pass what the process with this number connects, in the first pid namespace: that
    /// of this process.
    pub(super) fn know(&mut self, process: u32) -> Result<(), KernelError> {
        self.set(Switch::Agent, process.into())?;
        self.known = true;
        Ok(())
    }

    /// Marks one of the agent's own sockets, before it connects, so that the hooks leave it alone: the connect hooks always,
    /// and with `Inbound`, for a connection to an application on behalf of its client, the inbound hook of the socket's
    /// network namespace as well.
    ///
    /// # Errors
    /// The kernel has no memory; the socket must not connect, or it would come back.
    pub fn stamp(&self, socket: &impl AsRawFd, direction: TrafficDirection) -> Result<(), KernelError> {
        let state = match direction {
            TrafficDirection::Outbound => SocketState::bypass(),
            TrafficDirection::Inbound => SocketState::inbound(),
        };
        lock(&self.stamps)
            .insert(socket, state, 0)
            .map_err(|source| KernelError::map("marking a socket of the agent", source))
    }

    /// From now on the DNS questions of a network namespace go to the agent's sockets there, the first of which has `port`
    /// (see [`waylay_common::dns`]); those for IPv6 resolvers only with `has_v6`.
    ///
    /// # Errors
    /// The map has no room, or cannot be written; the questions go to their resolvers.
    pub fn take_questions(&self, netns_cookie: u64, port: u16, has_v6: bool) -> Result<(), KernelError> {
        self.dns.open(netns_cookie, DnsPlace::new(port, has_v6))
    }

    /// From now on the DNS questions of a network namespace go to their resolvers.
    ///
    /// # Errors
    /// The maps cannot be written.
    pub fn leave_questions(&self, netns_cookie: u64) -> Result<(), KernelError> {
        self.dns.close(netns_cookie)
    }

    /// The resolver that was asked, by the slot at which the question arrived; `None`: nobody was, the hooks did not send
    /// it.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn asked_resolver(&self, netns_cookie: u64, slot: Slot) -> Result<Option<IpAddr>, KernelError> {
        self.dns.resolver(netns_cookie, slot)
    }

    /// All counters, summed over the CPUs.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>, KernelError> {
        maps::read_counters(&self.counters)
    }

    /// Starts tracing; it ends when the reader is dropped. There is one reader at a time.
    ///
    /// # Errors
    /// [`KernelError::TraceBusy`], or the maps cannot be written.
    pub fn trace(&self) -> Result<Trace, KernelError> {
        Trace::start(Arc::clone(&self.tracing))
    }

    /// The agent's own network namespace.
    #[must_use]
    pub fn netns_cookie(&self) -> u64 {
        self.netns_cookie
    }

    /// Which [`super::inspect::Instance`] this is.
    #[must_use]
    pub fn instance(&self) -> u32 {
        self.instance
    }

    pub(super) fn set(&self, switch: Switch, value: u64) -> Result<(), KernelError> {
        maps::set_switch(&mut lock(&self.tracing.switches), switch, value)
    }
}

fn map_cells(map: &MapData) -> Result<MappedCells, KernelError> {
    let failed = |source| KernelError::io(format!("mapping the map {}", maps::name::CELLS), source);
    MappedCells::new(map.fd().as_fd()).map_err(failed)
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|v4| SocketAddr::from((v4.ip(), v4.port())));
    v4.or_else(|| storage.as_sockaddr_in6().map(|v6| SocketAddr::from((v6.ip(), v6.port()))))
}
