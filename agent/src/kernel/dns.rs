//! Questions to DNS resolvers: in which network namespaces the hooks send them to the agent, and whose a slot is.
//!
//! Before it: `load` has made the maps. After it: [`crate::dns`], which opens sockets first and asks for questions then.

use std::{net::IpAddr, sync::Mutex};

use aya::maps::{HashMap, MapData};
use serde::Serialize;
use waylay_common::{
    addr::Ip,
    bpf::CgroupHook,
    dns::{DnsPlace, Slot, SlotKey},
};

use super::{KernelError, Loaded, events::lock, maps};

/// The programs that are only there when the agent answers questions, in the order in which they are attached: what
/// redirects comes last.
pub(super) const PROGRAMS: [(&str, CgroupHook); 8] = [
    ("waylay_dns_rcv4", CgroupHook::UdpRecvmsg4),
    ("waylay_dns_rcv6", CgroupHook::UdpRecvmsg6),
    ("waylay_dns_pee4", CgroupHook::Getpeername4),
    ("waylay_dns_pee6", CgroupHook::Getpeername6),
    ("waylay_dns_con4", CgroupHook::Connect4),
    ("waylay_dns_con6", CgroupHook::Connect6),
    ("waylay_dns_snd4", CgroupHook::UdpSendmsg4),
    ("waylay_dns_snd6", CgroupHook::UdpSendmsg6),
];

/// Names of the maps, as the kernel shows them.
pub(super) mod name {
    pub const PLACES: &str = "WAYLAY_DNS";
    pub const RESOLVERS: &str = "WAYLAY_RESOLVER";
}

pub(super) type Places = HashMap<MapData, u64, DnsPlace>;
pub(super) type Resolvers = HashMap<MapData, SlotKey, Ip>;

/// The maps of questions.
pub(super) struct DnsMaps {
    places: Mutex<Places>,
    /// Read for every question whose resolver is not known yet: one system call.
    resolvers: Mutex<Resolvers>,
}

/// A resolver that was asked, and the address that questions for it are sent to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ResolverRow {
    pub netns_cookie: u64,
    pub resolver: IpAddr,
    /// `None`: the agent answers no questions of that namespace any more.
    pub sent_to: Option<std::net::SocketAddr>,
}

impl DnsMaps {
    pub(super) fn new(loaded: &Loaded) -> Result<Self, KernelError> {
        Ok(Self {
            places: Mutex::new(maps::typed(name::PLACES, loaded.map(name::PLACES)?)?),
            resolvers: Mutex::new(maps::typed(name::RESOLVERS, loaded.map(name::RESOLVERS)?)?),
        })
    }

    /// Questions of the namespace go to the agent's sockets there.
    pub(super) fn open(&self, netns_cookie: u64, place: DnsPlace) -> Result<(), KernelError> {
        lock(&self.places)
            .insert(netns_cookie, place, 0)
            .map_err(|source| KernelError::map("taking the DNS questions of a network namespace", source))
    }

    /// Questions of the namespace go to their resolvers, and who these were is forgotten.
    pub(super) fn close(&self, netns_cookie: u64) -> Result<(), KernelError> {
        let doing = "leaving the DNS questions of a network namespace alone";
        maps::ensure_removed(lock(&self.places).remove(&netns_cookie), doing)?;
        let mut resolvers = lock(&self.resolvers);
        let keys: Vec<SlotKey> = resolvers.keys().filter_map(Result::ok).collect();
        for key in keys.into_iter().filter(|key| key.netns_cookie() == netns_cookie) {
            maps::ensure_removed(resolvers.remove(&key), doing)?;
        }
        Ok(())
    }

    pub(super) fn resolver(&self, netns_cookie: u64, slot: Slot) -> Result<Option<IpAddr>, KernelError> {
        let key = SlotKey::new(netns_cookie, slot);
        let found = maps::optional(lock(&self.resolvers).get(&key, 0), "reading which resolver was asked")?;
        Ok(found.map(IpAddr::from))
    }
}

/// All resolvers that were asked.
pub(super) fn rows(places: &Places, resolvers: &Resolvers) -> Result<Vec<ResolverRow>, KernelError> {
    let ports = maps::entries(name::PLACES, places.keys(), |key| places.get(key, 0))?;
    let asked = maps::entries(name::RESOLVERS, resolvers.keys(), |key| resolvers.get(key, 0))?;
    let port = |cookie: u64| {
        let (_, place) = ports.iter().find(|(open, _)| *open == cookie)?;
        Some(place.port())
    };
    let mut rows: Vec<_> = asked
        .into_iter()
        .map(|(key, resolver)| ResolverRow {
            netns_cookie: key.netns_cookie(),
            resolver: resolver.into(),
            sent_to: port(key.netns_cookie()).map(|port| key.slot().address(port).into()),
        })
        .collect();
    rows.sort_unstable();
    Ok(rows)
}
