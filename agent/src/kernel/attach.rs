//! Attaches the loaded programs to cgroups, each by a link that goes with this process.
//!
//! Before it: `load`. After it: nothing; from here on connections are intercepted.
//!
//! connect and getpeername belong to the intercepted cgroup. sock_ops and getsockopt have two sides: the client's, in
//! the intercepted cgroup, and the accepted socket's, in the cgroup in which the agent's listening socket was created.
//! Where one of the two cgroups covers the other, they are attached there only, or they would run twice.

use std::{
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::programs::{ProgramError, ProgramFd};
use waylay_common::{
    bpf::{CgroupHook, Order},
    settings::Placement,
};

use super::{
    KernelError,
    cgroup::Cgroup,
    dns,
    link::Link,
    load::{Loaded, name},
    neighbours::Place,
    pins,
};

/// The links of one instance; dropping them detaches, connect first.
pub(super) struct Links {
    connect: Vec<(&'static str, Link)>,
    pinned: Vec<(PathBuf, Link)>,
    dns: Vec<Link>,
    others: Vec<Link>,
}

impl Links {
    /// Attaches everything, the connect hooks last: what they redirect finds the rest in place.
    pub(super) fn attach(
        loaded: &mut Loaded,
        cgroup: &Cgroup,
        own: &Cgroup,
        place: &Place,
    ) -> Result<Self, KernelError> {
        let mut others = Vec::new();
        for place in both_sides(cgroup, own) {
            let program = loaded.sock_ops()?.fd();
            others.push(link(program, (name::SOCKOPS, CgroupHook::SockOps), place, Order::Last)?);
            let program = loaded.sockopt()?.fd();
            others.push(link(program, (name::SOCKOPT, CgroupHook::Getsockopt), place, Order::Last)?);
        }
        for (name, hook) in [(name::PEER4, CgroupHook::Getpeername4), (name::PEER6, CgroupHook::Getpeername6)] {
            others.push(link(loaded.sock_addr(name)?.fd(), (name, hook), cgroup, Order::Last)?);
        }
        let connect4 = connect(loaded, (name::CONNECT4, CgroupHook::Connect4), cgroup, place)?;
        let connect6 = connect(loaded, (name::CONNECT6, CgroupHook::Connect6), cgroup, place)?;
        Ok(Self {
            connect: vec![(name::CONNECT4, connect4), (name::CONNECT6, connect6)],
            pinned: Vec::new(),
            dns: Vec::new(),
            others,
        })
    }

    /// Attaches what brings DNS questions to the agent. It goes with this process: nothing of it is ever pinned.
    /// Its place is that of the connect hooks: a load balancer that runs before them would see an answer before them as
    /// well, and not know it.
    pub(super) fn attach_dns(
        &mut self,
        loaded: &mut Loaded,
        cgroup: &Cgroup,
        place: &Place,
    ) -> Result<(), KernelError> {
        for (name, hook) in dns::PROGRAMS {
            loaded.dns(name)?;
            self.dns.push(connect(loaded, (name, hook), cgroup, place)?);
        }
        Ok(())
    }

    /// Pins the connect hooks below `dir`: they stay when this process is gone. The other programs only serve
    /// connections that the agent holds, and go with it.
    pub(super) fn pin(&mut self, dir: &Path) -> Result<(), KernelError> {
        for (name, link) in self.connect.drain(..) {
            let path = dir.join(name);
            pins::pin(&link, &path)?;
            self.pinned.push((path, link));
        }
        Ok(())
    }

    /// Takes the pins away, so that the hooks go with their links again.
    pub(super) fn unpin(&mut self) -> Result<(), KernelError> {
        for (path, _link) in self.pinned.drain(..) {
            std::fs::remove_file(&path)
                .map_err(|source| KernelError::io(format!("removing the pinned link {}", path.display()), source))?;
        }
        Ok(())
    }

    /// Detaches everything that is not pinned, connect first.
    pub(super) fn detach(&mut self) {
        self.connect.clear();
        self.pinned.clear();
        self.dns.clear();
        self.others.clear();
    }
}

/// Attaches in the place that neighbours leave.
fn connect(
    loaded: &mut Loaded,
    (name, hook): (&'static str, CgroupHook),
    cgroup: &Cgroup,
    place: &Place,
) -> Result<Link, KernelError> {
    let cgroup = place.above.as_ref().unwrap_or(cgroup);
    let order = if place.placement == Placement::Last { Order::Last } else { Order::First };
    link(loaded.sock_addr(name)?.fd(), (name, hook), cgroup, order)
}

fn link(
    program: Result<&ProgramFd, ProgramError>,
    (name, hook): (&'static str, CgroupHook),
    cgroup: &Cgroup,
    order: Order,
) -> Result<Link, KernelError> {
    let to = cgroup.path().display();
    let program = program.map_err(|source| KernelError::program(format!("attach {name} to {to}"), source))?;
    Link::to_cgroup(program.as_fd(), cgroup.dir().as_fd(), hook, order)
        .map_err(|source| KernelError::io(format!("attaching {name} to {to}"), source))
}

/// Where the programs with two sides go: see the top of this file.
fn both_sides<'a>(cgroup: &'a Cgroup, own: &'a Cgroup) -> Vec<&'a Cgroup> {
    if cgroup.covers(own) {
        vec![cgroup]
    } else if own.covers(cgroup) {
        vec![own]
    } else {
        vec![cgroup, own]
    }
}
