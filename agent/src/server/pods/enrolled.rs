//! One enrolled workload: sockets in its namespace, the kernel's entry, and the way back.
//!
//! Before: [`super`], which decides. After: [`crate::server::accept`] on the workers, and [`crate::kernel`].

use std::net::SocketAddr;
use std::sync::Arc;

use super::super::bind::{BindError, Bound, InboundSockets, bind_at_loopback};
use super::super::life::LAST_REDIRECTED;
use super::super::reload::describe;
use super::{Member, Serving};
use crate::dns::DnsError;
use crate::kernel::{Enrolment, KernelError, Policy};
use crate::listener::TrafficDirection;
use crate::place::Place;
use crate::workload::{NetnsError, Workload, netns_of};

/// Listening sockets of one listener in one namespace: more workers than these do not accept there, so that a node of
/// many pods and many CPUs does not run out of file descriptors. A connection is served by the worker that accepted it.
const ACCEPTING_WORKERS: usize = 8;

/// A workload from which connections are taken.
pub(in crate::server) struct Enrolled {
    pub(super) place: Arc<Place>,
    /// Listeners that have sockets there, by configured address.
    keys: Vec<SocketAddr>,
    /// Of the inbound listener.
    inbound: InboundSockets,
    policies: (Policy, Option<Policy>),
}

/// Why a workload is not enrolled.
#[derive(Debug, thiserror::Error)]
pub(super) enum EnrolError {
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error("entering its network namespace")]
    Enter(#[from] std::io::Error),
    #[error("it shares its network namespace with {0}, which is enrolled")]
    Shared(String),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("intercepting its connections")]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Dns(#[from] DnsError),
}

impl Serving {
    /// Opens listening sockets in the namespace of `workload`, lets workers accept there, and has the kernel take its
    /// connections: in this order, so that nothing is taken that nobody accepts.
    pub(super) async fn enrol(
        &mut self,
        workload: &Arc<Workload>,
        retired: Option<Arc<Place>>,
        policies: (Policy, Option<Policy>),
    ) -> Result<Enrolled, EnrolError> {
        let place = match retired.filter(|place| !place.is_gone()) {
            Some(place) => place,
            None => self.place_of(workload).await?,
        };
        place.rename(workload.clone());
        if let Some(Member { workload: holder, .. }) = self.pods.holder(place.id()) {
            return Err(EnrolError::Shared(holder.to_string()));
        }
        let mut enrolled =
            Enrolled { place: place.clone(), keys: Vec::new(), inbound: InboundSockets::default(), policies };
        match self.bring_in(&mut enrolled).await {
            Ok(()) => Ok(enrolled),
            Err(error) => {
                self.retire(enrolled).await;
                Err(error)
            }
        }
    }

    async fn bring_in(&self, enrolled: &mut Enrolled) -> Result<(), EnrolError> {
        let addresses = self.listen_there(enrolled).await?;
        self.take(enrolled, &addresses)?;
        self.answer_there(&enrolled.place).await
    }

    async fn place_of(&mut self, workload: &Arc<Workload>) -> Result<Arc<Place>, EnrolError> {
        let thread = self.pods.thread()?;
        let netns = netns_of(workload, &thread).await?;
        Ok(Place::of(workload.clone(), Arc::new(netns), thread))
    }

    /// Binds every listener that the kernel hands connections to. Returns all addresses.
    async fn listen_there(&self, enrolled: &mut Enrolled) -> Result<Vec<SocketAddr>, EnrolError> {
        let snapshot = self.shared.snapshot.load_full();
        let mut addresses = Vec::new();
        for listener in snapshot.listeners.iter().filter(|listener| listener.receives()) {
            let (count, target) = (self.workers.len().min(ACCEPTING_WORKERS), listener.clone());
            let bound = enrolled.place.run(move || bind_at_loopback(&target, count)).await;
            let Bound { key, addresses: there, sockets } = bound??;
            if listener.direction == TrafficDirection::Inbound {
                enrolled.inbound = InboundSockets::of(&sockets)?;
            }
            enrolled.keys.push(key);
            addresses.extend(there);
            // Each place begins with another worker.
            let first = usize::try_from(enrolled.place.id()).unwrap_or_default() % self.workers.len().max(1);
            let workers = self.workers.iter().cycle().skip(first);
            for (worker, sockets) in workers.zip(sockets) {
                worker.listen(enrolled.place.clone(), key, sockets).await;
            }
        }
        Ok(addresses)
    }

    /// Answers the DNS questions that are asked there, if any are to be answered.
    async fn answer_there(&self, place: &Arc<Place>) -> Result<(), EnrolError> {
        match &self.dns {
            Some(thread) => Ok(thread.listener().open(place).await?),
            None => Ok(()),
        }
    }

    fn take(&self, enrolled: &Enrolled, listeners: &[SocketAddr]) -> Result<(), EnrolError> {
        let (Some(attached), Some(netns)) = (&self.attached, enrolled.place.netns()) else { return Ok(()) };
        Ok(attached.enrol(netns, &enrolled.enrolment(listeners))?)
    }

    /// Puts other policies in force where they differ.
    pub(super) fn change_policies(
        &self,
        enrolled: &mut Enrolled,
        outbound: Policy,
        inbound: Option<Policy>,
    ) -> Result<(), EnrolError> {
        let new = (outbound, inbound);
        if new == enrolled.policies {
            return Ok(());
        }
        let old = std::mem::replace(&mut enrolled.policies, new);
        let addresses: Vec<_> = enrolled.addresses().collect();
        self.take(enrolled, &addresses).inspect_err(|_| enrolled.policies = old)
    }

    /// Takes nothing more there; what is open is served on. Returns where that is.
    pub(super) async fn retire(&self, mut enrolled: Enrolled) -> Arc<Place> {
        self.withdraw(&mut enrolled);
        tokio::time::sleep(LAST_REDIRECTED).await;
        self.close_there(enrolled).await
    }

    /// The kernel hands nothing over from there any more.
    pub(super) fn withdraw(&self, enrolled: &mut Enrolled) {
        if let Some(attached) = &self.attached
            && let Err(error) = attached.withdraw(enrolled.place.id())
        {
            let error = describe(&error);
            tracing::error!(error, "something of a workload is left in the kernel");
        }
        enrolled.inbound.clear();
    }

    /// Closes the listening sockets there, after [`Self::withdraw`] and, unless all is gone there,
    /// [`LAST_REDIRECTED`].
    pub(super) async fn close_there(&self, enrolled: Enrolled) -> Arc<Place> {
        let Enrolled { place, keys, .. } = enrolled;
        if let Some(thread) = &self.dns {
            thread.listener().close(&place).await;
        }
        for key in keys {
            for worker in &self.workers {
                worker.close(&place, key).await;
            }
        }
        place
    }
}

impl Enrolled {
    fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.keys.iter().flat_map(|key| super::super::bind::at_loopback(*key))
    }

    fn enrolment<'a>(&'a self, listeners: &'a [SocketAddr]) -> Enrolment<'a> {
        let (outbound, inbound) = &self.policies;
        let inbound = inbound.as_ref().and_then(|policy| self.inbound.enrolment(policy));
        Enrolment { outbound: Some(outbound), inbound, listeners }
    }
}
