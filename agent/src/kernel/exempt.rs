//! Addresses that are never redirected: the agent's own listeners, and those of other instances on this machine.
//!
//! Two instances may sit above each other: `waylay exec` in a child cgroup, `waylay run` on the root. The child's hook
//! runs first and sends the connection to the child's listener; the parent's hook then sees that address and must leave
//! it alone. So an instance enters its listeners into the maps of all others, and theirs into its own. Whoever starts
//! later does both; when two start at once, at least one sees the other, because both have their maps before they look.
//!
//! An entry names the instance it belongs to. It is taken back at an orderly end, and swept by the others when that
//! instance's maps are gone from the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use aya::maps::MapInfo;
use waylay_common::settings::{ExemptKey, ExemptOwner, port_place};

use crate::addr::of_interfaces;

use super::{
    KernelError,
    inspect::Instance,
    load::Loaded,
    maps::{self, Exempt},
};

/// The exempt map of an instance, and the table of its ports.
pub(super) struct ExemptMaps {
    pub(super) listeners: Exempt,
    pub(super) ports: maps::Ports,
}

/// The exempt map of this instance, and what it has entered elsewhere.
pub(super) struct Exemptions {
    maps: ExemptMaps,
    owner: ExemptOwner,
    netns_cookie: u64,
    own: BTreeSet<ExemptKey>,
}

impl Exemptions {
    /// Enters `listeners`, which live in the namespace `netns_cookie`.
    pub(super) fn new(
        loaded: &Loaded,
        owner: ExemptOwner,
        netns_cookie: u64,
        listeners: &[SocketAddr],
    ) -> Result<Self, KernelError> {
        let maps = ExemptMaps {
            listeners: maps::typed(maps::name::EXEMPT, loaded.map(maps::name::EXEMPT)?)?,
            ports: maps::typed(maps::name::PORTS, loaded.map(maps::name::PORTS)?)?,
        };
        let mut new = Self { maps, owner, netns_cookie, own: BTreeSet::new() };
        let own = new.keys(listeners)?;
        for key in &own {
            enter(&mut new.maps, key, owner)?;
        }
        new.own = own;
        Ok(new)
    }

    fn keys(&self, listeners: &[SocketAddr]) -> Result<BTreeSet<ExemptKey>, KernelError> {
        let addresses = spell_out(listeners)?.into_iter();
        Ok(addresses.map(|address| ExemptKey::new(self.netns_cookie, address.into())).collect())
    }

    /// Our listeners are these from now on, here and with all other instances.
    pub(super) fn replace(&mut self, listeners: &[SocketAddr]) -> Result<(), KernelError> {
        let new = self.keys(listeners)?;
        self.replace_in(self.netns_cookie, new)
    }

    /// The same within an enrolled network namespace; none: it is withdrawn. Wildcard addresses stay as they are: what they
    /// stand for there cannot be told from here.
    pub(super) fn replace_there(&mut self, cookie: u64, listeners: &[SocketAddr]) -> Result<(), KernelError> {
        let new = listeners.iter().map(|&address| ExemptKey::new(cookie, address.into())).collect();
        self.replace_in(cookie, new)
    }

    fn replace_in(&mut self, cookie: u64, new: BTreeSet<ExemptKey>) -> Result<(), KernelError> {
        let mut gone: BTreeSet<_> = self.own.iter().filter(|key| key.netns_cookie() == cookie).copied().collect();
        if new == gone {
            return Ok(());
        }
        gone.retain(|key| !new.contains(key));
        // What fails halfway is put right by the next call.
        self.own.extend(&new);
        change(&mut self.maps, &new, &gone, self.owner)?;
        for other in self.others()? {
            if let Ok(mut theirs) = other.exempt_maps() {
                change(&mut theirs, &new, &gone, self.owner)?;
            }
        }
        self.own.retain(|key| !gone.contains(key));
        Ok(())
    }

    /// Tells all other instances of our listeners, and learns theirs.
    pub(super) fn exchange(&mut self) -> Result<(), KernelError> {
        for other in self.others()? {
            let Ok(mut theirs) = other.exempt_maps() else {
                continue;
            };
            for key in &self.own {
                enter(&mut theirs, key, self.owner)?;
            }
            for (key, owner) in listed(&theirs.listeners)? {
                if owner == other.id() {
                    enter(&mut self.maps, &key, owner)?;
                }
            }
        }
        Ok(())
    }

    /// Takes our listeners back from all other instances.
    pub(super) fn withdraw(&self) -> Result<(), KernelError> {
        for other in self.others()? {
            let Ok(mut theirs) = other.exempt_maps() else {
                continue;
            };
            for (key, owner) in listed(&theirs.listeners)? {
                if owner == self.owner {
                    maps::ensure_removed(theirs.listeners.remove(&key), "withdrawing a listener address")?;
                }
            }
        }
        Ok(())
    }

    /// Removes what instances have left here that are gone.
    pub(super) fn sweep(&mut self) -> Result<(), KernelError> {
        let mut alive = BTreeMap::from([(self.owner, true)]);
        for (key, owner) in listed(&self.maps.listeners)? {
            // Kernel ids count upwards and are not given out again while the machine runs.
            if !*alive.entry(owner).or_insert_with(|| MapInfo::from_id(owner).is_ok()) {
                maps::ensure_removed(self.maps.listeners.remove(&key), "sweeping a listener address")?;
            }
        }
        Ok(())
    }

    /// Running instances of this build's layout but this one.
    fn others(&self) -> Result<Vec<Instance>, KernelError> {
        let mut others = super::inspect::instances()?;
        others.retain(|other| other.id() != self.owner && other.speaks_our_layout());
        Ok(others)
    }
}

fn change(
    maps: &mut ExemptMaps,
    new: &BTreeSet<ExemptKey>,
    gone: &BTreeSet<ExemptKey>,
    owner: ExemptOwner,
) -> Result<(), KernelError> {
    for key in new {
        enter(maps, key, owner)?;
    }
    let doing = "withdrawing a listener address";
    for key in gone {
        // Another instance may listen at the same address, and have entered it since.
        if maps::optional(maps.listeners.get(key, 0), doing)? == Some(owner) {
            maps::ensure_removed(maps.listeners.remove(key), doing)?;
        }
    }
    Ok(())
}

/// The port first: a hook that does not see it does not look for the listener.
fn enter(maps: &mut ExemptMaps, key: &ExemptKey, owner: ExemptOwner) -> Result<(), KernelError> {
    let marked = maps.ports.set(port_place(key.listener().port()), 1, 0);
    let entered = marked.and_then(|()| maps.listeners.insert(key, owner, 0));
    entered.map_err(|source| KernelError::map(format!("exempting the listener {:?}", key.listener()), source))
}

pub(super) fn listed(map: &Exempt) -> Result<Vec<(ExemptKey, ExemptOwner)>, KernelError> {
    maps::entries(maps::name::EXEMPT, map.keys(), |key| map.get(key, 0))
}

/// A wildcard listener is reached by every address of this machine, and the hook cannot tell which those are.
fn spell_out(listeners: &[SocketAddr]) -> Result<Vec<SocketAddr>, KernelError> {
    let mut addresses = listeners.to_vec();
    if listeners.iter().any(|listener| listener.ip().is_unspecified()) {
        let listed = |source| KernelError::io("listing the addresses of this machine", source);
        let own: Vec<_> = of_interfaces().map_err(listed)?.collect();
        for listener in listeners.iter().filter(|listener| listener.ip().is_unspecified()) {
            // An IPv6 wildcard listener receives IPv4 as well.
            let reached = own.iter().filter(|ip| listener.is_ipv6() || ip.is_ipv4());
            addresses.extend(reached.map(|&ip| SocketAddr::new(ip, listener.port())));
            if listener.is_ipv6() {
                addresses.push(SocketAddr::new([0, 0, 0, 0].into(), listener.port()));
            }
        }
    }
    Ok(addresses)
}
