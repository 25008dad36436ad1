//! Which process the agent is to the hooks: its number in the first pid namespace, which it does not see from inside another
//! one.
//!
//! Before it: `interception` has loaded the programs. After it: the connect hooks, which let the agent's own connections pass
//! by that number. It is the kernel that tells it, on a socket that only a holder of the map can have marked, so no other
//! process can be taken for the agent.

use std::net::UdpSocket;
use std::os::fd::AsFd as _;

use waylay_common::{
    bpf::{CgroupHook, Order},
    flow::SocketState,
};

use super::{
    KernelError,
    link::Link,
    load::{Loaded, name},
    maps,
    rival::Place,
};

/// A connected socket on which the kernel can be asked. Made before the hooks are attached, so that none of them counts it.
pub(super) struct Question(UdpSocket);

impl Question {
    /// `None`: there is no loopback, and so no answer.
    pub(super) fn new() -> Option<Self> {
        let connected = || {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            socket.connect(socket.local_addr()?)?;
            Ok(Self(socket))
        };
        connected()
            .inspect_err(|error: &std::io::Error| tracing::debug!(%error, "no socket to ask which process this is"))
            .ok()
    }

    /// The number of this process in the first pid namespace; `None`: the hook was not asked.
    pub(super) fn ask(self, loaded: &mut Loaded, place: &Place) -> Result<Option<u32>, KernelError> {
        let failed = |source| KernelError::map("asking the kernel which process this is", source);
        let mut sockets: maps::Sockets = maps::typed(maps::name::SOCKETS, loaded.map(maps::name::SOCKETS)?)?;
        sockets.insert(&self.0, SocketState::agent(), 0).map_err(failed)?;
        let _here = (!place.cgroup.covers(&place.own)).then(|| attach(loaded, place)).transpose()?;
        // What it answers is known. That it was asked is what the hook runs for.
        let _ = self.0.peer_addr();
        let state = sockets.get(&self.0, 0).map_err(failed)?;
        Ok((state.process.pid != 0).then_some(state.process.pid))
    }
}

/// For the moment, where the agent's own sockets are out of the hooks' sight. The program changes nothing for others.
fn attach(loaded: &mut Loaded, place: &Place) -> Result<Link, KernelError> {
    let program = loaded.sock_addr(name::PEER4)?.fd();
    let program = program.map_err(|source| KernelError::program("attach a program", source))?;
    let to = place.own.path().display();
    Link::to_cgroup(program.as_fd(), place.own.dir().as_fd(), CgroupHook::Getpeername4, Order::Last)
        .map_err(|source| KernelError::io(format!("attaching {} to {to}", name::PEER4), source))
}
