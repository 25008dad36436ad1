//! Network namespaces come and go while the hooks are attached: enrolled, changed, withdrawn.
//!
//! Before it: `interception`, whose methods these are. After it: `namespaces` and `exempt`, which write the maps.

use std::net::SocketAddr;

use super::{
    Enrolment, Interception, KernelError, Policy, events::lock, interception::check_families, namespaces::Wanted,
    policy::Compiled,
};
use crate::netns::Netns;

impl Interception {
    /// Intercepts in the network namespace `netns` from now on; in one that is enrolled already,
    /// puts these policies, sockets and addresses in the place of those before. The agent's own namespace is enrolled for
    /// what arrives in the same way.
    ///
    /// Listening sockets must listen already. A namespace that goes away takes the hook with it; withdraw it all the same.
    ///
    /// # Errors
    /// A policy does not fit or takes in a family that nobody listens for, another agent would hand the connections back, or
    /// the kernel refuses. A namespace that was not enrolled before is not then either; one that was may have some of the
    /// new and some of the old: enrol again, or withdraw it.
    pub fn enrol(&mut self, netns: &Netns, enrolment: &Enrolment<'_>) -> Result<(), KernelError> {
        let cookie = netns.cookie();
        let is_new = !self.namespaces.contains(cookie);
        let enrolled = self.try_enrol(netns, enrolment);
        if enrolled.is_err() && is_new {
            // The first error tells why; what cannot be taken back takes nothing any more.
            let _ = self.withdraw(cookie);
        }
        enrolled
    }

    fn try_enrol(&mut self, netns: &Netns, enrolment: &Enrolment<'_>) -> Result<(), KernelError> {
        let cookie = netns.cookie();
        let inbound = enrolment.inbound.as_ref();
        let (outbound, arriving) = self.compile(enrolment.outbound, inbound.map(|inbound| inbound.policy))?;
        let wanted = Wanted { outbound: outbound.as_ref(), inbound: arriving.as_ref() };
        self.place.check(cookie, wanted)?;
        // First the addresses that are never taken, then who receives what is, then what is.
        if cookie != self.kernel.netns_cookie() {
            let listeners = self.listeners_there(enrolment)?;
            lock(&self.exemptions).replace_there(cookie, &listeners)?;
        }
        match inbound {
            Some(inbound) => self.namespaces.listen(&self.loaded, netns, inbound)?,
            None => self.namespaces.stop_listening(cookie)?,
        }
        self.namespaces.set(cookie, wanted)?;
        // Once more, for an agent that has enrolled it at the same moment.
        self.place.check(cookie, wanted).inspect_err(|_| _ = self.namespaces.set(cookie, Wanted::NOTHING))
    }

    /// Puts other policies in force in an enrolled network namespace, at once for each connection.
    ///
    /// # Errors
    /// As [`Self::enrol`]; or it is not enrolled, or not for what arrives. The old policies stay in force.
    pub fn change(
        &mut self,
        cookie: u64,
        outbound: Option<&Policy>,
        inbound: Option<&Policy>,
    ) -> Result<(), KernelError> {
        if !self.namespaces.contains(cookie) {
            return Err(KernelError::NotEnrolled(cookie));
        }
        if inbound.is_some() && !self.namespaces.has_inbound(cookie) {
            return Err(KernelError::NoInboundListener(cookie));
        }
        let (outbound, inbound) = self.compile(outbound, inbound)?;
        let wanted = Wanted { outbound: outbound.as_ref(), inbound: inbound.as_ref() };
        self.place.check(cookie, wanted)?;
        self.namespaces.set(cookie, wanted)
    }

    /// Takes nothing more in a network namespace, and leaves nothing of it in the maps but what belongs to sockets that are
    /// still open: that goes with them. One that is not enrolled, or that is gone, is as good.
    ///
    /// # Errors
    /// The first thing that could not be taken away; the others are, all the same.
    pub fn withdraw(&mut self, cookie: u64) -> Result<(), KernelError> {
        let removed = self.namespaces.remove(cookie);
        if cookie == self.kernel.netns_cookie() {
            return removed;
        }
        removed.and(lock(&self.exemptions).replace_there(cookie, &[]))
    }

    fn compile(
        &self,
        outbound: Option<&Policy>,
        inbound: Option<&Policy>,
    ) -> Result<(Option<Compiled>, Option<Compiled>), KernelError> {
        let outbound = outbound.map(Compiled::new).transpose()?;
        if let Some(policy) = &outbound {
            check_families(policy, self.redirect)?;
        }
        Ok((outbound, inbound.map(Compiled::new).transpose()?))
    }

    /// All addresses at which the agent listens in another network namespace.
    fn listeners_there(&self, enrolment: &Enrolment<'_>) -> Result<Vec<SocketAddr>, KernelError> {
        let mut all = enrolment.listeners.to_vec();
        if enrolment.outbound.is_some() {
            all.extend(&self.redirects);
        }
        let inbound = enrolment.inbound.iter().flat_map(|inbound| [inbound.listener_v4, inbound.listener_v6]);
        for socket in inbound.flatten() {
            let address = socket2::SockRef::from(&socket)
                .local_addr()
                .map_err(|source| KernelError::io("reading the address of an inbound listening socket", source))?;
            all.extend(address.as_socket());
        }
        Ok(all)
    }
}
