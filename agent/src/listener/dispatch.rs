//! Which listener handles a connection, by its original destination.
//!
//! Before: the accepted socket. After: the listener filters of the listener found. Pure.
//!
//! The rule (Envoy, `ConnectionHandlerImpl::getBalancedHandlerByAddress`): exactly `ip:port`, else the wildcard
//! address of the same family with that port, else the listener that accepted the connection. One hop only.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::{Binding, HandOff, Listener, TrafficDirection};
use crate::addr::OrigDstAddr;

/// All listeners, findable by original destination.
#[derive(Debug, Default)]
pub struct Listeners {
    all: Vec<Arc<Listener>>,
    by_address: HashMap<(TrafficDirection, SocketAddr), usize>,
}

/// Two listeners with the same name or address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListenerConflict {
    /// Envoy refuses it with the same words.
    #[error("error adding listener: '{name}' has duplicate address '{address}' as existing listener '{existing}'")]
    Address {
        /// The later one.
        name: Arc<str>,
        /// Of both.
        address: SocketAddr,
        /// The earlier one.
        existing: Arc<str>,
    },
    /// Names tell listeners apart in statistics and on the command line.
    #[error("two listeners are called '{name}'")]
    Name {
        /// Of both.
        name: Arc<str>,
    },
}

/// How a listener was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundBy {
    /// Exactly `ip:port`.
    Exact,
    /// `0.0.0.0:port` or `[::]:port`.
    Wildcard,
    /// It is the one that accepted the connection.
    Accepted,
}

impl Listeners {
    /// Indexes `all`.
    ///
    /// # Errors
    /// All pairs of listeners with the same name or address.
    pub fn new(all: Vec<Arc<Listener>>) -> Result<Self, Vec<ListenerConflict>> {
        let mut by_address = HashMap::with_capacity(all.len());
        let mut by_name = HashMap::with_capacity(all.len());
        let mut conflicts = Vec::new();
        for (index, listener) in all.iter().enumerate() {
            if let Some(first) = by_address.insert((listener.direction, listener.address), index) {
                let existing: &Arc<Listener> = &all[first];
                conflicts.push(ListenerConflict::Address {
                    name: listener.name.clone(),
                    address: listener.address,
                    existing: existing.name.clone(),
                });
            }
            if by_name.insert(listener.name.clone(), index).is_some() {
                conflicts.push(ListenerConflict::Name { name: listener.name.clone() });
            }
        }
        if conflicts.is_empty() { Ok(Self { all, by_address }) } else { Err(conflicts) }
    }

    /// As configured.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.all.iter()
    }

    /// The one that is bound to `address`.
    pub fn bound_at(&self, address: SocketAddr) -> Option<&Arc<Listener>> {
        [TrafficDirection::Outbound, TrafficDirection::Inbound]
            .iter()
            .filter_map(|direction| self.by_address.get(&(*direction, address)).map(|index| &self.all[*index]))
            .find(|listener| listener.binding != Binding::Virtual)
    }

    /// By name.
    pub fn named(&self, name: &str) -> Option<&Arc<Listener>> {
        self.all.iter().find(|listener| &*listener.name == name)
    }

    /// The listener that serves a connection which `accepted` accepted.
    pub fn dispatch<'a>(
        &'a self,
        accepted: &'a Arc<Listener>,
        original_dst: OrigDstAddr,
    ) -> (&'a Arc<Listener>, FoundBy) {
        match accepted.hand_off {
            HandOff::ByOriginalDst => {
                self.find(accepted.direction, original_dst).unwrap_or((accepted, FoundBy::Accepted))
            }
            HandOff::Stay => (accepted, FoundBy::Accepted),
        }
    }

    /// The listener of `destination`: the exact one, else the wildcard of its family. Only listeners of `direction`.
    pub fn find(&self, direction: TrafficDirection, destination: OrigDstAddr) -> Option<(&Arc<Listener>, FoundBy)> {
        let exact = destination.socket();
        let any: IpAddr = match exact {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let by =
            |address, found_by| self.by_address.get(&(direction, address)).map(|index| (&self.all[*index], found_by));
        by(exact, FoundBy::Exact).or_else(|| by(SocketAddr::new(any, exact.port()), FoundBy::Wildcard))
    }
}
