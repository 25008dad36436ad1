//! Attaches the loaded programs to cgroups, each by a link that goes with this process.
//!
//! Before it: `load`. After it: nothing; from here on connections are intercepted.
//!
//! connect and getpeername belong to the intercepted cgroup. sock_ops and getsockopt have two sides: the client's, in
//! the intercepted cgroup, and the accepted socket's, in the cgroup in which the agent's listening socket was created.
//! Where one of the two cgroups covers the other, they are attached there only, or they would run twice.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use aya::programs::{
    CgroupAttachMode, ProgramError,
    cgroup_sockopt::CgroupSockoptLink,
    links::{FdLink, LinkError},
};
use waylay_common::{
    bpf::{self, CgroupHook, Order},
    settings::Placement,
};

use super::{
    KernelError,
    cgroup::Cgroup,
    dns,
    load::{Loaded, name},
    neighbours::Place,
    pins,
};

/// aya makes a bpf_link of it, which always adds to what is attached and never replaces.
const MODE: CgroupAttachMode = CgroupAttachMode::Single;

/// The links of one instance; dropping them detaches, connect first.
pub(super) struct Links {
    connect: Vec<(&'static str, OwnedFd)>,
    pinned: Vec<(PathBuf, OwnedFd)>,
    dns: Vec<OwnedFd>,
    others: Vec<FdLink>,
    sockopt: Vec<CgroupSockoptLink>,
}

impl Links {
    /// Attaches everything, the connect hooks last: what they redirect finds the rest in place.
    pub(super) fn attach(
        loaded: &mut Loaded,
        cgroup: &Cgroup,
        own: &Cgroup,
        place: &Place,
    ) -> Result<Self, KernelError> {
        let both_sides = both_sides(cgroup, own);
        let mut others = Vec::new();
        let mut sockopt = Vec::new();
        for place in &both_sides {
            let attached = |source| failed("sock_ops", place, source);
            let program = loaded.sock_ops()?;
            let id = program.attach(place.dir(), MODE).map_err(attached)?;
            others.push(link(program.take_link(id), "sock_ops", place)?);
            let attached = |source| failed("getsockopt", place, source);
            let program = loaded.sockopt()?;
            let id = program.attach(place.dir(), MODE).map_err(attached)?;
            sockopt.push(program.take_link(id).map_err(attached)?);
        }
        for name in [name::PEER4, name::PEER6] {
            others.push(sock_addr(loaded, name, cgroup)?);
        }
        let connect4 = connect(loaded, (name::CONNECT4, CgroupHook::Connect4), cgroup, place)?;
        let connect6 = connect(loaded, (name::CONNECT6, CgroupHook::Connect6), cgroup, place)?;
        Ok(Self {
            connect: vec![(name::CONNECT4, connect4), (name::CONNECT6, connect6)],
            pinned: Vec::new(),
            dns: Vec::new(),
            others,
            sockopt,
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
        self.sockopt.clear();
    }
}

/// aya's links know nothing of an order.
fn connect(
    loaded: &mut Loaded,
    (name, hook): (&'static str, CgroupHook),
    cgroup: &Cgroup,
    place: &Place,
) -> Result<OwnedFd, KernelError> {
    let cgroup = place.above.as_ref().unwrap_or(cgroup);
    let program = loaded.sock_addr(name)?.fd().map_err(|source| failed(name, cgroup, source))?;
    let order = if place.placement == Placement::Last { Order::Last } else { Order::First };
    bpf::attach_cgroup(program.as_fd(), cgroup.dir().as_fd(), hook, order)
        .map_err(|source| KernelError::io(format!("attaching {name} to {}", cgroup.path().display()), source))
}

fn sock_addr(loaded: &mut Loaded, name: &'static str, cgroup: &Cgroup) -> Result<FdLink, KernelError> {
    let program = loaded.sock_addr(name)?;
    let id = program.attach(cgroup.dir(), MODE).map_err(|source| failed(name, cgroup, source))?;
    link(program.take_link(id), name, cgroup)
}

fn link<L: TryInto<FdLink, Error = LinkError>>(
    taken: Result<L, ProgramError>,
    name: &str,
    cgroup: &Cgroup,
) -> Result<FdLink, KernelError> {
    let link = taken.map_err(|source| failed(name, cgroup, source))?;
    link.try_into().map_err(|_: LinkError| failed(name, cgroup, ProgramError::NotAttached))
}

fn failed(name: &str, cgroup: &Cgroup, source: ProgramError) -> KernelError {
    KernelError::program(format!("attach {name} to {}", cgroup.path().display()), source)
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
