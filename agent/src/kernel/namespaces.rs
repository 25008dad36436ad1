//! The enrolled network namespaces: which policies hold in each, who listens there for the agent, and the inbound hook.
//!
//! Before it: `interception` knows which are to be enrolled. After it: `policies` and `inbound`. Programs that are
//! attached to cgroups see all namespaces; what makes them act in one is its entry here.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::SocketAddr,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use waylay_common::{
    netns::{ListenerKey, NetnsEntry},
    settings::Switch,
};

use super::{
    KernelError,
    inbound::InboundHooks,
    link::Link,
    load::Loaded,
    maps,
    policies::Policies,
    policy::{Compiled, Policy},
};
use crate::netns::Netns;

/// What is taken in a network namespace.
#[derive(Clone, Copy, Debug, Default)]
pub struct Enrolment<'a> {
    /// Of what processes in it connect to; rules speak of destinations. `None`: nothing.
    pub outbound: Option<&'a Policy>,
    /// Of what arrives in it. `None`: nothing.
    pub inbound: Option<InboundEnrolment<'a>>,
    /// The agent's listening addresses there, which are never redirected; those of `inbound` and those to which outbound
    /// connections go are included anyway. No wildcard addresses: the agent cannot tell from outside what they stand for.
    pub listeners: &'a [SocketAddr],
}

/// What is taken of what arrives, and who receives it.
#[derive(Clone, Copy, Debug)]
pub struct InboundEnrolment<'a> {
    /// Rules speak of the client's address and of the local port.
    pub policy: &'a Policy,
    /// A listening socket in that namespace, one of the `SO_REUSEPORT` group if there is one. `None`: IPv4 is left to the
    /// applications.
    pub listener_v4: Option<BorrowedFd<'a>>,
    /// The same for IPv6.
    pub listener_v6: Option<BorrowedFd<'a>>,
}

/// An [`Enrolment`] with its policies compiled.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) outbound: Option<&'a Compiled>,
    pub(super) inbound: Option<&'a Compiled>,
}

impl Wanted<'_> {
    pub(super) const NOTHING: Self = Self { outbound: None, inbound: None };
}

/// All of them.
pub(super) struct Namespaces {
    entries: Entries,
    listeners: maps::Listeners,
    policies: Policies,
    /// Made when the first namespace is enrolled for what arrives.
    hooks: Option<InboundHooks>,
    enrolled: BTreeMap<u64, Enrolled>,
}

#[derive(Default)]
struct Enrolled {
    entry: NetnsEntry,
    /// Dropping it detaches; when the namespace has gone first, there is nothing to detach from.
    hook: Option<Link>,
}

impl Namespaces {
    /// `home`: the agent's own namespace.
    pub(super) fn new(loaded: &Loaded, home: u64) -> Result<Self, KernelError> {
        let trie = maps::typed(maps::name::POLICY, loaded.map(maps::name::POLICY)?)?;
        Ok(Self {
            entries: Entries::new(loaded, home)?,
            listeners: maps::typed(maps::name::LISTENERS, loaded.map(maps::name::LISTENERS)?)?,
            policies: Policies::new(trie),
            hooks: None,
            enrolled: BTreeMap::new(),
        })
    }

    pub(super) fn contains(&self, cookie: u64) -> bool {
        self.enrolled.contains_key(&cookie)
    }

    /// Whether the namespace has an inbound hook.
    pub(super) fn has_inbound(&self, cookie: u64) -> bool {
        self.enrolled.get(&cookie).is_some_and(|enrolled| enrolled.hook.is_some())
    }

    /// Attaches the inbound hook, which takes nothing before [`Self::set`] says so, or only enters other sockets into
    /// the map where it is attached already.
    pub(super) fn listen(
        &mut self,
        loaded: &Loaded,
        netns: &Netns,
        inbound: &InboundEnrolment<'_>,
    ) -> Result<(), KernelError> {
        let cookie = netns.cookie();
        for (is_v4, listener) in [(true, inbound.listener_v4), (false, inbound.listener_v6)] {
            let key = ListenerKey::new(cookie, is_v4);
            match listener {
                Some(socket) => self
                    .listeners
                    .insert(key, socket.as_raw_fd(), 0)
                    .map_err(|source| KernelError::map("entering an inbound listening socket", source))?,
                None => maps::ensure_removed(self.listeners.remove(&key), "removing an inbound listening socket")?,
            }
        }
        if self.has_inbound(cookie) {
            return Ok(());
        }
        let hooks = match &mut self.hooks {
            Some(hooks) => hooks,
            none => none.insert(InboundHooks::new(loaded)?),
        };
        let hook = hooks.attach(netns)?;
        self.enrolled.entry(cookie).or_default().hook = Some(hook);
        Ok(())
    }

    /// Puts these policies in force, at once for each connection, and enrols the namespace if it is not yet.
    pub(super) fn set(&mut self, cookie: u64, wanted: Wanted<'_>) -> Result<(), KernelError> {
        let outbound = wanted.outbound.map_or(Ok(0), |policy| self.policies.acquire(policy))?;
        let acquired = wanted.inbound.map_or(Ok(0), |policy| self.policies.acquire(policy));
        let entry = acquired.and_then(|inbound| {
            let entry = NetnsEntry { outbound, inbound };
            let written = self.entries.put(cookie, entry);
            written.map(|()| entry).inspect_err(|_| self.policies.release(inbound))
        });
        let entry = entry.inspect_err(|_| self.policies.release(outbound))?;
        let old = std::mem::replace(&mut self.enrolled.entry(cookie).or_default().entry, entry);
        self.release(old);
        Ok(())
    }

    /// Puts another outbound policy in force.
    pub(super) fn set_outbound(&mut self, cookie: u64, policy: &Compiled) -> Result<(), KernelError> {
        let inbound = self.enrolled.get(&cookie).map_or(0, |enrolled| enrolled.entry.inbound);
        let outbound = self.policies.acquire(policy)?;
        let entry = NetnsEntry { outbound, inbound };
        self.entries.put(cookie, entry).inspect_err(|_| self.policies.release(outbound))?;
        let old = std::mem::replace(&mut self.enrolled.entry(cookie).or_default().entry, entry);
        self.policies.release(old.outbound);
        Ok(())
    }

    /// Detaches the inbound hook and forgets its listening sockets.
    pub(super) fn stop_listening(&mut self, cookie: u64) -> Result<(), KernelError> {
        if let Some(enrolled) = self.enrolled.get_mut(&cookie) {
            enrolled.hook = None;
        }
        let doing = "removing an inbound listening socket";
        // Those of sockets that are closed by now are gone already.
        let removed = [true, false]
            .map(|is_v4| maps::ensure_removed(self.listeners.remove(&ListenerKey::new(cookie, is_v4)), doing));
        removed.into_iter().collect()
    }

    /// Leaves nothing of the namespace in the maps; one that is not enrolled is as good. First the entry, so that nothing
    /// more is taken.
    pub(super) fn remove(&mut self, cookie: u64) -> Result<(), KernelError> {
        let removed = self.entries.remove(cookie);
        let stopped = self.stop_listening(cookie);
        if let Entry::Occupied(enrolled) = self.enrolled.entry(cookie) {
            let old = enrolled.remove().entry;
            self.release(old);
        }
        removed.and(stopped)
    }

    /// Detaches all inbound hooks.
    pub(super) fn detach(&mut self) {
        self.enrolled.clear();
    }

    fn release(&mut self, entry: NetnsEntry) {
        self.policies.release(entry.outbound);
        self.policies.release(entry.inbound);
    }
}

/// What the hooks ask for each namespace. That of the agent's own stands in the switches as well, where it costs no lookup.
struct Entries {
    map: maps::Netns,
    switches: maps::Switches,
    home: u64,
}

impl Entries {
    fn new(loaded: &Loaded, home: u64) -> Result<Self, KernelError> {
        let mut switches = maps::typed(maps::name::SWITCHES, loaded.map(maps::name::SWITCHES)?)?;
        maps::set_switch(&mut switches, Switch::Home, home)?;
        Ok(Self { map: maps::typed(maps::name::NETNS, loaded.map(maps::name::NETNS)?)?, switches, home })
    }

    fn put(&mut self, cookie: u64, entry: NetnsEntry) -> Result<(), KernelError> {
        let put = self.map.insert(cookie, entry, 0);
        put.map_err(|source| KernelError::map("entering the policies of a network namespace", source))?;
        self.at_home(cookie, entry)
    }

    fn remove(&mut self, cookie: u64) -> Result<(), KernelError> {
        let left = self.at_home(cookie, NetnsEntry::NONE);
        left.and(maps::ensure_removed(self.map.remove(&cookie), "withdrawing a network namespace"))
    }

    fn at_home(&mut self, cookie: u64, entry: NetnsEntry) -> Result<(), KernelError> {
        if cookie != self.home {
            return Ok(());
        }
        maps::set_switch(&mut self.switches, Switch::HomeEntry, entry.bits())
    }
}
